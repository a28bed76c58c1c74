//! Gathers one observation: asks nothing twice, waits for nobody longer than its limit.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::core::cluster::{PeerContact, PeerEntry};
use crate::core::member::Ordinal;
use crate::core::observation::PeerView;
use crate::core::status::{HeldData, ServerStatus};
use crate::core::supervision::{Postmaster, SupervisorStatus};
use crate::postgres::query::{LocalServer, QueryError};

use super::names::Names;

/// For the one query a turn. PostgreSQL that takes longer counts as not answering.
const QUERY_LIMIT: Duration = Duration::from_secs(1);

/// What the local server has said, or why it does not let podgres in.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) server: Option<ServerStatus>,
    pub(super) login_refused: Option<String>,
}

/// Asks the local server, if there is one to ask. Why it did not answer is logged once, and kept in `complaint`.
pub(super) async fn server(
    local: &mut LocalServer,
    supervisor: Option<&SupervisorStatus>,
    look_for_oldest_wal: bool,
    complaint: &mut Option<String>,
) -> Asked {
    let ready =
        |status: &SupervisorStatus| matches!(status.postmaster, Postmaster::Running { ready: true, .. });
    if !supervisor.is_some_and(ready) {
        return Asked::default();
    }
    match local.status(look_for_oldest_wal, QUERY_LIMIT).await {
        Ok(status) => {
            *complaint = None;
            Asked {
                server: Some(status),
                login_refused: None,
            }
        }
        Err(QueryError::Starting { .. }) => Asked::default(),
        Err(error) => {
            let detail = error.to_string();
            if complaint.as_ref() != Some(&detail) {
                tracing::warn!(detail, hint = error.hint(), "PostgreSQL did not answer");
                *complaint = Some(detail.clone());
            }
            let refused = error.turns_away();
            Asked {
                server: None,
                login_refused: refused.then_some(detail),
            }
        }
    }
}

/// The peers as decisions see them: those that DNS names, and those that were heard.
pub(super) fn peers(
    names: &Names,
    entries: &[PeerEntry],
    own: Ordinal,
    own_slot: &str,
) -> BTreeMap<Ordinal, PeerView> {
    let mut peers: BTreeMap<Ordinal, PeerView> = names
        .members
        .keys()
        .filter(|ordinal| **ordinal != own)
        .map(|ordinal| (*ordinal, PeerView::untried()))
        .collect();
    for entry in entries {
        let named = peers.contains_key(&entry.ordinal);
        let view = match &entry.status {
            Some(status) => PeerView::from_status(named, entry.contact, status, own_slot),
            None => PeerView {
                named,
                contact: entry.contact,
                ..PeerView::untried()
            },
        };
        let view = PeerView {
            heard_ms_ago: entry.heard_ms_ago,
            ..view
        };
        peers.insert(entry.ordinal, view);
    }
    peers
}

/// On a primary: some member does not stream, so that it matters how far back the WAL goes.
pub(super) fn oldest_wal_matters(last: Option<&ServerStatus>, entries: &[PeerEntry]) -> bool {
    let Some(last) = last.filter(|server| !server.in_recovery) else {
        return false;
    };
    last.slots.iter().any(|slot| !slot.active)
        || entries
            .iter()
            .any(|entry| entry.status.as_ref().is_some_and(|status| !status.streaming()))
}

/// For a look at a peer's PostgreSQL.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// Peers whose podgres does not listen may still have a PostgreSQL with data: who accepts connections holds some.
pub(super) async fn look_at_servers(peers: &mut BTreeMap<Ordinal, PeerView>, names: &Names, port: u16) {
    for (ordinal, peer) in peers {
        if peer.held_data != HeldData::Unknown || peer.contact != PeerContact::Refused {
            continue;
        }
        for address in names.members.get(ordinal).into_iter().flatten() {
            let connecting = TcpStream::connect((*address, port));
            if matches!(tokio::time::timeout(CONNECT_LIMIT, connecting).await, Ok(Ok(_))) {
                peer.held_data = HeldData::Some;
            }
        }
    }
}
