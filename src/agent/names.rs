//! Asks DNS who the members are: often while something is amiss, seldom while all is well.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::core::member::{Ordinal, Topology};
use crate::dns::Resolver;

const BRISK: Duration = Duration::from_secs(1);
const SEDATE: Duration = Duration::from_secs(10);
/// Visitors in a row cost one question.
const VISIT_PAUSE: Duration = Duration::from_millis(200);

/// What DNS last said. An error leaves the last good answer in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// DNS has answered at least once.
    pub(super) asked: bool,
    pub(super) members: BTreeMap<Ordinal, Vec<IpAddr>>,
    pub(super) error: Option<String>,
}

/// Follows DNS; `settled` says whether all is well, `visited` that somebody new may be there.
pub(super) fn follow(
    resolver: Resolver,
    topology: Topology,
    settled: watch::Receiver<bool>,
    visited: Arc<Notify>,
) -> watch::Receiver<Names> {
    let (sender, receiver) = watch::channel(Names::default());
    tokio::spawn(ask(resolver, topology, settled, visited, sender));
    receiver
}

async fn ask(
    resolver: Resolver,
    topology: Topology,
    mut settled: watch::Receiver<bool>,
    visited: Arc<Notify>,
    sender: watch::Sender<Names>,
) {
    loop {
        let highest = sender.borrow().members.keys().next_back().copied();
        let answer = resolver
            .members(&topology, highest.unwrap_or(topology.first_ordinal))
            .await;
        let names = match answer {
            Ok(found) => Names {
                asked: true,
                members: found
                    .into_iter()
                    .map(|found| (found.ordinal, found.addresses))
                    .collect(),
                error: None,
            },
            Err(error) => Names {
                error: Some(error.to_string()),
                ..sender.borrow().clone()
            },
        };
        sender.send_if_modified(|known| {
            let changed = *known != names;
            *known = names;
            changed
        });
        let pause = if *settled.borrow_and_update() {
            SEDATE
        } else {
            BRISK
        };
        // A change for the worse, or a visitor, cuts the pause short; the sender lives as long as the agent.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = visited.notified() => tokio::time::sleep(VISIT_PAUSE).await,
            changed = settled.changed() => if changed.is_err() {
                return;
            },
        }
    }
}
