use podgres::postgres::replication::{ReplicationClient, SlotOutcome, ensure_slot};
use podgres::postgres::slots::SlotChanges;

use super::server::{LIMIT, TestServer, access, installations, replication};

const BOUNDED: &str =
    "max_slot_wal_keep_size = 1MB\nmin_wal_size = 2MB\nmax_wal_size = 2MB\nwal_keep_size = 0\n";

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

#[tokio::test]
async fn slots_follow_the_members_and_leave_others_alone() {
    for programs in installations() {
        let primary = TestServer::primary(&programs, "wal_level = logical\n").await;
        let standby = primary.standby("podgres_pg_9", "primary_slot_name = ''").await;
        primary
            .sql("SELECT pg_create_logical_replication_slot('podgres_pg_5', 'pgoutput')")
            .await;
        for server in [&primary, &standby] {
            server
                .sql("SELECT pg_create_physical_replication_slot(n) FROM unnest(ARRAY['mine', 'podgres_dr_4']) n")
                .await;
            reconcile(server).await;
        }
    }
}

async fn reconcile(server: &TestServer) {
    let mut local = server.local();
    let both = names(["podgres_pg_1", "podgres_pg_2"]);
    let changes = local.reconcile_slots(&both, LIMIT).await.expect("create");
    assert_eq!(
        changes,
        SlotChanges {
            created: both.clone(),
            ..SlotChanges::default()
        }
    );
    let status = local.status(false, LIMIT).await.expect("status");
    let reserved = |name: &String| {
        let mut slots = status.slots.iter();
        slots.any(|slot| slot.slot_name == *name && slot.restart_lsn.is_some() && !slot.active)
    };
    assert!(both.iter().all(reserved), "{status:?}");
    assert!(status.slots.iter().all(|slot| slot.slot_name != "mine"));

    let changes = local.reconcile_slots(&both, LIMIT).await.expect("no change");
    assert_eq!(changes, SlotChanges::default());
    let changes = local
        .reconcile_slots(&both[..1], LIMIT)
        .await
        .expect("scaled down");
    assert_eq!(changes.dropped, both[1..]);

    let many: Vec<String> = (10..20).map(|ordinal| format!("podgres_pg_{ordinal}")).collect();
    let changes = local.reconcile_slots(&many, LIMIT).await.expect("too many");
    assert!(
        !changes.failed.is_empty() && !changes.created.is_empty(),
        "{changes:?}"
    );
    assert!(
        changes.failed[0].message.contains("slots are in use"),
        "{changes:?}"
    );
    local.reconcile_slots(&[], LIMIT).await.expect("clean up");
    let left = local.status(false, LIMIT).await.expect("status").slots;
    assert_eq!(
        left.iter()
            .map(|slot| slot.slot_name.as_str())
            .collect::<Vec<_>>(),
        ["podgres_dr_4"]
    );
}

#[tokio::test]
async fn a_lost_slot_is_made_anew() {
    for programs in installations() {
        let server = TestServer::primary(&programs, BOUNDED).await;
        let mut local = server.local();
        let expected = names(["podgres_pg_1"]);
        local.reconcile_slots(&expected, LIMIT).await.expect("create");
        let first = server.status().await;

        lose_the_slot(&server).await;
        let status = server.status().await;
        assert!(status.oldest_wal_lsn > first.oldest_wal_lsn, "{status:?}");
        let changes = local.reconcile_slots(&expected, LIMIT).await.expect("renew");
        assert_eq!(changes.renewed, expected);
        let slot = server.status().await.slots.remove(0);
        assert!(!slot.lost && slot.restart_lsn.is_some(), "{slot:?}");

        // The same from a standby's side.
        let (upstream, login) = (server.as_upstream(), replication());
        let access = access(&upstream, &login, None);
        assert_eq!(
            ensure_slot(&access, LIMIT).await.expect("slot"),
            SlotOutcome::Present
        );
        lose_the_slot(&server).await;
        assert_eq!(
            ensure_slot(&access, LIMIT).await.expect("slot"),
            SlotOutcome::Renewed
        );
        let mut client = ReplicationClient::connect(&access, LIMIT).await.expect("client");
        client.drop_replication_slot(&upstream.slot).await.expect("drop");
        assert_eq!(
            client.read_replication_slot(&upstream.slot).await.expect("read"),
            None
        );
        assert_eq!(
            ensure_slot(&access, LIMIT).await.expect("slot"),
            SlotOutcome::Created
        );
        let slot = client
            .read_replication_slot(&upstream.slot)
            .await
            .expect("read")
            .expect("slot");
        assert!(slot.restart_lsn.is_some() && slot.restart_timeline.is_some());
        assert_eq!(client.wal_segment_size_bytes().await.expect("size"), 1 << 20);
    }
}

/// Writes segments until the checkpoint after them gives the slot up.
async fn lose_the_slot(server: &TestServer) {
    for _ in 0..20 {
        server
            .sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000))")
            .await;
        server.sql("SELECT pg_switch_wal()").await;
        server.sql("CHECKPOINT").await;
        let slot = server.status().await.slots.remove(0);
        assert!(slot.lost || slot.safe_wal_size_bytes.is_some(), "{slot:?}");
        if slot.lost {
            return;
        }
    }
    panic!("the slot is not lost\n{}", server.log());
}
