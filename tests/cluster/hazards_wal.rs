//! A standby for which the primary has kept no WAL, and a primary that keeps none for those who are gone.

use std::time::{Duration, Instant};

use crate::harness::{Demo, LIMIT, Start, member, wait_for};
use crate::kit::open_folder;

/// Little WAL is kept, so that a little more is too much.
const LITTLE_WAL: &str =
    "max_slot_wal_keep_size = 32MB\nwal_keep_size = 0\nmax_wal_size = 32MB\nmin_wal_size = 32MB\n";

/// The pods' settings in a folder that lives as long as the test: `PODGRES_CONFIGURATION_DIR=…`.
pub(crate) fn configured(text: &str) -> (tempfile::TempDir, String) {
    let folder = open_folder();
    std::fs::write(folder.path().join("test.conf"), text).expect("configuration");
    let setting = format!("PODGRES_CONFIGURATION_DIR={}", folder.path().display());
    (folder, setting)
}

/// Writes until the primary has removed the WAL that is written now.
fn outrun(demo: &Demo) {
    let primary = ["--member", "0"];
    let segment = demo.sql(&primary, "SELECT pg_walfile_name(pg_current_wal_lsn())");
    demo.sql(
        &primary,
        "CREATE TABLE IF NOT EXISTS bulk (filler text); ALTER TABLE bulk ALTER filler SET STORAGE EXTERNAL",
    );
    let gone = format!("SELECT count(*) = 0 FROM pg_ls_waldir() WHERE name = '{segment}'");
    let removed = wait_for(LIMIT, || {
        demo.sql(
            &primary,
            "INSERT INTO bulk SELECT repeat('x', 1 << 20) FROM generate_series(1, 20); SELECT pg_switch_wal()",
        );
        demo.sql(&primary, "CHECKPOINT");
        demo.sql(&primary, &gone) == "t"
    });
    assert!(removed, "WAL is kept for ever");
}

fn clones_for_lost_wal(demo: &Demo) -> Option<String> {
    let (_, page) = demo.get(1, "/metrics")?;
    let name = "podgres_clones_total{reason=\"wal_gone\"} ";
    page.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::to_owned)
}

#[test]
fn row_68_a_standby_whose_wal_is_gone_is_not_ready_says_so_and_is_cloned_afresh() {
    let (_configuration, setting) = configured(LITTLE_WAL);
    let start = |more: &[&str]| {
        Start::new(15)
            .with(&[
                "--replicas",
                "2",
                "--set",
                &setting,
                "--set",
                "PODGRES_STALL_TIMEOUT=1s",
            ])
            .with(more)
    };
    let folder = open_folder();
    let directory = folder.path().join("demo");

    let mut demo = start(&["--set", "PODGRES_RECLONE=false"]).run_in(&directory);
    demo.wait_streaming(1);
    demo.ask(&["freeze", "1"]);
    outrun(&demo);
    demo.ask(&["thaw", "1"]);
    let gone = |status: &serde_json::Value| member(status, "demo-1")["situation"] == "wal_gone";
    let status = demo.wait("the situation wal_gone", gone);
    let message = member(&status, "demo-1")["message"].to_string();
    assert!(message.contains("WAL") && message.contains("0/"), "{message}");
    // Whatever its receiver tries meanwhile.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        let (code, body) = demo.get(1, "/readiness").expect("an answer");
        assert_eq!(code, 503, "{body}");
        let status = demo.status().expect("a status");
        assert!(gone(&status), "{:#}", member(&status, "demo-1"));
    }
    assert_eq!(clones_for_lost_wal(&demo), None);
    demo.stop();

    // The same directory with the default.
    let demo = start(&["--set", "PODGRES_RECLONE=true"]).run_in(&directory);
    demo.wait_streaming(1);
    assert_eq!(clones_for_lost_wal(&demo).as_deref(), Some("1"));
    let rows = demo.sql(&["--member", "0"], "SELECT count(*) FROM bulk");
    assert_eq!(demo.sql(&["--member", "1"], "SELECT count(*) FROM bulk"), rows);
    let log = demo.log("demo-1", "sidecar");
    assert!(log.contains("\"situation\":\"wal_gone\""), "{log}");
}

#[test]
fn row_73_the_slot_of_a_scaled_away_pod_goes_and_what_slots_keep_is_bounded() {
    let demo = Start::new(15)
        .with(&["--replicas", "2", "--set", "PODGRES_SLOT_RETENTION=2s"])
        .run();
    demo.wait_streaming(1);
    let primary = ["--member", "0"];
    let limit = "SELECT pg_size_bytes(current_setting('max_slot_wal_keep_size'))";
    let limit: u64 = demo.sql(&primary, limit).parse().expect("a limit");
    let volume = rustix::fs::statvfs(&demo.directory).expect("volume");
    let volume = volume.f_blocks * volume.f_frsize;
    assert!(limit <= volume / 4 && limit >= 256 << 20, "{limit} of {volume}");

    let slots = || {
        demo.sql(
            &primary,
            "SELECT string_agg(slot_name, ',') FROM pg_replication_slots",
        )
    };
    assert_eq!(slots(), "podgres_demo_1");
    demo.ask(&["scale", "1"]);
    assert!(wait_for(LIMIT, || slots().is_empty()), "{}", slots());
    // Somebody else's slot is left alone, and the pod that comes back gets its own again.
    demo.sql(
        &primary,
        "SELECT pg_create_physical_replication_slot('a_backup_tool')",
    );
    demo.ask(&["scale", "2"]);
    demo.wait_streaming(1);
    assert_eq!(slots().split(',').count(), 2);
}

#[test]
fn row_73_a_slot_without_bounds_is_refused() {
    let (_configuration, setting) = configured("max_slot_wal_keep_size = -1\n");
    let demo = Start::new(15).with(&["--replicas", "1", "--set", &setting]).run();
    let refused = || {
        demo.log("demo-0", "sidecar")
            .contains("the slot of a standby that is away would fill the volume")
    };
    assert!(wait_for(LIMIT, refused), "{}", demo.log("demo-0", "sidecar"));
}
