//! The cluster as one member sees it: itself, its peers, and what follows from both.
//!
//! Everything that podgres shows is a pure function of one [`ClusterView`]: the answers of the
//! probes, `/cluster`, `/patroni`, the metrics page and the table of `podgres status`. Ages are
//! measured by the observer's own clock before the view is made; nothing here reads one.

pub mod change;
pub mod check;
pub mod explain;
pub mod impossible;
pub mod json;
pub mod moves;
pub mod page;
pub mod patroni;
pub mod table;
pub mod verdict;

#[cfg(test)]
pub(crate) mod fixtures;

use serde::{Deserialize, Serialize};

use super::data_directory::SystemIdentifier;
use super::lease::{LeaseRecord, ReadOnlySwitch};
use super::member::Ordinal;
use super::policy::Leadership;
use super::status::{MemberStatus, Role};
use super::wal::{Lsn, TimelineId};

/// What the last attempt to hear a peer came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerContact {
    /// Not tried yet, or its name has no address.
    #[default]
    Unknown,
    /// Its stream is open and not overdue.
    Connected,
    /// Its address answered that nobody listens: the process is not there.
    Refused,
    /// It ended an open stream; the next attempt tells more.
    Closed,
    /// The network has no way to its address.
    Unreachable,
    /// No answer in time, or an open stream fell silent.
    TimedOut,
    /// Something else answered: no member of this cluster, or no podgres at all.
    Invalid,
}

impl PeerContact {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Connected => "connected",
            Self::Closed => "closed",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Invalid => "invalid",
        }
    }
}

/// One other member, with what it last said of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerEntry {
    pub ordinal: Ordinal,
    pub name: String,
    /// Kept when the contact is lost.
    pub status: Option<MemberStatus>,
    pub contact: PeerContact,
    /// Milliseconds since its last line; `None` if it was never heard.
    pub heard_ms_ago: Option<u64>,
}

impl PeerEntry {
    #[must_use]
    pub fn connected(&self) -> bool {
        self.contact == PeerContact::Connected
    }

    /// What it says of itself now.
    #[must_use]
    pub fn live_status(&self) -> Option<&MemberStatus> {
        self.status.as_ref().filter(|_| self.connected())
    }
}

/// The cluster as this member sees it after one turn of its agent's loop.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterView {
    pub cluster: String,
    /// `None` where it is not known, outside of the cluster.
    pub leadership: Option<Leadership>,
    /// `async`, `preferred` or `majority`.
    pub durability: String,
    pub term: u64,
    /// The name of the member that holds the Lease; `None` with `fixed`.
    pub lease_holder: Option<String>,
    pub read_only: bool,
    /// Who has switched to read-only, when and why.
    pub read_only_switch: Option<ReadOnlySwitch>,
    pub paused: bool,
    /// The newest record that was read, with `leadership=lease`.
    pub lease: Option<LeaseRecord>,
    pub me: MemberStatus,
    pub peers: Vec<PeerEntry>,
}

/// A lower bound for the position of the primary, and how old it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryPosition {
    pub timeline: TimelineId,
    pub lsn: Lsn,
    /// Milliseconds since the one who told it was last heard; 0 if this member's own server told it.
    pub known_ms_ago: u64,
}

/// Which position of a standby a lag is counted from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LagMode {
    /// What it has replayed.
    #[default]
    Apply,
    /// What it has received and flushed.
    Write,
}

impl ClusterView {
    /// The cluster's identifier: this member's own, else the first that a peer tells.
    #[must_use]
    pub fn system_identifier(&self) -> Option<SystemIdentifier> {
        let told = || {
            self.peers
                .iter()
                .find_map(|peer| peer.status.as_ref()?.system_identifier)
        };
        self.me.system_identifier.or_else(told)
    }

    /// Members whose word counts now: this one, and each connected one that is of the same cluster.
    pub fn live_members(&self) -> impl Iterator<Item = &MemberStatus> {
        let peers = self.peers.iter().filter_map(PeerEntry::live_status);
        std::iter::once(&self.me).chain(peers.filter(|status| self.same_cluster(status)))
    }

    /// Neither its name nor its data say that it belongs to another cluster.
    fn same_cluster(&self, status: &MemberStatus) -> bool {
        let known = self.system_identifier();
        status.cluster == self.cluster
            && (status.system_identifier.is_none() || status.system_identifier == known)
    }

    /// Members whose word counts and whose routes do not follow the read-only switch to this position yet.
    #[must_use]
    pub fn not_switched(&self, read_only: bool) -> Vec<&str> {
        let behind = self.live_members().filter(|member| member.read_only != read_only);
        behind.map(|member| member.name.as_str()).collect()
    }

    /// Members that accept writes now. More than one is a split brain.
    #[must_use]
    pub fn writable_members(&self) -> usize {
        let peers = self.peers.iter().filter_map(PeerEntry::live_status);
        std::iter::once(&self.me)
            .chain(peers)
            .filter(|status| status.writable)
            .count()
    }

    /// The primary's newest known position.
    ///
    /// Told by a primary of itself or by a streaming standby of its upstream; the newest timeline wins, then
    /// the furthest position, then the freshest word. A lost peer's last word counts: the
    /// primary cannot have gone back. `None` while nobody has told one.
    #[must_use]
    pub fn primary_position(&self) -> Option<PrimaryPosition> {
        let mine = std::iter::once((&self.me, Some(0)));
        let peers = self.peers.iter().filter_map(|peer| {
            let status = peer.status.as_ref().filter(|status| self.same_cluster(status))?;
            Some((status, peer.heard_ms_ago))
        });
        mine.chain(peers)
            .filter_map(|(status, age)| told_position(status, age.unwrap_or(u64::MAX)))
            .max_by_key(|told| (told.timeline, told.lsn, std::cmp::Reverse(told.known_ms_ago)))
    }

    /// Bytes that `member` is behind the primary's newest known position; `None` if either is unknown.
    #[must_use]
    pub fn lag_bytes(&self, member: &MemberStatus, mode: LagMode) -> Option<u64> {
        let server = member.server.as_ref()?;
        let primary = self.primary_position()?;
        if !server.in_recovery {
            return (server.timeline == primary.timeline).then_some(0);
        }
        let reached = match mode {
            LagMode::Apply => server.replay_lsn,
            LagMode::Write => server.end_of_wal(),
        };
        Some(primary.lsn.bytes_since(reached))
    }

    /// What the primary's `pg_stat_replication.sync_state` says of the member `name` now: `sync`, `quorum`,
    /// `potential`, `async`; `None` if no primary that is connected lists it.
    #[must_use]
    pub fn sync_state(&self, name: &str) -> Option<&str> {
        self.live_members()
            .filter(|status| status.role == Some(Role::Primary) && status.accepting)
            .filter_map(|status| status.server.as_ref())
            .flat_map(|server| &server.replication)
            .find(|row| row.application_name == name && row.state == "streaming")
            .map(|row| row.sync_state.as_str())
    }
}

/// Whether the cluster is switched to read-only, for somebody who is no member: the word of whoever knows of the latest turn counts,
/// among equals the primary's, and while there is none anybody's.
#[must_use]
pub fn told_read_only(members: &[&MemberStatus]) -> bool {
    let newest = members.iter().map(|member| member.switch.turn()).max();
    let latest = || {
        members
            .iter()
            .filter(|member| Some(member.switch.turn()) == newest)
    };
    let primary = latest().find(|member| member.role == Some(Role::Primary));
    primary.map_or_else(
        || latest().any(|member| member.read_only),
        |primary| primary.read_only,
    )
}

fn told_position(status: &MemberStatus, known_ms_ago: u64) -> Option<PrimaryPosition> {
    let server = status.server.as_ref()?;
    let lsn = if !server.in_recovery {
        server.flush_lsn
    } else if server.receiver_streaming {
        server.upstream_lsn.unwrap_or_default().max(server.flush_lsn)
    } else {
        return None;
    };
    Some(PrimaryPosition {
        timeline: server.timeline,
        lsn,
        known_ms_ago,
    })
}

#[cfg(test)]
mod tests {
    use super::fixtures::{peer, primary, standby, view};
    use super::*;

    #[test]
    fn the_newest_known_position_prefers_timeline_then_distance_then_freshness() {
        let mut seen = view(standby(1), vec![peer(primary(0)), peer(standby(2))]);
        // Everyone at 0/3000100: the own word is the freshest.
        let position = seen.primary_position().expect("known");
        assert_eq!((position.lsn, position.known_ms_ago), (Lsn(0x300_0100), 0));

        // A lost primary's last word still counts, with its age.
        let old = seen.peers[0]
            .status
            .as_mut()
            .and_then(|s| s.server.as_mut())
            .expect("server");
        old.flush_lsn = Lsn(0x300_0200);
        (seen.peers[0].contact, seen.peers[0].heard_ms_ago) = (PeerContact::Refused, Some(7000));
        let position = seen.primary_position().expect("known");
        assert_eq!((position.lsn, position.known_ms_ago), (Lsn(0x300_0200), 7000));
        assert_eq!(seen.lag_bytes(&seen.me, LagMode::Apply), Some(0x100));

        // A successor on a newer timeline, though behind the lost one's unshipped tail.
        let mut successor = primary(2);
        let server = successor.server.as_mut().expect("server");
        (server.timeline, server.flush_lsn) = (TimelineId(2), Lsn(0x300_0180));
        seen.peers[1] = peer(successor);
        let position = seen.primary_position().expect("known");
        assert_eq!(
            (position.timeline, position.lsn),
            (TimelineId(2), Lsn(0x300_0180))
        );
        let lost = seen.peers[0].status.clone().expect("status");
        assert_eq!(
            seen.lag_bytes(&lost, LagMode::Apply),
            None,
            "a primary of the past has no lag"
        );
    }

    /// Its routes went on serving the primary, and the operator was told that every endpoint served standbys.
    #[test]
    fn a_member_that_had_not_heard_of_the_switch_was_taken_for_switched() {
        let told = |mut status: MemberStatus, read_only| {
            status.read_only = read_only;
            status
        };
        let away = PeerEntry {
            contact: PeerContact::TimedOut,
            ..peer(told(standby(3), false))
        };
        let others = vec![peer(told(primary(0), true)), peer(told(standby(2), false)), away];
        let seen = view(told(standby(1), true), others);
        assert_eq!(seen.not_switched(true), ["pg-2"]);
        assert_eq!(seen.not_switched(false), ["pg-1", "pg-0"]);
    }

    /// A primary that was cut off from the API kept the routes beside applications on itself.
    #[test]
    fn the_primarys_word_counted_though_others_knew_of_a_later_turn() {
        let told = |mut status: MemberStatus, version, read_only| {
            (status.switch.version, status.read_only) = (version, read_only);
            status
        };
        let seen = |members: &[MemberStatus]| told_read_only(&members.iter().collect::<Vec<_>>());
        let primary = |version, read_only| told(primary(0), version, read_only);
        let standby = |version, read_only| told(standby(1), version, read_only);
        for (what, members, expected) in [
            ("nobody", vec![], false),
            ("a later turn", vec![primary(3, false), standby(4, true)], true),
            ("and back", vec![primary(4, true), standby(5, false)], false),
            (
                "the primary is ahead",
                vec![primary(5, false), standby(4, true)],
                false,
            ),
            ("an equal turn", vec![primary(4, false), standby(4, true)], false),
            ("no primary", vec![standby(4, false), standby(4, true)], true),
        ] {
            assert_eq!(seen(&members), expected, "{what}");
        }
    }

    #[test]
    fn a_foreign_or_cut_off_server_tells_no_position() {
        let mut foreign = primary(0);
        foreign.system_identifier = Some(SystemIdentifier(2));
        let mut me = standby(1);
        me.server.as_mut().expect("server").receiver_streaming = false;
        let seen = view(me, vec![peer(foreign)]);
        assert_eq!(seen.primary_position(), None);
        assert_eq!(seen.lag_bytes(&seen.me, LagMode::Apply), None);
        assert_eq!(seen.live_members().count(), 1);
    }
}
