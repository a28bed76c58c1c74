//! Why a member is what it is, who would be primary next, what that would lose, and what stands in its way.
//!
//! A reading of one member's view, for people: `decide` alone acts, on the same facts and by the same rules.

use serde::{Deserialize, Serialize};

use crate::core::lease::{Durability, FinalPosition, LeaseRecord, Rank};
use crate::core::member::Ordinal;
use crate::core::policy::Leadership;
use crate::core::status::MemberStatus;
use crate::core::synchronous_names::bypass_race;

use super::moves::{self, age_text};
use super::{ClusterView, LagMode};

/// The answer to `podgres explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The member whose view this is.
    pub member: String,
    pub role: String,
    pub situation: String,
    /// The situation in words, with its particulars.
    pub because: String,
    pub primary: Option<String>,
    pub term: u64,
    /// While the read-only switch is on: what it does, and why.
    #[serde(default)]
    pub read_only: Option<String>,
    /// Who would take over if the primary were lost now.
    pub successor: Option<String>,
    pub would_lose: String,
    /// What stands in the way of an automatic failover.
    pub blocks: Vec<String>,
    pub candidates: Vec<Candidate>,
}

/// Another member than the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub name: String,
    /// Why a planned move to it is not possible; `None`: it is.
    pub switchover: Option<String>,
    /// The same of a forced one.
    pub failover: Option<String>,
    /// It may take over by itself: every acknowledged commit can be proven to be among those who may.
    pub synchronous: bool,
    pub lag_bytes: Option<u64>,
    /// What a forced move to it would lose.
    pub loss: String,
}

/// Reads a view.
#[must_use]
pub fn explain(view: &ClusterView) -> Explanation {
    let primary = moves::primary(view).map(|member| member.name.clone());
    let holder = primary.clone().or_else(|| view.lease_holder.clone());
    let mut blocks = Vec::new();
    let successor = match &view.lease {
        _ if view.leadership != Some(Leadership::Lease) => {
            blocks.push("leadership is fixed: the first ordinal is the primary for ever".to_owned());
            None
        }
        None => {
            blocks.push("nothing has been read of the Lease".to_owned());
            None
        }
        Some(record) => successor(view, record, holder.as_deref(), &mut blocks),
    };
    let mut names: Vec<(Ordinal, &str)> = view.peers.iter().map(|p| (p.ordinal, p.name.as_str())).collect();
    names.push((view.me.ordinal, &view.me.name));
    names.sort_unstable();
    let others = names.iter().filter(|(_, name)| holder.as_deref() != Some(*name));
    Explanation {
        member: view.me.name.clone(),
        role: view
            .me
            .role
            .map_or("none", crate::core::status::Role::as_str)
            .to_owned(),
        situation: view.me.situation.clone(),
        because: view.me.message.clone(),
        term: view.term,
        read_only: read_only(view),
        would_lose: would_lose(view, successor.as_deref()),
        successor,
        blocks,
        candidates: others.map(|(_, name)| candidate(view, name)).collect(),
        primary,
    }
}

/// Who has switched, and whom it keeps from writing.
fn read_only(view: &ClusterView) -> Option<String> {
    let switch = view.read_only_switch.as_ref()?;
    let why = if switch.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", switch.reason)
    };
    let direct = if view.live_members().any(|member| member.read_only_default) {
        "direct sessions begin read-only too"
    } else {
        "direct sessions may write"
    };
    Some(format!(
        "by {}{why}; routed clients are off the primary, {direct}",
        switch.by
    ))
}

fn candidate(view: &ClusterView, name: &str) -> Candidate {
    let status = view.live_members().find(|member| member.name == name);
    let record = view.lease.as_ref();
    Candidate {
        name: name.to_owned(),
        switchover: moves::switchover(view, None, Some(name))
            .err()
            .map(|why| why.to_string()),
        failover: moves::failover(view, name).err().map(|why| why.to_string()),
        synchronous: record.is_some_and(|record| status.is_some_and(|status| recorded(record, status))),
        lag_bytes: status.and_then(|status| view.lag_bytes(status, LagMode::Write)),
        loss: moves::loss(view, name),
    }
}

/// The member is in the recorded set with the data that it has now.
fn recorded(record: &LeaseRecord, status: &MemberStatus) -> bool {
    let report = status.leadership.as_ref();
    let incarnation = report.and_then(|report| report.incarnation.as_ref());
    record.synchronous.has(status.ordinal, incarnation)
}

/// The best of those who may stand, if enough are there to prove that nothing is missing.
fn successor(
    view: &ClusterView,
    record: &LeaseRecord,
    holder: Option<&str>,
    blocks: &mut Vec<String>,
) -> Option<String> {
    if record.paused {
        blocks.push("the cluster is paused".to_owned());
    }
    let others = view
        .live_members()
        .filter(|member| holder != Some(member.name.as_str()));
    let there: Vec<&MemberStatus> = others.filter(|status| recorded(record, status)).collect();
    let proof = match record.synchronous.proof() {
        Some(proof) => proof as usize,
        None if record.durability == Durability::Async => {
            let duration = age_text(record.lease_duration_ms);
            blocks.push(format!(
                "the Lease must run out first, which takes {duration} (durability async)"
            ));
            1
        }
        None => {
            blocks.push("no standby is known to have every commit".to_owned());
            return None;
        }
    };
    if there.len() < proof {
        blocks.push(format!(
            "{proof} of the {} recorded members must be there to prove that no commit is lost, {} are",
            record.synchronous.members.len(),
            there.len()
        ));
        return None;
    }
    let best = there
        .iter()
        .filter_map(|status| Some((rank(status)?, &status.name)))
        .max();
    if best.is_none() {
        blocks.push("nobody who is there may be primary and can reach the Kubernetes API".to_owned());
    }
    best.map(|(_, name)| name.clone()).filter(|_| !record.paused)
}

/// By what `decide` ranks those who stand; `None`: it may not be primary, or cannot claim.
fn rank(status: &MemberStatus) -> Option<Rank> {
    let report = status.leadership.as_ref()?;
    let priority = report.priority.filter(|_| report.sees_api)?;
    let server = status.server.as_ref()?;
    let position = FinalPosition {
        timeline: server.timeline,
        flush_lsn: server.end_of_wal(),
    };
    Some(Rank::new(position, Some(priority), status.ordinal))
}

fn would_lose(view: &ClusterView, successor: Option<&str>) -> String {
    let proven = view
        .lease
        .as_ref()
        .is_some_and(|record| record.synchronous.proof().is_some());
    match successor {
        None => "no failover happens by itself now".to_owned(),
        Some(_) if proven => proven_loss(view),
        Some(name) => moves::loss(view, name),
    }
}

/// What is lost though a quorum has everything: commits that a server of an older minor release let pass.
fn proven_loss(view: &ClusterView) -> String {
    let mut versions = view.live_members().filter_map(|member| member.server.as_ref());
    match versions.find_map(|server| bypass_race(server.server_version)) {
        None => "no acknowledged commit".to_owned(),
        Some(warning) => format!("no acknowledged commit, with one exception: {warning}"),
    }
}

/// For a terminal.
#[must_use]
pub fn explanation_text(explanation: &Explanation) -> String {
    let clean = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect()
    };
    let mut lines = vec![
        format!(
            "{} is {}: {}",
            explanation.member, explanation.role, explanation.because
        ),
        match &explanation.primary {
            Some(primary) => format!("primary: {primary}, in term {}", explanation.term),
            None => format!("primary: none, term {}", explanation.term),
        },
        match &explanation.successor {
            Some(successor) => format!("if it were lost now: {successor} would take over"),
            None => "if it were lost now: nobody would take over".to_owned(),
        },
        format!("what would be lost: {}", explanation.would_lose),
    ];
    let read_only = explanation.read_only.iter();
    lines.extend(read_only.map(|switched| format!("switched to read-only {switched}")));
    lines.extend(
        explanation
            .blocks
            .iter()
            .map(|block| format!("in the way: {block}")),
    );
    for candidate in &explanation.candidates {
        let member = if candidate.synchronous {
            "synchronous"
        } else {
            "not synchronous"
        };
        let can = match (&candidate.switchover, &candidate.failover) {
            (None, _) => "switchover possible".to_owned(),
            (Some(planned), None) => {
                format!("no switchover: {planned}; failover possible: {}", candidate.loss)
            }
            (Some(_), Some(forced)) => format!("neither switchover nor failover: {forced}"),
        };
        lines.push(format!("{}: {member}, {can}", candidate.name));
    }
    lines.iter().map(|line| clean(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{led, peer, primary, standby, view};
    use super::*;
    use crate::core::cluster::{PeerContact, PeerEntry};
    use crate::core::lease::{Incarnation, LeadershipReport, ReadOnlySwitch};
    use crate::core::wal::Lsn;

    fn member(ordinal: u32, priority: Option<u32>) -> MemberStatus {
        let mut status = standby(ordinal);
        status.leadership = Some(LeadershipReport {
            priority,
            incarnation: Some(Incarnation::default()),
            sees_api: true,
            ..LeadershipReport::default()
        });
        status
    }

    fn lost(status: MemberStatus) -> PeerEntry {
        PeerEntry {
            contact: PeerContact::TimedOut,
            ..peer(status)
        }
    }

    fn seen(peers: Vec<PeerEntry>) -> ClusterView {
        led(view(primary(0), peers), "pg-0", &[0, 1, 2])
    }

    #[test]
    fn who_would_win_is_the_furthest_then_the_preferred_then_the_lower() {
        let mut ahead = member(2, Some(200));
        ahead.server.as_mut().expect("server").flush_lsn = Lsn(0x300_0200);
        for (peers, expected) in [
            (
                vec![peer(member(1, Some(100))), peer(member(2, Some(100)))],
                Some("pg-1"),
            ),
            (
                vec![peer(member(1, Some(100))), peer(member(2, Some(50)))],
                Some("pg-2"),
            ),
            (vec![peer(member(1, Some(100))), peer(ahead)], Some("pg-2")),
            (
                vec![peer(member(1, None)), peer(member(2, Some(100)))],
                Some("pg-2"),
            ),
            (vec![peer(member(1, Some(100))), lost(member(2, Some(100)))], None),
            (vec![peer(member(1, Some(100))), peer(standby(2))], None),
        ] {
            let explanation = explain(&seen(peers));
            assert_eq!(explanation.successor.as_deref(), expected, "{explanation:#?}");
            assert_eq!(
                expected.is_none(),
                !explanation.blocks.is_empty(),
                "{explanation:#?}"
            );
        }
    }

    #[test]
    fn the_text_says_what_stands_in_the_way() {
        let healthy = explain(&seen(vec![
            peer(member(1, Some(100))),
            peer(member(2, Some(100))),
        ]));
        assert_eq!(
            explanation_text(&healthy),
            "pg-0 is primary: member 0 is well\n\
             primary: pg-0, in term 3\n\
             if it were lost now: pg-1 would take over\n\
             what would be lost: no acknowledged commit\n\
             pg-1: synchronous, switchover possible\n\
             pg-2: synchronous, switchover possible\n"
        );
        let broken = explain(&seen(vec![peer(member(1, Some(100))), lost(member(2, None))]));
        let text = explanation_text(&broken);
        for said in [
            "nobody would take over",
            "in the way: 2 of the 2 recorded members must be there to prove that no commit is lost, 1 are",
            "pg-2: not synchronous, neither switchover nor failover: \"pg-2\" is not heard",
        ] {
            assert!(text.contains(said), "{text}");
        }
        let mut paused = seen(vec![peer(member(1, Some(100))), peer(member(2, Some(100)))]);
        paused.lease.as_mut().expect("record").paused = true;
        assert_eq!(explain(&paused).blocks, ["the cluster is paused"]);
        let mut old = member(1, Some(100));
        old.server.as_mut().expect("a server").server_version = 150_012;
        let old = explain(&seen(vec![peer(old), peer(member(2, Some(100)))]));
        assert!(old.would_lose.contains("upgrade to 13.21"), "{}", old.would_lose);
        let fixed = explain(&view(primary(0), vec![peer(member(1, Some(1)))]));
        assert!(fixed.blocks[0].contains("fixed") && fixed.successor.is_none());
    }

    #[test]
    fn the_read_only_switch_says_whom_it_keeps_from_writing() {
        let mut seen = seen(vec![peer(member(1, Some(100)))]);
        assert_eq!(explain(&seen).read_only, None);
        seen.read_only_switch = Some(ReadOnlySwitch {
            by: "alice@shell".to_owned(),
            at: String::new(),
            reason: "a migration".to_owned(),
        });
        let said = |seen: &ClusterView| explanation_text(&explain(seen));
        let before =
            "switched to read-only by alice@shell: a migration; routed clients are off the primary, ";
        assert!(said(&seen).contains(&format!("{before}direct sessions may write\n")));
        seen.me.read_only_default = true;
        assert!(said(&seen).contains(&format!("{before}direct sessions begin read-only too\n")));
    }

    #[test]
    fn under_async_the_lease_must_run_out_and_commits_may_be_lost() {
        let mut seen = seen(vec![peer(member(1, Some(100))), peer(member(2, Some(100)))]);
        let record = seen.lease.as_mut().expect("record");
        (
            record.durability,
            record.synchronous.quorum,
            record.lease_duration_ms,
        ) = (Durability::Async, 0, 15_000);
        let explanation = explain(&seen);
        assert_eq!(explanation.successor.as_deref(), Some("pg-1"));
        assert!(explanation.blocks[0].contains("run out first, which takes 15 s"));
        assert!(
            explanation.would_lose.contains("last known position"),
            "{}",
            explanation.would_lose
        );
    }
}
