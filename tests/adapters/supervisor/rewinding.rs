//! A former primary is rewound and follows its successor; what it alone had is kept; whatever is killed meanwhile.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Instant;

use podgres::core::supervision::{
    CloneReason, FailureKind, JobRequest, JobState, Postmaster, StopMode, SupervisorRequest, SupervisorStatus,
};
use rustix::process::{Signal, kill_process};

use super::machine::{own, postmaster};
use super::pair::{ALONE, Pair, follow, slot, streams, upstream_of};
use super::pod::{PASSWORD, Pod};
use crate::wait::eventually;

fn stopped(status: &SupervisorStatus) -> bool {
    matches!(status.postmaster, Postmaster::Stopped { .. })
}

fn half_rewound(status: &SupervisorStatus) -> bool {
    status.data_directory.facts().unwrap().half_rewound
}

impl Pair {
    /// The second is promoted while the first goes on alone for `commits`, and then crashes.
    async fn diverged(major: u32, commits: u32) -> Self {
        let pair = Self::streaming(major).await;
        let Self { first, second, .. } = &pair;
        first.sql("CREATE TABLE t AS SELECT i, repeat('x', 100) AS x FROM generate_series(1, 20000) AS i");
        eventually("the table to arrive", async || {
            second.sql("SELECT to_regclass('t') IS NOT NULL") == "t"
        })
        .await;
        pair.fail_over(2).await;
        for number in 0..commits {
            first.sql(&format!(
                "UPDATE t SET x = 'lost {number}' WHERE i = {number} + 1"
            ));
        }
        second.sql("UPDATE t SET x = 'won' WHERE i < 100");
        let primary = postmaster(&first.ask(SupervisorRequest::Status).await);
        kill_process(primary, Signal::KILL).unwrap();
        first.until(stopped).await;
        slot(second, first);
        pair
    }

    fn rewind(&self) -> JobRequest {
        JobRequest::Rewind {
            upstream: upstream_of(&self.second, &self.first),
            system_identifier: self.system_identifier,
        }
    }

    async fn first_follows(&self) {
        let Self { first, second, .. } = self;
        first.start(follow(second, first)).await;
        streams(first).await;
        second.sql("CREATE TABLE after_all ()");
        eventually("what came after", async || {
            first.sql("SELECT to_regclass('after_all') IS NOT NULL") == "t"
        })
        .await;
        assert_eq!(first.sql("SELECT count(*) FROM t WHERE x LIKE 'lost%'"), "0");
        assert_eq!(first.sql("SELECT count(*) FROM t WHERE x = 'won'"), "99");
    }
}

async fn is_rewound(major: u32) {
    let pair = Pair::diverged(major, 7).await;
    let before = pair.first.ask(SupervisorRequest::Status).await;
    let begun = Instant::now();
    let status = pair.first.job(pair.rewind()).await;
    assert_eq!(
        status.job.as_ref().unwrap().state,
        JobState::Done,
        "{}",
        pair.first.log()
    );
    let facts = status.data_directory.facts().unwrap();
    assert!(facts.standby_signal && !facts.half_rewound, "{facts:?}");
    assert!(status.incarnation.is_some() && status.incarnation != before.incarnation);
    let kept = status.diverged.expect("a report");
    assert_eq!(kept.commits, 7, "{kept:?}");
    assert!(kept.bytes > 0 && kept.first_commit < kept.last_commit, "{kept:?}");
    let segments = fs::read_dir(&kept.kept_in).unwrap().count();
    assert!(segments >= 2, "a segment and the report: {kept:?}");
    pair.first_follows().await;
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    assert!(!pair.first.log().contains(PASSWORD));
    // It outlives the supervisor.
    let mut first = pair.first;
    first.signal(Signal::TERM);
    first.ended().await;
    first.supervise().await;
    assert_eq!(first.ask(SupervisorRequest::Status).await.diverged, Some(kept));
}

#[tokio::test]
async fn a_crashed_former_primary_is_rewound_and_follows_15() {
    is_rewound(15).await;
}

#[tokio::test]
async fn a_crashed_former_primary_is_rewound_and_follows_16() {
    is_rewound(16).await;
}

#[tokio::test]
async fn a_crashed_former_primary_is_rewound_and_follows_18() {
    is_rewound(18).await;
}

#[tokio::test]
async fn one_that_stopped_cleanly_with_everything_shipped_loses_nothing() {
    let pair = Pair::streaming(15).await;
    let Pair { first, second, .. } = &pair;
    first.sql("CREATE TABLE t AS SELECT 1 AS i, 'won' AS x FROM generate_series(1, 99)");
    let mode = StopMode::Fast;
    first.ask(SupervisorRequest::Stop { mode }).await;
    first.until(stopped).await;
    pair.fail_over(2).await;
    slot(second, first);
    let status = first.job(pair.rewind()).await;
    assert_eq!(status.job.unwrap().state, JobState::Done, "{}", first.log());
    assert_eq!(status.diverged, None);
    pair.first_follows().await;
}

/// The pod's programs, with a `pg_rewind` that is this script; `$real` is the shipped one.
async fn with_rewind(pod: &mut Pod, script: &str) {
    let original = fs::canonicalize(pod.programs.join("postgres")).unwrap();
    let original = original.parent().unwrap();
    let programs = pod.path().join("bin");
    fs::create_dir_all(&programs).unwrap();
    for entry in fs::read_dir(original).unwrap().flatten() {
        symlink(entry.path(), programs.join(entry.file_name())).ok();
    }
    let program = programs.join("pg_rewind");
    fs::remove_file(&program).ok();
    let real = original.join("pg_rewind");
    fs::write(
        &program,
        format!("#!/bin/bash\nreal={}\n{script}\n", real.display()),
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    own(&programs);
    pod.programs = programs;
    pod.signal(Signal::KILL);
    pod.ended().await;
    pod.supervise().await;
}

fn failure(status: &SupervisorStatus) -> (bool, FailureKind, String) {
    match &status.job.as_ref().unwrap().state {
        JobState::Failed {
            refused,
            kind,
            message,
        } => (*refused, *kind, message.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_rewind_that_is_killed_leaves_a_directory_as_it_was_or_one_that_is_cloned() {
    let mut pair = Pair::diverged(15, 3).await;
    with_rewind(&mut pair.first, "kill -9 $$").await;
    let status = pair.first.job(pair.rewind()).await;
    let (refused, _, message) = failure(&status);
    assert!(!refused && message.contains("which is as it was"), "{message}");
    assert!(!half_rewound(&status));
    assert_eq!(status.diverged.expect("kept").commits, 3);

    // Ended by the system just when it begins to change files.
    let script = "coproc \"$real\" \"$@\" 2>&1\nwhile read -r line <&\"${COPROC[0]}\"; do echo \"$line\"; \
        case \"$line\" in *'need to copy'*) kill -9 $COPROC_PID; kill -9 $$;; esac; done";
    with_rewind(&mut pair.first, script).await;
    let status = pair.first.job(pair.rewind()).await;
    let (refused, kind, message) = failure(&status);
    assert!(refused && kind == FailureKind::Data, "{message}");
    assert!(message.contains("half rewound"), "{message}");
    assert!(half_rewound(&status));
    let start = SupervisorRequest::Start {
        server: ALONE,
        promised: None,
    };
    assert_eq!(
        pair.first.refused(start).await,
        "cannot start: the data directory is half rewound, and must be cloned anew"
    );
    let status = pair.first.job(pair.rewind()).await;
    assert!(failure(&status).2.contains("an earlier rewind was interrupted"));

    let clone = pair.clone_of(&pair.second, &pair.first, CloneReason::NotRewound);
    let status = pair.first.job(clone).await;
    assert_eq!(
        status.job.as_ref().unwrap().state,
        JobState::Done,
        "{}",
        pair.first.log()
    );
    assert!(!half_rewound(&status));
    assert!(!Path::new(&pair.first.path().join("volume/data.podgres-rewinding")).exists());
    pair.first_follows().await;
}

#[tokio::test]
async fn a_supervisor_that_is_killed_while_it_rewinds_knows_that_afterwards() {
    let mut pair = Pair::diverged(15, 1).await;
    with_rewind(&mut pair.first, "exec sleep 60").await;
    let job = pair.rewind();
    pair.first.ask(SupervisorRequest::Run { job }).await;
    let mark = pair.first.path().join("volume/data.podgres-rewinding");
    eventually("the mark", async || mark.exists()).await;
    pair.first.signal(Signal::KILL);
    pair.first.ended().await;
    pair.first.supervise().await;
    assert!(half_rewound(&pair.first.ask(SupervisorRequest::Status).await));
    let clone = pair.clone_of(&pair.second, &pair.first, CloneReason::NotRewound);
    let status = pair.first.job(clone).await;
    assert_eq!(
        status.job.as_ref().unwrap().state,
        JobState::Done,
        "{}",
        pair.first.log()
    );
    pair.first_follows().await;
}

#[tokio::test]
async fn a_former_primary_that_is_cloned_anew_keeps_what_it_alone_had() {
    let pair = Pair::diverged(15, 2).await;
    let clone = pair.clone_of(&pair.second, &pair.first, CloneReason::Diverged);
    let status = pair.first.job(clone).await;
    assert_eq!(
        status.job.as_ref().unwrap().state,
        JobState::Done,
        "{}",
        pair.first.log()
    );
    let kept = status.diverged.expect("a report");
    assert_eq!(kept.commits, 2, "{kept:?}");
    assert!(fs::read_dir(&kept.kept_in).unwrap().count() >= 2);
    pair.first_follows().await;
}

#[tokio::test]
async fn a_source_that_is_frozen_or_gone_changes_nothing() {
    let pair = Pair::diverged(15, 1).await;
    let primary = postmaster(&pair.second.ask(SupervisorRequest::Status).await);
    kill_process(primary, Signal::STOP).unwrap();
    let begun = Instant::now();
    let status = pair.first.job(pair.rewind()).await;
    kill_process(primary, Signal::CONT).unwrap();
    let (refused, _, message) = failure(&status);
    assert!(!refused, "{message}");
    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    assert!(!half_rewound(&status));
    let status = pair.first.job(pair.rewind()).await;
    assert_eq!(status.job.unwrap().state, JobState::Done, "{}", pair.first.log());
    pair.first_follows().await;
}
