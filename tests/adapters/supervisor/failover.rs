//! Detaching and promoting: what is on disk first, what is refused, and how soon it has effect.

use std::fs;
use std::time::{Duration, Instant};

use podgres::core::supervision::{NextTimeline, Postmaster, ServerRole, StopMode, SupervisorRequest, Terms};
use podgres::core::wal::TimelineId;
use podgres::postgres::timelines::pass_over;
use rustix::process::Signal;

use super::machine::own;
use super::pair::{ALONE, NEXT, Pair, follow, licence, promote, receiver, slot, streams};
use super::pod::{LIMIT, Pod};
use crate::wait::eventually;

fn promotion(term: u64) -> SupervisorRequest {
    SupervisorRequest::Promote {
        synchronous_standby_names: "FIRST 1 (podgres_gate, \"pg-0\")".to_owned(),
        read_only: false,
        term,
        timeline: NEXT,
    }
}

async fn detaches_and_is_promoted(major: u32) {
    let Pair { first, second, .. } = Pair::streaming(major).await;
    let gate = "FIRST 1 (podgres_gate)";
    assert_eq!(second.sql("SHOW synchronous_standby_names"), gate);
    assert_eq!(first.sql("SHOW synchronous_standby_names"), "");
    let own_name = "SELECT application_name FROM pg_stat_replication";
    assert_eq!(first.sql(own_name), "pg-1");

    let refusal = second.refused(promotion(2)).await;
    assert_eq!(refusal, "cannot promote: no licence");
    let asked = Instant::now();
    let status = second.ask(SupervisorRequest::Detach { term: 2 }).await;
    assert_eq!(status.terms, Terms { promised: 2, held: 0 });
    let Postmaster::Running { role, .. } = status.postmaster else {
        panic!("{:?}", status.postmaster);
    };
    assert_eq!(role, ALONE);
    eventually("the end of the receiver", async || receiver(&second).is_empty()).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let refusal = second.refused(SupervisorRequest::Detach { term: 1 }).await;
    assert_eq!(
        refusal,
        "cannot go back to term 1: this member has promised term 2"
    );

    second.ask(licence(LIMIT)).await;
    let asked = Instant::now();
    let status = second.ask(promotion(3)).await;
    assert_eq!(status.terms, Terms { promised: 3, held: 3 });
    assert!(matches!(
        status.postmaster,
        Postmaster::Running {
            role: ServerRole::Primary { .. },
            ..
        }
    ));
    eventually("the promotion", async || {
        second.sql("SELECT pg_is_in_recovery()") == "f"
    })
    .await;
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!(
        second.sql("SHOW synchronous_standby_names"),
        "FIRST 1 (podgres_gate, \"pg-0\")"
    );
    assert_eq!(
        second.refused(promotion(3)).await,
        "PostgreSQL runs as primary already"
    );
    let refusal = second.refused(SupervisorRequest::Hold { term: 2 }).await;
    assert_eq!(
        refusal,
        "cannot go back to term 2: this member was primary in term 3"
    );
    // The fence knows its new role.
    second.ask(licence(Duration::from_millis(300))).await;
    second
        .until(|status| matches!(status.postmaster, Postmaster::Stopped { .. }))
        .await;
}

#[tokio::test]
async fn a_standby_detaches_and_is_promoted_15() {
    detaches_and_is_promoted(15).await;
}

#[tokio::test]
async fn a_standby_detaches_and_is_promoted_16() {
    detaches_and_is_promoted(16).await;
}

#[tokio::test]
async fn a_standby_detaches_and_is_promoted_18() {
    detaches_and_is_promoted(18).await;
}

/// Two members that did not know of each other's promotion began different timelines of one number, which no WAL receiver and
/// no `pg_rewind` can tell apart.
async fn a_number_that_may_be_taken_is_passed_over(major: u32) {
    let Pair { first, second, .. } = Pair::streaming(major).await;
    first.ask(SupervisorRequest::Stop { mode: StopMode::Fast }).await;
    first
        .until(|status| matches!(status.postmaster, Postmaster::Stopped { .. }))
        .await;
    let timeline = NextTimeline {
        own: TimelineId(1),
        next: TimelineId(4),
    };
    // It was to be promoted, and was killed before.
    pass_over(&second.data(), timeline).unwrap();
    for number in ["00000002", "00000003"] {
        own(&second.data().join(format!("pg_wal/{number}.history")));
    }
    second
        .ask(SupervisorRequest::Stop {
            mode: StopMode::Immediate,
        })
        .await;
    second
        .until(|status| matches!(status.postmaster, Postmaster::Stopped { .. }))
        .await;
    second.start(ALONE).await;
    second.ask(SupervisorRequest::Detach { term: 2 }).await;
    second.ask(licence(LIMIT)).await;
    second
        .ask(SupervisorRequest::Promote {
            synchronous_standby_names: String::new(),
            read_only: false,
            term: 2,
            timeline,
        })
        .await;
    let current = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)";
    eventually("the promotion", async || {
        second.sql("SELECT pg_is_in_recovery()") == "f"
    })
    .await;
    assert_eq!(second.sql(current), "00000004");
    slot(&second, &first);
    // Over the numbers that nobody began, and once more after a crash.
    for _ in 0..2 {
        first.start(follow(&second, &first)).await;
        streams(&first).await;
        second.sql("CREATE TABLE IF NOT EXISTS later ()");
        eventually("the table", async || {
            first.sql("SELECT to_regclass('later') IS NOT NULL") == "t"
        })
        .await;
        first
            .ask(SupervisorRequest::Stop {
                mode: StopMode::Immediate,
            })
            .await;
        first
            .until(|status| matches!(status.postmaster, Postmaster::Stopped { .. }))
            .await;
    }
}

#[tokio::test]
async fn a_number_that_may_be_taken_is_passed_over_15() {
    a_number_that_may_be_taken_is_passed_over(15).await;
}

#[tokio::test]
async fn a_number_that_may_be_taken_is_passed_over_18() {
    a_number_that_may_be_taken_is_passed_over(18).await;
}

#[tokio::test]
async fn a_standby_that_replays_nothing_still_detaches_at_once_and_keeps_what_it_has() {
    let Pair { first, second, .. } = Pair::streaming(15).await;
    second.sql("SELECT pg_wal_replay_pause()");
    eventually("the pause", async || {
        second.sql("SELECT pg_get_wal_replay_pause_state()") == "paused"
    })
    .await;
    first.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i");
    let end = first.sql("SELECT pg_current_wal_flush_lsn()");
    eventually("what was written to arrive", async || {
        second.sql(&format!("SELECT pg_last_wal_receive_lsn() >= '{end}'")) == "t"
    })
    .await;
    let asked = Instant::now();
    second.ask(SupervisorRequest::Detach { term: 2 }).await;
    eventually("the end of the receiver", async || receiver(&second).is_empty()).await;
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    first.sql("CREATE TABLE later ()");
    second.sql("SELECT pg_wal_replay_resume()");
    eventually("all to be replayed", async || {
        second.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")) == "t"
    })
    .await;
    assert_eq!(receiver(&second), "");
    promote(&second, 2).await;
    assert_eq!(second.sql("SELECT count(*) FROM kept"), "1000");
    assert_eq!(second.sql("SELECT to_regclass('later') IS NULL"), "t");
}

#[tokio::test]
async fn a_reload_with_another_upstream_streams_at_once() {
    let Pair { first, second, .. } = Pair::streaming(15).await;
    second.ask(SupervisorRequest::Detach { term: 1 }).await;
    eventually("the end of the receiver", async || receiver(&second).is_empty()).await;
    let asked = Instant::now();
    second
        .ask(SupervisorRequest::Reload {
            server: follow(&first, &second),
            promised: None,
        })
        .await;
    streams(&second).await;
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn terms_outlive_the_supervisor_and_a_garbled_file_is_no_zero() {
    let mut pod = Pod::empty();
    pod.gated = true;
    pod.supervise().await;
    pod.ask(SupervisorRequest::Hold { term: 4 }).await;
    let status = pod.ask(SupervisorRequest::Detach { term: 6 }).await;
    let terms = Terms { promised: 6, held: 4 };
    assert_eq!(status.terms, terms);
    pod.signal(Signal::KILL);
    pod.ended().await;
    pod.supervise().await;
    assert_eq!(pod.ask(SupervisorRequest::Status).await.terms, terms);
    // Neither the file nor its making keeps a cluster from being made beside it.
    let status = pod.job(podgres::core::supervision::JobRequest::Initdb).await;
    let incarnation = status.incarnation.expect("a new directory has a name");
    assert_eq!(status.terms, terms);
    pod.signal(Signal::TERM);
    assert!(pod.ended().await.success(), "{}", pod.log());
    pod.supervise().await;
    assert_eq!(
        pod.ask(SupervisorRequest::Status).await.incarnation,
        Some(incarnation)
    );
    pod.signal(Signal::TERM);
    pod.ended().await;

    let file = pod.path().join("volume/data.podgres");
    for garbled in [
        "",
        "{\"promised\":6}",
        "{\"promised\":6,\"held\":7}",
        "\u{0}\u{0}",
    ] {
        fs::write(&file, garbled).unwrap();
        let status = pod
            .command(&std::env::current_exe().unwrap(), &[])
            .status()
            .unwrap();
        assert!(!status.success(), "{garbled:?} was taken");
        assert!(
            pod.log().contains("cannot read the promised terms"),
            "{}",
            pod.log()
        );
    }
}

#[tokio::test]
async fn a_copied_name_does_not_count() {
    let Pair { first, second, .. } = Pair::streaming(15).await;
    let of = async |pod: &Pod| pod.ask(SupervisorRequest::Status).await.incarnation.unwrap();
    assert_ne!(of(&first).await, of(&second).await);
    let mode = StopMode::Fast;
    second.ask(SupervisorRequest::Stop { mode }).await;
    second
        .until(|status| matches!(status.postmaster, Postmaster::Stopped { .. }))
        .await;
    let before = of(&second).await;
    fs::copy(
        first.data().join("podgres.member"),
        second.data().join("podgres.member"),
    )
    .unwrap();
    second.until(|status| status.incarnation.is_none()).await;
    second.start(ALONE).await;
    let after = of(&second).await;
    assert!(after != before && after != of(&first).await);
}

#[tokio::test]
async fn under_a_lease_the_end_waits_until_it_is_known_and_not_for_ever() {
    let mut pod = Pod::with_data();
    pod.gated = true;
    pod.supervise().await;
    pod.start_primary().await;
    let status = pod.ask(SupervisorRequest::Status).await;
    pod.signal(Signal::TERM);
    let stopped = |status: &podgres::core::supervision::SupervisorStatus| {
        matches!(status.postmaster, Postmaster::Stopped { .. })
    };
    let last = pod.until(stopped).await;
    assert!(last.stopping);
    let before = status.data_directory.facts().unwrap();
    let facts = last.data_directory.facts().unwrap();
    assert!(facts.control_lsn > before.control_lsn, "{facts:?}");
    let told = Instant::now();
    assert!(pod.ended().await.success(), "{}", pod.log());
    assert!(
        told.elapsed() < Duration::from_millis(700),
        "{:?}",
        told.elapsed()
    );

    pod.supervise().await;
    let begun = Instant::now();
    pod.signal(Signal::TERM);
    assert!(pod.ended().await.success(), "{}", pod.log());
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_volume_that_takes_no_write_shows_while_it_is_primary() {
    let mut pod = Pod::with_data();
    pod.gated = true;
    pod.supervise().await;
    pod.start_primary().await;
    let probe = pod.path().join("volume/data.podgres-probe");
    eventually("the first probe", async || probe.exists()).await;
    let before = podgres::clock::boottime_ms();
    fs::remove_file(&probe).unwrap();
    fs::create_dir(&probe).unwrap();
    let failing = pod.until(|status| status.disk_failing_since_ms.is_some()).await;
    assert!(failing.disk_failing_since_ms.unwrap() >= before);
    fs::remove_dir(&probe).unwrap();
    pod.until(|status| status.disk_failing_since_ms.is_none()).await;
}
