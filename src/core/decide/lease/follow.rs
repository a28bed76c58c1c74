//! Everybody but the holder: follows the primary in office, and never takes WAL of which its own is not a prefix.

use std::ops::ControlFlow::{self, Break, Continue};

use crate::core::data_directory::{ControlState, DataDirectoryFacts};
use crate::core::decision::{Decision, PostgresAction};
use crate::core::lease::LeaseRecord;
use crate::core::member::Ordinal;
use crate::core::observation::{MemberRequest, UpstreamFacts};
use crate::core::situation::Situation;
use crate::core::status::ServerStatus;
use crate::core::supervision::{CloneReason, ServerRole, Upstream};
use crate::core::wal::Relation;

use super::super::{shared, slots};
use super::repair::{clone, condemn, replace, rewind};
use super::standing::Standing;
use super::upstream::{
    about_to_be_promoted, holder_as_upstream, joining_name, name_that_confirms_nothing, position,
    primary_seen_since, probe_text, relation,
};
use super::{Turn, failover, unread};

/// PostgreSQL runs as a standby.
pub(super) fn running(turn: Turn<'_>, standing: &Standing, role: &ServerRole, ready: bool) -> Decision {
    if !ready {
        return starting(turn, standing, role);
    }
    let Some(server) = &turn.observation.server else {
        return shared::unseen(turn);
    };
    let Some(record) = standing.record else {
        return turn.row(unread(standing), String::new());
    };
    if record
        .system_identifier
        .is_some_and(|recorded| recorded != server.system_identifier)
    {
        return turn.stop(Situation::ForeignDataDirectory, String::new());
    }
    let turn = match failover::consider(turn, standing) {
        Break(decision) => return decision,
        Continue(turn) => turn,
    };
    match turn.observation.request {
        Some(MemberRequest::Reinit) => {
            let detail = "a fresh clone".to_owned();
            return condemn(turn, Situation::Requested, detail, CloneReason::Requested);
        }
        Some(MemberRequest::Restart) => {
            return turn.stop(Situation::Requested, "a restart".to_owned());
        }
        None => {}
    }
    let Some(holder) = standing.holder_elsewhere else {
        return turn.row(Situation::AwaitingPrimary, standing.holder_name());
    };
    match role.upstream() {
        Some(known) => attached(turn, standing, server, holder, known),
        None => detached(turn, standing, server, holder),
    }
}

/// It does not answer yet: after a rewind it cannot before it has the WAL that belongs to its files, so that it is given
/// somebody to follow. What can be said of its position is what its directory said before the start.
fn starting(turn: Turn<'_>, standing: &Standing, role: &ServerRole) -> Decision {
    let situation = Situation::Starting;
    let since_ms = turn.memory.lease.starting_since_ms.unwrap_or(standing.at_ms);
    let (Some(holder), false) = (standing.holder_elsewhere, standing.promised > standing.term()) else {
        return turn.row(situation, String::new()).soon();
    };
    let Some((upstream_facts, own)) = primary_seen_since(&turn, holder, since_ms).zip(turn.facts()) else {
        let detail = probe_text(&turn);
        return turn.row(situation, detail).soon();
    };
    let known = role.upstream();
    let attached = known.is_some_and(|known| known.address == upstream_facts.address);
    if known.is_some() && !attached {
        let term = standing.term();
        return turn.detach(situation, standing.holder_name(), term);
    }
    if own.system_identifier != upstream_facts.system_identifier {
        return turn.row(situation, String::new()).soon();
    }
    // Its upstream may have been another primary's standby in between: then what the files need never comes.
    match relation(own, upstream_facts) {
        Relation::Contained if attached => return turn.row(situation, String::new()).soon(),
        Relation::Contained => {}
        Relation::Ahead => return turn.row(situation, "ahead of the primary".to_owned()).soon(),
        Relation::Forked => {
            let detail = shared::ahead(own.position(), upstream_facts);
            return condemn(turn, Situation::Diverged, detail, CloneReason::Diverged);
        }
    }
    // What it has to replay by itself it replays without an upstream.
    let waited_ms = standing.at_ms.saturating_sub(since_ms);
    if !own.backup_label && waited_ms < turn.policy.stall_timeout_ms {
        return turn.row(situation, String::new()).soon();
    }
    attach_before_ready(turn, standing, holder)
}

/// It needs WAL before it can answer.
fn attach_before_ready(turn: Turn<'_>, standing: &Standing, holder: Ordinal) -> Decision {
    let Some(mut upstream) = holder_as_upstream(&turn, standing, holder) else {
        let detail = probe_text(&turn);
        return turn.row(Situation::Starting, detail).soon();
    };
    // A WAL receiver says that it has all that was replayed, and that may be more than the files say, and another primary's.
    upstream.application_name = Some(name_that_confirms_nothing(&turn));
    let server = ServerRole::Standby {
        upstream: Some(upstream),
    };
    let detail = "it needs more WAL".to_owned();
    turn.act(Situation::Starting, detail, PostgresAction::Reload { server })
}

/// It has an upstream: the right one, or one that it must let go of before it looks at another.
fn attached(
    turn: Turn<'_>,
    standing: &Standing,
    server: &ServerStatus,
    holder: Ordinal,
    known: &Upstream,
) -> Decision {
    // By its name at once; by its address in DNS once that is known.
    let looked_at = turn.observation.upstream.of == Some(holder);
    let same_host = known.host == turn.observation.upstream.host;
    let other = super::outdated(&turn, standing, &known.host);
    let same_name = known.application_name == joining_name(&turn, standing);
    if other || (looked_at && !same_host) || !same_name || standing.promised > standing.term() {
        let term = standing.term().max(standing.promised);
        return turn.detach(Situation::UpstreamMoved, standing.holder_name(), term);
    }
    if server.receiver_streaming {
        return streaming(turn, standing, server, holder);
    }
    let Some(facts) = primary_seen_since(&turn, holder, 0) else {
        let detail = probe_text(&turn);
        return turn.row(Situation::PrimaryUnreachable, detail);
    };
    if facts.address != known.address {
        let detail = format!("\"{}\" is now {}", known.host, facts.address);
        let term = standing.term().max(standing.promised);
        return turn.detach(Situation::UpstreamMoved, detail, term);
    }
    not_streaming(turn, server, facts, holder)
}

fn streaming(turn: Turn<'_>, standing: &Standing, server: &ServerStatus, holder: Ordinal) -> Decision {
    let detail = format!("timeline {}, term {}", server.timeline, standing.term());
    let situation = if standing.paused() {
        Situation::Paused
    } else {
        Situation::Streaming
    };
    match slots::behind(turn.policy, &turn.memory, turn.observation, holder) {
        Some((expected, advance)) => turn.act(
            situation,
            detail,
            PostgresAction::ReconcileSlots { expected, advance },
        ),
        None if !server.superseded_slots.is_empty() => {
            let names = server.superseded_slots.clone();
            turn.act(situation, detail, PostgresAction::DropSlots { names })
        }
        None => turn.row(situation, detail),
    }
}

/// The primary is there and the WAL receiver does not stream: judged once it has stood still.
fn not_streaming(turn: Turn<'_>, server: &ServerStatus, facts: &UpstreamFacts, holder: Ordinal) -> Decision {
    let stood_still = shared::stood_still(&turn);
    if stood_still && let Some(detail) = shared::wal_gone(&turn, server, holder) {
        return condemn(turn, Situation::WalGone, detail, CloneReason::WalGone);
    }
    let position = position(server);
    let forked = facts.history.relation(position, facts.flush_lsn) == Relation::Forked;
    if stood_still && forked {
        let detail = shared::ahead(position, facts);
        return condemn(turn, Situation::Diverged, detail, CloneReason::Diverged);
    }
    let detail = format!("replayed up to {}", server.replay_lsn);
    let decision = turn.row(Situation::NotStreaming, detail);
    if stood_still { decision } else { decision.soon() }
}

/// Nothing reaches it: looks at the primary in office, and follows if it can.
fn detached(turn: Turn<'_>, standing: &Standing, server: &ServerStatus, holder: Ordinal) -> Decision {
    if standing.promised > standing.term() {
        let detail = format!("term {} is promised", standing.promised);
        return turn.row(Situation::AwaitingPrimary, detail).soon();
    }
    let Some((_, since_ms)) = turn.memory.lease.detached else {
        let detail = format!("replayed up to {}", server.replay_lsn);
        return turn.row(Situation::AwaitingPrimary, detail).soon();
    };
    let position = position(server);
    let facts = primary_seen_since(&turn, holder, since_ms)
        .or_else(|| about_to_be_promoted(&turn, standing, holder, since_ms, position));
    let Some(facts) = facts else {
        let detail = probe_text(&turn);
        return turn.row(Situation::PrimaryUnreachable, detail).soon();
    };
    if facts.system_identifier != server.system_identifier {
        return turn.stop(Situation::ForeignDataDirectory, String::new());
    }
    match facts.history.relation(position, facts.flush_lsn) {
        Relation::Contained => attach(turn, standing, holder),
        // The primary has lost what it once sent: kept for a person to look at.
        Relation::Ahead => {
            let detail = shared::ahead(position, facts);
            turn.row(Situation::AheadOfPrimary, detail)
        }
        Relation::Forked => {
            let detail = shared::ahead(position, facts);
            condemn(turn, Situation::Diverged, detail, CloneReason::Diverged)
        }
    }
}

/// Its WAL is a part of the primary's: it follows.
fn attach(turn: Turn<'_>, standing: &Standing, holder: Ordinal) -> Decision {
    let Some(upstream) = holder_as_upstream(&turn, standing, holder) else {
        let detail = probe_text(&turn);
        return turn.row(Situation::PrimaryUnreachable, detail).soon();
    };
    let detail = format!("{} at {}", upstream.host, upstream.address);
    let server = ServerRole::Standby {
        upstream: Some(upstream),
    };
    turn.act(
        Situation::UpstreamMoved,
        detail,
        PostgresAction::Reload { server },
    )
}

/// PostgreSQL does not run and the directory is complete.
pub(super) fn stopped(
    turn: Turn<'_>,
    standing: &Standing,
    record: &LeaseRecord,
    facts: &DataDirectoryFacts,
) -> Decision {
    let turn = match failover::last_holder(turn, standing, record, facts) {
        Break(decision) => return decision,
        Continue(turn) => turn,
    };
    if let Some((situation, message)) = turn.failed_job() {
        return turn.row(situation, message);
    }
    let upstream_facts = standing
        .holder_elsewhere
        .and_then(|holder| primary_seen_since(&turn, holder, turn.memory.busy_at_ms))
        .filter(|upstream| upstream.system_identifier == facts.system_identifier);
    let turn = match condemned(turn, standing, record, facts, upstream_facts) {
        Break(decision) => return decision,
        Continue(turn) => turn,
    };
    match held_against_primary(turn, standing, record, facts, upstream_facts) {
        Break(decision) => decision,
        Continue(turn) => start(turn, standing, facts, upstream_facts),
    }
}

/// A directory that was given up: by the operator, by a rewind that came to nothing, or when its WAL was judged.
fn condemned<'a>(
    mut turn: Turn<'a>,
    standing: &Standing,
    record: &LeaseRecord,
    facts: &DataDirectoryFacts,
    upstream_facts: Option<&UpstreamFacts>,
) -> ControlFlow<Decision, Turn<'a>> {
    // What a former primary alone has is kept aside first, by the rewind.
    if turn.observation.request == Some(MemberRequest::Reinit) && !facts.was_primary() {
        return Break(replace(turn, standing, upstream_facts, CloneReason::Requested));
    }
    if facts.half_rewound {
        return Break(replace(turn, standing, upstream_facts, CloneReason::NotRewound));
    }
    match turn.memory.condemned {
        None => {}
        // The control file may vouch for less than what is there: it was judged while it ran.
        Some(CloneReason::Diverged) => return Break(rewind(turn, standing, upstream_facts)),
        // A judgement from before it was primary: what it has now must be kept first.
        Some(CloneReason::WalGone) if facts.was_primary() => turn.memory.condemned = None,
        // With the primary lost, this copy may be needed: it is not given up yet.
        Some(_) if standing.suspects || record.holder.is_none() => turn.memory.condemned = None,
        Some(reason) => return Break(replace(turn, standing, upstream_facts, reason)),
    }
    Continue(turn)
}

/// What its control file says against the primary's history: it may be started, is rewound, or has to wait for a look at the primary.
fn held_against_primary<'a>(
    turn: Turn<'a>,
    standing: &Standing,
    record: &LeaseRecord,
    facts: &DataDirectoryFacts,
    upstream_facts: Option<&UpstreamFacts>,
) -> ControlFlow<Decision, Turn<'a>> {
    let relation = upstream_facts.map(|upstream| relation(facts, upstream));
    if let Some(upstream) = upstream_facts.filter(|_| relation == Some(Relation::Ahead)) {
        let detail = shared::ahead(facts.position(), upstream);
        return Break(turn.row(Situation::AheadOfPrimary, detail));
    }
    let forked = relation.map(|relation| relation == Relation::Forked);
    // It handed over, and may be the one witness of that: it can stand for primary again.
    let clean = facts.control_state == ControlState::ShutDown;
    let incarnation = turn.supervisor.incarnation.as_ref();
    let witness = clean && record.synchronous.has(turn.policy.ordinal, incarnation);
    match (facts.was_primary(), forked) {
        (true, None) if witness && (standing.suspects || record.holder.is_none()) => Continue(turn),
        (true, None) => {
            let detail = probe_text(&turn);
            Break(turn.row(Situation::AwaitingPrimary, detail).soon())
        }
        (true, Some(false)) if clean => Continue(turn),
        (true, Some(_)) | (false, Some(true)) => Break(rewind(turn, standing, upstream_facts)),
        (false, _) => Continue(turn),
    }
}

/// It is started as a standby: attached only where it could not be looked into otherwise.
fn start(
    turn: Turn<'_>,
    standing: &Standing,
    facts: &DataDirectoryFacts,
    upstream_facts: Option<&UpstreamFacts>,
) -> Decision {
    if let Some(detail) = turn.failed_start() {
        return turn.row(Situation::StartFailing, detail);
    }
    if facts.backup_label && upstream_facts.is_none() {
        let detail = probe_text(&turn);
        return turn.row(Situation::AwaitingPrimary, detail).soon();
    }
    // How far its WAL leads the files do not say, and a WAL receiver tells a walsender that it has all of it, also what another primary wrote:
    // it starts detached, and looks then. Only a copy needs its source's WAL before it can be looked into.
    let bound = standing.promised > standing.term();
    let upstream = standing
        .holder_elsewhere
        .filter(|_| facts.backup_label && upstream_facts.is_some() && !bound)
        .and_then(|holder| holder_as_upstream(&turn, standing, holder));
    let detail = shared::data_text(facts);
    let server = ServerRole::Standby { upstream };
    turn.act(
        Situation::ReadyAsStandby,
        detail,
        PostgresAction::Start { server },
    )
}

/// PGDATA is empty: a clone of the primary in office, and never anything else.
pub(super) fn empty(turn: Turn<'_>, standing: &Standing) -> Decision {
    if let Some((situation, message)) = turn.failed_job() {
        return turn.row(situation, message);
    }
    let facts = standing
        .holder_elsewhere
        .and_then(|holder| primary_seen_since(&turn, holder, turn.memory.busy_at_ms));
    clone(turn, standing, facts, Situation::ReadyToClone, CloneReason::Empty)
}
