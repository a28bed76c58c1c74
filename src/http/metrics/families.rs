//! The list of metrics, in the order of the page.

use prometheus_client::metrics::MetricType;

use crate::core::cluster::check::{Check, CheckQuery};
use crate::core::cluster::verdict::{LoopAge, answer};
use crate::core::cluster::{ClusterView, LagMode};
use crate::core::status::{ArchiveStatus, MemberState, Role};
use crate::core::supervision::{CloneReason, JobKind};

use super::Counters;
use super::exporter;
use super::family::{Family, Labels, Value, family, flag, gauges, number, real, seconds, whole};
use super::leadership;

/// Every family, the empty ones too.
pub(super) fn families(view: &ClusterView, counters: &Counters, turned: LoopAge) -> Vec<Family> {
    let mut all = exporter::families(view);
    all.extend(member(view, counters, turned));
    all.extend(wal(view));
    all.extend(
        view.me
            .server
            .as_ref()
            .and_then(|server| server.archive.as_ref())
            .map(archive)
            .into_iter()
            .flatten(),
    );
    all.extend(view.me.server.as_ref().map(exporter::slots).into_iter().flatten());
    all.extend(cluster(view));
    all.extend(leadership::families(view, counters));
    all.extend(jobs(view, counters));
    all.extend(super::routes::families(&counters.routes));
    all
}

fn member(view: &ClusterView, counters: &Counters, turned: LoopAge) -> Vec<Family> {
    let me = &view.me;
    let build = vec![(vec![("version", me.version.clone())], Value::Whole(1))];
    let ready = answer(Check::Readiness, &CheckQuery::default(), view, turned).passed;
    vec![
        family("podgres_build", "The running podgres", MetricType::Info, build),
        gauges(
            "podgres_situation",
            "The situation that the last decision rests on",
            situations(view, counters),
        ),
        gauges("podgres_member_state", "State of this member", states(me.state)),
        gauges("podgres_member_role", "Role of this member", roles(me.role)),
        flag("podgres_ready", "Whether /readiness passes", Some(ready)),
        flag(
            "podgres_writable",
            "Whether this member accepts writes",
            Some(me.writable),
        ),
        seconds(
            "podgres_loop_age_seconds",
            "Time since the agent's loop last turned",
            Some(turned.age_ms),
        ),
    ]
}

fn situations(view: &ClusterView, counters: &Counters) -> Vec<(Labels, Value)> {
    let now = view.me.situation.as_str();
    let others = counters.situations.iter().copied().filter(|name| *name != now);
    let mut names: Vec<&str> = others.chain([now]).collect();
    names.sort_unstable();
    state_set("situation", &names, Some(now))
}

fn states(now: MemberState) -> Vec<(Labels, Value)> {
    // Nobody calls itself unreachable.
    let all = [
        MemberState::Running,
        MemberState::Streaming,
        MemberState::Cloning,
        MemberState::Rewinding,
        MemberState::Starting,
        MemberState::Stopped,
        MemberState::Fenced,
    ];
    state_set("state", &all.map(MemberState::as_str), Some(now.as_str()))
}

fn roles(now: Option<Role>) -> Vec<(Labels, Value)> {
    state_set(
        "role",
        &[Role::Primary, Role::Standby].map(Role::as_str),
        now.map(Role::as_str),
    )
}

fn state_set(label: &'static str, names: &[&str], now: Option<&str>) -> Vec<(Labels, Value)> {
    let sample = |name: &&str| (vec![(label, (*name).to_owned())], whole(Some(*name) == now));
    names.iter().map(sample).collect()
}

/// Of a primary with an archive: the alarm before its volume fills.
fn archive(archive: &ArchiveStatus) -> Vec<Family> {
    let count = |value| vec![(Vec::new(), Value::Whole(value))];
    vec![
        family(
            "podgres_archived_files",
            "WAL files archived",
            MetricType::Counter,
            count(archive.archived_files),
        ),
        family(
            "podgres_archive_failures",
            "Times that archiving a WAL file failed",
            MetricType::Counter,
            count(archive.failed_attempts),
        ),
        number(
            "podgres_archive_waiting_files",
            "WAL files that wait to be archived and stay until they are",
            Some(archive.waiting_files),
        ),
        seconds(
            "podgres_archive_lag_seconds",
            "How long the oldest of them has waited",
            Some(archive.waiting_ms),
        ),
    ]
}

fn wal(view: &ClusterView) -> Vec<Family> {
    let server = view.me.server.as_ref();
    let standby = server.filter(|server| server.in_recovery);
    let lag = |mode| standby.and_then(|_| view.lag_bytes(&view.me, mode));
    let age = crate::core::cluster::json::known_ms_ago(view);
    vec![
        flag(
            "podgres_receiver_connected",
            "Standby: whether its WAL receiver streams",
            standby.map(|server| server.receiver_streaming),
        ),
        number(
            "podgres_timeline",
            "Timeline of the server",
            server.map(|s| s.timeline.0.into()),
        ),
        number(
            "podgres_flush_lsn_bytes",
            "WAL flushed here",
            server.map(|s| s.flush_lsn.0),
        ),
        number(
            "podgres_replay_lsn_bytes",
            "WAL replayed here",
            server.map(|s| s.replay_lsn.0),
        ),
        number(
            "podgres_lag_bytes",
            "Standby: bytes from its replay to the primary's newest known position",
            lag(LagMode::Apply),
        ),
        number(
            "podgres_receive_lag_bytes",
            "Standby: bytes from what it flushed to the primary's newest known position",
            lag(LagMode::Write),
        ),
        seconds(
            "podgres_primary_position_age_seconds",
            "Age of the primary's newest known position",
            age,
        ),
    ]
}

fn cluster(view: &ClusterView) -> Vec<Family> {
    let other_writable = u64::try_from(view.writable_members().saturating_sub(1)).ok();
    let peers = |value: fn(&crate::core::cluster::PeerEntry) -> Option<Value>| -> Vec<(Labels, Value)> {
        let label = |name: &str| vec![("member", name.to_owned())];
        view.peers
            .iter()
            .filter_map(|peer| Some((label(&peer.name), value(peer)?)))
            .collect()
    };
    vec![
        number("podgres_term", "Term of the right to be primary", Some(view.term)),
        flag(
            "podgres_read_only",
            "Whether the read-only switch is on",
            Some(view.read_only),
        ),
        flag(
            "podgres_paused",
            "Whether podgres takes no automatic action",
            Some(view.paused),
        ),
        number(
            "podgres_other_writable_members",
            "Members seen accepting writes beyond the one there may be; more than 0 is a split brain",
            other_writable,
        ),
        gauges(
            "podgres_peer_connected",
            "Whether the stream from this peer is open",
            peers(|peer| Some(whole(peer.connected()))),
        ),
        gauges(
            "podgres_peer_heard_age_seconds",
            "Time since the last line of this peer",
            peers(|peer| peer.heard_ms_ago.map(real)),
        ),
    ]
}

fn jobs(view: &ClusterView, counters: &Counters) -> Vec<Family> {
    let clones = counters.clones.iter().map(|(reason, count)| {
        (
            vec![("reason", clone_reason(*reason).to_owned())],
            Value::Whole(*count),
        )
    });
    let job = |value: u64, kind| vec![(vec![("job", job_kind(kind).to_owned())], Value::Whole(value))];
    let done = view.me.job.map(|job_| job(job_.progress.done_bytes, job_.kind));
    let size = view.me.job.map(|job_| job(job_.progress.total_bytes, job_.kind));
    vec![
        family(
            "podgres_clones",
            "Clones begun, by reason",
            MetricType::Counter,
            clones.collect(),
        ),
        gauges(
            "podgres_job_done_bytes",
            "Bytes that the running job has copied",
            done.unwrap_or_default(),
        ),
        gauges(
            "podgres_job_size_bytes",
            "Bytes that the running job has to copy",
            size.unwrap_or_default(),
        ),
    ]
}

fn clone_reason(reason: CloneReason) -> &'static str {
    match reason {
        CloneReason::Empty => "empty",
        CloneReason::WalGone => "wal_gone",
        CloneReason::Diverged => "diverged",
        CloneReason::Requested => "requested",
        CloneReason::NotRewound => "not_rewound",
    }
}

fn job_kind(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Initdb => "initdb",
        JobKind::Clone => "clone",
        JobKind::Rewind => "rewind",
    }
}
