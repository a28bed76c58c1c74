//! The first ordinal under fixed leadership, while PostgreSQL does not run.

use crate::core::cluster::PeerContact;
use crate::core::data_directory::DataDirectoryFacts;
use crate::core::decision::{Decision, PostgresAction};
use crate::core::situation::Situation;
use crate::core::status::HeldData;
use crate::core::supervision::{JobRequest, Licence, ServerRole};

use super::{Turn, shared};

/// An empty directory: the only place from which initdb is ever reached.
pub(super) fn empty(turn: Turn<'_>) -> Decision {
    if let Some((situation, message)) = turn.failed_job() {
        return turn.row(situation, message);
    }
    if let Some((situation, detail)) = against_new_cluster(&turn) {
        return turn.row_while_asking(situation, detail);
    }
    let detail = format!(
        "{}-{} will be the primary",
        turn.policy.cluster, turn.policy.ordinal
    );
    turn.act(
        Situation::NewCluster,
        detail,
        PostgresAction::Run {
            job: JobRequest::Initdb,
        },
    )
}

/// What speaks against making a new cluster, unless the operator has said that this is one.
pub(super) fn against_new_cluster(turn: &Turn<'_>) -> Option<(Situation, String)> {
    if turn.policy.new_cluster {
        return None;
    }
    let held = holder_of_data(turn).map(|detail| (Situation::PeerHoldsData, detail));
    held.or_else(|| unanswered(turn))
}

fn holder_of_data(turn: &Turn<'_>) -> Option<String> {
    let peers = turn.observation.peers.iter();
    let mut holders = peers.filter(|(_, peer)| peer.held_data == HeldData::Some);
    let (ordinal, peer) = holders.next()?;
    let identifier = peer.system_identifier.map_or_else(
        || "unknown system identifier".to_owned(),
        |id| format!("system identifier {id}"),
    );
    Some(format!(
        "{}-{ordinal} holds data ({identifier})",
        turn.policy.cluster
    ))
}

/// Peers that DNS knows and that have not said whether they hold data.
///
/// A host on which nobody listens is taken as a pod that has not begun once the time is over. One that
/// does not answer at all may hold data behind a broken network: then nothing is made.
fn unanswered(turn: &Turn<'_>) -> Option<(Situation, String)> {
    let mut silent = turn
        .observation
        .peers
        .iter()
        .filter(|(_, peer)| peer.named && peer.held_data == HeldData::Unknown)
        .peekable();
    let waited_ms = turn.waited_ms();
    let in_time = waited_ms < turn.policy.discovery_timeout_ms;
    if !turn.observation.dns_answered {
        let situation = if in_time {
            Situation::AskingPeers
        } else {
            Situation::PeersUnreachable
        };
        return Some((situation, format!("DNS has not answered for {waited_ms} ms")));
    }
    silent.peek()?;
    let cluster = &turn.policy.cluster;
    if in_time {
        let (ordinal, peer) = silent.next()?;
        let detail = format!(
            "waiting for {cluster}-{ordinal} ({:?}) for {waited_ms} ms",
            peer.contact
        );
        return Some((Situation::AskingPeers, detail));
    }
    let (ordinal, _) = silent.find(|(_, peer)| peer.contact != PeerContact::Refused)?;
    let detail = format!("{cluster}-{ordinal} has not answered for {waited_ms} ms");
    Some((Situation::PeersUnreachable, detail))
}

/// A complete directory: it runs as primary unless something speaks against it.
pub(super) fn complete(turn: Turn<'_>, facts: &DataDirectoryFacts) -> Decision {
    if facts.standby_signal {
        let detail = "PGDATA has a standby.signal".to_owned();
        return turn.row(Situation::FirstHoldsStandby, detail);
    }
    if let Some((situation, detail)) = contested(&turn, facts) {
        return turn.row_while_asking(situation, detail);
    }
    if let Some(detail) = turn.failed_start() {
        return turn.row(Situation::StartFailing, detail);
    }
    if turn.supervisor.licence == Licence::None {
        let action = PostgresAction::GrantLicence { until_ms: None };
        return turn.act(Situation::Unlicensed, String::new(), action);
    }
    let detail = shared::data_text(facts);
    let action = PostgresAction::Start {
        server: ServerRole::alone(),
    };
    turn.act(Situation::ReadyAsPrimary, detail, action)
}

/// What speaks against a complete directory being opened as the primary.
pub(super) fn contested(turn: &Turn<'_>, facts: &DataDirectoryFacts) -> Option<(Situation, String)> {
    let cluster = &turn.policy.cluster;
    let peers = &turn.observation.peers;
    if let Some((ordinal, _)) = peers.iter().find(|(_, peer)| peer.writable) {
        return Some((
            Situation::AnotherPrimary,
            format!("{cluster}-{ordinal} accepts writes"),
        ));
    }
    if let Some(detail) = behind(turn, facts) {
        return Some((Situation::FirstBehindPeer, detail));
    }
    let asked = turn.observation.peers_asked() || turn.waited_ms() >= turn.policy.discovery_timeout_ms;
    (!asked).then(|| {
        (
            Situation::AskingPeers,
            "DNS or a peer has not answered yet".to_owned(),
        )
    })
}

/// A peer that is on a later timeline of the same database.
pub(super) fn behind(turn: &Turn<'_>, facts: &DataDirectoryFacts) -> Option<String> {
    turn.observation.peers.iter().find_map(|(ordinal, peer)| {
        let same = peer.system_identifier == Some(facts.system_identifier);
        let timeline = peer
            .timeline
            .filter(|timeline| same && *timeline > facts.timeline)?;
        Some(format!(
            "{}-{ordinal} is on timeline {timeline}, PGDATA here is on timeline {}",
            turn.policy.cluster, facts.timeline
        ))
    })
}

impl Turn<'_> {
    /// A row that rests on what the peers have said, looked at again soon while some of them have not.
    pub(super) fn row_while_asking(self, situation: Situation, detail: String) -> Decision {
        let decision = self.row(situation, detail);
        match situation {
            Situation::AskingPeers | Situation::PeersUnreachable => decision.soon(),
            _ => decision,
        }
    }

    pub(super) fn waited_ms(&self) -> u64 {
        let began_at_ms = self.memory.began_at_ms.unwrap_or(self.observation.at_ms);
        self.observation.at_ms.saturating_sub(began_at_ms)
    }
}
