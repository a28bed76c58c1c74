//! Asks DNS who the members are: often while something is amiss, seldom while all is well.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::core::member::{Ordinal, Topology};
use crate::dns::{DnsError, Resolver};
use crate::watched;

const BRISK: Duration = Duration::from_secs(1);
const SEDATE: Duration = Duration::from_secs(10);
/// A member whose last address is known is looked for there if DNS has not answered by then.
const PATIENCE: Duration = Duration::from_millis(500);
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

/// Where `host` is; where it was last, if DNS does not say. Who answers there is looked at by whoever asks.
///
/// # Errors
/// There is no such name, or DNS does not answer and nothing is `known`.
pub(super) async fn addresses(
    resolver: &Resolver,
    host: &str,
    known: Vec<IpAddr>,
) -> Result<Vec<IpAddr>, DnsError> {
    let asked = resolver.addresses(host);
    if known.is_empty() {
        return asked.await;
    }
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Err(error)) if error.absent() => Err(error),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(_)) | Err(_) => Ok(known),
    }
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
        watched::set(&sender, names);
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

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;

    /// After a failover without DNS no standby found the new primary, and no write came to its end.
    #[tokio::test]
    async fn a_silent_dns_server_hid_where_members_were() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let resolver = Resolver::new(Some(silent.local_addr().expect("an address"))).expect("a client");
        let known: Vec<IpAddr> = vec!["127.0.0.9".parse().expect("an address")];
        let found = addresses(&resolver, "pg-1.pg.shop.svc.test", known.clone()).await;
        assert_eq!(found.expect("the last one"), known);
        drop(silent);
        let found = addresses(&resolver, "pg-1.pg.shop.svc.test", known.clone()).await;
        assert_eq!(found.expect("the last one"), known);
        let error = addresses(&resolver, "pg-1.pg.shop.svc.test", Vec::new()).await;
        assert!(!error.expect_err("nothing is known").absent());
    }
}
