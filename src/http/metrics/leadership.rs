//! What the page shows of leadership: the Lease, the right, the gate, the synchronous set; and Patroni's names for it.

use prometheus_client::metrics::MetricType;

use crate::core::cluster::ClusterView;
use crate::core::cluster::moves;
use crate::core::status::Role;

use super::Counters;
use super::family::{Family, Labels, Value, family, flag, gauges, number, seconds, whole};

/// Nothing of the Lease where there is none.
pub(super) fn families(view: &ClusterView, counters: &Counters) -> Vec<Family> {
    let mut all = lease(view, counters);
    all.extend(diverged(counters));
    all.extend(patroni(view));
    all
}

fn lease(view: &ClusterView, counters: &Counters) -> Vec<Family> {
    let lease = counters.lease.as_ref();
    let set = view.lease.as_ref().map(|record| &record.synchronous);
    let members = set.and_then(|set| u64::try_from(set.members.len()).ok());
    let errors = lease.map(|lease| (Labels::new(), Value::Whole(lease.errors_total)));
    vec![
        flag(
            "podgres_in_office",
            "Whether this member is the primary by right",
            lease.map(|lease| lease.right_ms.is_some()),
        ),
        seconds(
            "podgres_right_seconds",
            "How long the right lasts without another renewal or confirmation",
            lease.and_then(|lease| lease.right_ms),
        ),
        seconds(
            "podgres_lease_age_seconds",
            "Time since the Lease was last seen to change",
            lease.and_then(|lease| lease.age_ms),
        ),
        seconds(
            "podgres_lease_answer_age_seconds",
            "Time since the API server last answered",
            lease.and_then(|lease| lease.answered_ms_ago),
        ),
        family(
            "podgres_lease_errors",
            "Times that requests to the API server began to fail",
            MetricType::Counter,
            errors.into_iter().collect(),
        ),
        flag(
            "podgres_gate_attached",
            "Whether the commit gate streams from this member's PostgreSQL",
            lease.and_then(|lease| lease.gate_attached),
        ),
        number(
            "podgres_synchronous_quorum",
            "How many standbys hold every acknowledged commit",
            set.map(|set| set.quorum.into()),
        ),
        number(
            "podgres_synchronous_members",
            "Members of the recorded synchronous set",
            members,
        ),
        number(
            "podgres_promised_term",
            "This member takes no WAL from a primary of an earlier term",
            view.me.leadership.as_ref().map(|report| report.promised_term),
        ),
    ]
}

fn diverged(counters: &Counters) -> Vec<Family> {
    vec![
        number(
            "podgres_diverged_commits_kept",
            "Commits that only this member had when it was last rewound or replaced, kept beside PGDATA",
            counters.diverged.map(|(commits, _)| commits),
        ),
        number(
            "podgres_diverged_bytes_kept",
            "WAL that only this member had when it was last rewound or replaced, kept beside PGDATA",
            counters.diverged.map(|(_, bytes)| bytes),
        ),
    ]
}

/// Under Patroni's own names, so that its dashboards and alarms go on working.
fn patroni(view: &ClusterView) -> Vec<Family> {
    let me = &view.me;
    let sync = view.sync_state(&me.name);
    let server = me.server.as_ref();
    let labels = || vec![("scope", view.cluster.clone()), ("name", me.name.clone())];
    let value = |name, help, value: Option<Value>| {
        gauges(
            name,
            help,
            value.map(|value| (labels(), value)).into_iter().collect(),
        )
    };
    let flag = |name, help, is: bool| value(name, help, Some(whole(is)));
    vec![
        flag(
            "patroni_postgres_running",
            "Value is 1 if Postgres is running",
            me.accepting,
        ),
        flag(
            "patroni_primary",
            "Value is 1 if this node is the leader",
            me.role == Some(Role::Primary) && me.writable,
        ),
        flag(
            "patroni_replica",
            "Value is 1 if this node is a replica",
            me.role == Some(Role::Standby) && me.accepting,
        ),
        flag(
            "patroni_sync_standby",
            "Value is 1 if this node is a sync standby",
            sync == Some("sync"),
        ),
        flag(
            "patroni_quorum_standby",
            "Value is 1 if this node is a quorum standby",
            sync == Some("quorum"),
        ),
        flag(
            "patroni_postgres_streaming",
            "Value is 1 if Postgres is streaming",
            me.streaming(),
        ),
        flag(
            "patroni_cluster_unlocked",
            "Value is 1 if the cluster is unlocked",
            moves::primary(view).is_none(),
        ),
        flag(
            "patroni_is_paused",
            "Value is 1 if auto failover is disabled",
            view.paused,
        ),
        value(
            "patroni_postgres_timeline",
            "Postgres timeline of this node",
            server.map(|server| Value::Whole(server.timeline.0.into())),
        ),
    ]
}
