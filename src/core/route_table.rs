//! From the members' own words to the table that the routing endpoints choose from.

use std::net::SocketAddr;

use super::cluster::verdict::{primary_is_down, primary_is_gone, primary_is_silent};
use super::cluster::{ClusterView, LagMode, PeerContact, PeerEntry};
use super::fnv::fnv_1a;
use super::routing::{RouteTable, Server};
use super::status::{MemberState, MemberStatus, Role};

/// Every server that runs as far as this member knows, and everybody's address.
///
/// A peer whose podgres does not listen any more (refused, closed) may well have a running PostgreSQL: what
/// it said last stands. For a primary a connection attempt tells; a standby keeps the sessions that it has, and gets no new ones
/// while nobody says how far it is. A silent one is taken out: its kernel might accept a connection that nobody ever answers.
#[must_use]
pub fn route_table(view: &ClusterView) -> RouteTable {
    table(view, Some(&view.me))
}

/// As somebody sees it who is no member: the view's own entry does not count.
#[must_use]
pub fn route_table_of_peers(view: &ClusterView) -> RouteTable {
    table(view, None)
}

fn table(view: &ClusterView, me: Option<&MemberStatus>) -> RouteTable {
    // Whoever may not use the primary anyhow misses nothing by taking silence for its end.
    let unheard = if view.read_only {
        primary_is_silent(view)
    } else {
        primary_is_gone(view)
    };
    let peers = view.peers.iter().filter_map(believed);
    let members: Vec<&MemberStatus> = me.into_iter().chain(peers).collect();
    let in_office = members.iter().filter_map(|member| term_in_office(member)).max();
    let newest = in_office.max(claimed_term(view, &members));
    // Who was primary in an earlier term and has not been heard since is none any more.
    let outlived = |member: &&&MemberStatus| term_in_office(member).is_some_and(|term| Some(term) < newest);
    let current = members.iter().filter(|member| !outlived(member));
    let unclear = current.clone().filter_map(|member| unclear(member));
    let unclear = unclear.collect();
    let servers = current.filter_map(|member| server(view, member, unheard));
    let live = view.peers.iter().filter_map(PeerEntry::live_status);
    // Its routes may still be with the primary of an earlier term.
    let behind = |member: &MemberStatus| {
        let settled = member.routes_term.is_none_or(|term| Some(term) >= newest);
        (!settled).then(|| member.name.clone())
    };
    let everybody = view.peers.iter().filter_map(|peer| peer.status.as_ref());
    RouteTable {
        servers: servers.collect(),
        members: me
            .into_iter()
            .chain(everybody)
            .map(|member| (member.name.clone(), address(member)))
            .collect(),
        unclear,
        term: newest,
        waits_for: me.into_iter().chain(live).filter_map(behind).collect(),
        read_only: view.read_only,
        unheard,
        orphaned: primary_is_down(view),
    }
}

/// A member whose podgres has just begun says nothing of its server at first. A standby that was known `before` keeps its sessions
/// until it does, and gets no new ones; if its server has ended, so have they.
#[must_use]
pub fn with_unseen(mut table: RouteTable, before: &RouteTable, view: &ClusterView) -> RouteTable {
    let live = view.peers.iter().filter_map(PeerEntry::live_status);
    for member in live.filter(|member| member.server.is_none()) {
        let same = |server: &&Server| server.name == member.name && server.address == address(member);
        let known = before.servers.iter().find(same);
        let known = known.filter(|server| server.role == Role::Standby);
        table.servers.extend(known.map(|server| Server {
            answering: false,
            ..server.clone()
        }));
    }
    table
}

/// The term of a holder that is not in office yet, or is not heard here. With its claim the right of every earlier primary was over.
fn claimed_term(view: &ClusterView, members: &[&MemberStatus]) -> Option<u64> {
    let record = view.lease.as_ref()?;
    let holder = record.holder.as_ref()?;
    let serves = |member: &&MemberStatus| {
        let same = (&member.name, &member.uid) == (&holder.pod, &holder.uid);
        same && term_in_office(member).is_some()
    };
    (!members.iter().any(serves)).then_some(record.term)
}

fn term_in_office(member: &MemberStatus) -> Option<u64> {
    Some(member.leadership.as_ref()?.office?.term)
}

fn believed(peer: &PeerEntry) -> Option<&MemberStatus> {
    let status = peer.status.as_ref()?;
    match peer.contact {
        PeerContact::Connected => Some(status),
        PeerContact::Refused | PeerContact::Closed => {
            Some(status).filter(|status| status.writable || clear_role(status) == Some(Role::Standby))
        }
        PeerContact::Unknown | PeerContact::Unreachable | PeerContact::TimedOut | PeerContact::Invalid => {
            None
        }
    }
}

fn server(view: &ClusterView, member: &MemberStatus, unheard: bool) -> Option<Server> {
    let role = clear_role(member)?;
    if role == Role::Standby && member.no_reads {
        return None;
    }
    // With the primary lost its standbys go on serving reads; how old ones, the policies say.
    let streaming =
        role == Role::Primary || member.state == MemberState::Streaming || (unheard && member.was_streaming);
    let lag_bytes = match role {
        Role::Primary => Some(0),
        Role::Standby => view.lag_bytes(member, LagMode::Apply),
    };
    Some(Server {
        name: member.name.clone(),
        address: address(member),
        http_address: SocketAddr::new(member.host, member.http_port),
        role,
        answering: member.accepting && (role == Role::Primary || is_heard(view, member)),
        streaming,
        lag_bytes,
        staleness_ms: None,
        leaving: member.leaving,
        incarnation: incarnation(member),
    })
}

fn is_heard(view: &ClusterView, member: &MemberStatus) -> bool {
    let mut peers = view.peers.iter();
    let entry = peers.find(|peer| peer.name == member.name);
    entry.is_none_or(|peer| peer.live_status().is_some())
}

/// A standby that was promoted and is not in office is neither: not the primary by right, and no copy any more.
fn clear_role(member: &MemberStatus) -> Option<Role> {
    match (member.role?, member.server.as_ref()?.in_recovery) {
        (Role::Primary, false) => Some(Role::Primary),
        (Role::Standby, true) => Some(Role::Standby),
        (Role::Primary, true) | (Role::Standby, false) => None,
    }
}

fn unclear(member: &MemberStatus) -> Option<(String, u64)> {
    let runs = member.server.is_some() && clear_role(member).is_none();
    runs.then(|| (member.name.clone(), incarnation(member)))
}

fn address(member: &MemberStatus) -> SocketAddr {
    SocketAddr::new(member.host, member.postgres_port)
}

/// One number for "this server process": FNV-1a over what identifies it.
fn incarnation(member: &MemberStatus) -> u64 {
    let start_time = member
        .server
        .as_ref()
        .map_or("", |server| server.postmaster_start_time.as_str());
    let words = [member.uid.as_str(), start_time];
    fnv_1a(words.iter().flat_map(|word| word.bytes().chain([0])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::fixtures::{cut_off, down, peer, primary, standby, view};
    use crate::core::lease::{Identity, LeadershipReport, LeaseRecord, Office};
    use crate::core::routing::{Opened, RouteMode, RoutePolicy, Stay, candidates, stay};

    fn in_office(mut member: MemberStatus, term: u64) -> MemberStatus {
        let office = Some(Office { term, beat: 0 });
        member.leadership = Some(LeadershipReport {
            office,
            ..LeadershipReport::default()
        });
        member
    }

    #[test]
    fn a_silent_primary_is_unheard_and_only_one_known_to_be_down_leaves_orphans() {
        let told = |entry: PeerEntry| {
            let peers = vec![entry, peer(cut_off(standby(2)))];
            let table = route_table(&view(cut_off(standby(1)), peers));
            let streaming = |server: &&Server| server.role == Role::Standby && server.streaming;
            let standbys = table.servers.iter().filter(streaming).count();
            (table.unheard, table.orphaned, standbys)
        };
        let with = |contact: PeerContact| PeerEntry {
            contact,
            heard_ms_ago: Some(9_000),
            ..peer(primary(0))
        };
        assert_eq!(told(peer(primary(0))), (false, false, 0));
        assert_eq!(told(with(PeerContact::TimedOut)), (true, false, 2));
        assert_eq!(told(with(PeerContact::Unreachable)), (true, false, 2));
        assert_eq!(told(with(PeerContact::Refused)), (true, true, 2));
        assert_eq!(told(peer(down(primary(0)))), (true, true, 2));
    }

    /// With nobody left to bear witness that the primary was lost, its reads ended with its WAL receiver.
    #[test]
    fn the_last_standby_served_nobody_behind_the_switch() {
        let silent = |status| PeerEntry {
            contact: PeerContact::TimedOut,
            heard_ms_ago: Some(9_000),
            ..peer(status)
        };
        let told = |read_only: bool, other: PeerEntry| {
            let mut seen = view(cut_off(standby(1)), vec![silent(primary(0)), other]);
            seen.read_only = read_only;
            let table = route_table(&seen);
            let served = |mode| candidates(&RoutePolicy::new(mode), &table).len();
            let served = [RouteMode::ReadWrite, RouteMode::ReadOnly].map(served);
            (table.unheard, served)
        };
        // Nobody says how old its data are: that keeps a read-only endpoint from it.
        assert_eq!(told(true, silent(standby(2))), (true, [1, 0]));
        assert_eq!(told(false, silent(standby(2))), (false, [0, 0]));
        let streams = told(true, peer(standby(2)));
        assert!(!streams.0, "the other one streams: there is a primary");
    }

    /// The routes cut its sessions, though its PostgreSQL did not notice.
    #[test]
    fn a_standby_whose_sidecar_restarted_lost_its_sessions() {
        let opened = route_table(&view(primary(0), vec![peer(standby(1))]));
        let opened = opened.servers.iter().find(|server| server.name == "pg-1");
        let incarnation = opened.expect("a standby").incarnation;
        let told = |contact: PeerContact| {
            let entry = PeerEntry {
                contact,
                ..peer(standby(1))
            };
            let table = route_table(&view(primary(0), vec![entry]));
            let policy = RoutePolicy::new(RouteMode::ReadOnly);
            let opened = Opened {
                server: "pg-1",
                incarnation,
                role: Role::Standby,
            };
            let fresh = candidates(&policy, &table)
                .iter()
                .any(|server| server.name == "pg-1");
            (stay(&policy, &table, opened), fresh)
        };
        for contact in [PeerContact::Refused, PeerContact::Closed] {
            assert_eq!(told(contact), (Stay::Keep, false), "{contact:?}");
        }
        assert_eq!(told(PeerContact::TimedOut), (Stay::Cut, false));

        let begun = MemberStatus {
            server: None,
            ..standby(1)
        };
        let seen = view(primary(0), vec![peer(begun)]);
        let before = route_table(&view(primary(0), vec![peer(standby(1))]));
        let kept = with_unseen(route_table(&seen), &before, &seen);
        let again = with_unseen(route_table(&seen), &kept, &seen);
        assert_eq!(kept, again, "for as long as it says nothing");
        let of = |table: &RouteTable| {
            let found = table.servers.iter().find(|server| server.name == "pg-1");
            found.map(|server| (server.incarnation, server.answering))
        };
        assert_eq!(of(&kept), Some((incarnation, false)));
        let elsewhere = RouteTable::default();
        assert_eq!(of(&with_unseen(route_table(&seen), &elsewhere, &seen)), None);
    }

    fn routes_of(mut member: MemberStatus, term: u64) -> MemberStatus {
        member.routes_term = Some(term);
        member
    }

    #[test]
    fn the_newest_primary_waits_for_the_routes_of_members_that_are_there() {
        let (old, new) = (in_office(primary(0), 4), in_office(primary(1), 5));
        let silent = PeerEntry {
            contact: PeerContact::TimedOut,
            ..peer(routes_of(standby(3), 4))
        };
        let peers = vec![peer(routes_of(old, 4)), peer(routes_of(new, 5)), silent];
        let table = route_table(&view(routes_of(standby(2), 4), peers.clone()));
        assert_eq!(table.term, Some(5));
        assert_eq!(table.waits_for, ["pg-2", "pg-0"], "itself, and not who is silent");
        let primaries = |table: &RouteTable| -> Vec<String> {
            let primaries = table.servers.iter().filter(|server| server.role == Role::Primary);
            primaries.map(|server| server.name.clone()).collect()
        };
        assert_eq!(primaries(&table), ["pg-1"], "the old one is none any more");
        let held = table.without_primary();
        assert!(primaries(&held).is_empty() && held.unclear.contains_key("pg-1"));
        assert_eq!(held.term, Some(5));
        let table = route_table_of_peers(&view(standby(2), peers));
        assert_eq!(table.waits_for, ["pg-0"], "an outsider has no routes of a member");
    }

    #[test]
    fn a_claim_that_is_read_ends_the_earlier_primary_though_the_new_one_is_not_heard() {
        let old = routes_of(in_office(primary(0), 4), 4);
        let seen = |term: u64, holder: Option<&str>| {
            let mut view = view(routes_of(standby(2), 4), vec![peer(old.clone())]);
            view.lease = Some(LeaseRecord {
                term,
                holder: holder.map(Identity::parse),
                ..LeaseRecord::default()
            });
            let table = route_table(&view);
            (
                table.term,
                table.servers.iter().any(|server| server.name == "pg-0"),
                table.waits_for,
            )
        };
        let both = vec!["pg-2".to_owned(), "pg-0".to_owned()];
        assert_eq!(seen(5, Some("pg-1/uid-1")), (Some(5), false, both));
        assert_eq!(seen(4, Some("pg-0/uid-0")), (Some(4), true, vec![]));
        assert_eq!(
            seen(5, Some("pg-0/uid-0")),
            (Some(4), true, vec![]),
            "it goes on in a term that it began itself"
        );
        assert_eq!(
            seen(5, None),
            (Some(4), true, vec![]),
            "given back, and claimed by nobody"
        );
        assert_eq!(
            seen(3, Some("pg-1/uid-1")),
            (Some(4), true, vec![]),
            "an old record"
        );
    }

    #[test]
    fn without_a_lease_nobody_is_waited_for() {
        let table = route_table(&view(primary(0), vec![peer(routes_of(standby(1), 4))]));
        assert_eq!((table.term, table.waits_for), (None, vec![]));
    }
}
