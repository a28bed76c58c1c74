//! Keeps asking every member how far it is, and keeps what follows for the routes: how fresh each standby is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::boottime_ms;
use crate::core::cluster::ClusterView;
use crate::core::routing::freshness::{Freshness, Position};
use crate::peers::{PositionAsker, Reach, Way};

use super::positions::Positions;

/// For one answer.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// The view is looked at so often for members that are new or gone.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// A member's answer, and when it was asked.
type Heard = (String, Position, u64);

/// Follows all members of the view; `pause` is between two questions to one of them.
pub fn follow_freshness(
    view: watch::Receiver<Arc<ClusterView>>,
    own: Option<Arc<Positions>>,
    pause: Duration,
    way: Way,
) -> watch::Receiver<Arc<Freshness>> {
    let (sender, receiver) = watch::channel(Arc::new(Freshness::default()));
    if let Some(own) = &own {
        own.measured_by(receiver.clone());
    }
    tokio::spawn(follow(view, own, (pause, way), sender));
    receiver
}

async fn follow(
    view: watch::Receiver<Arc<ClusterView>>,
    own: Option<Arc<Positions>>,
    (pause, way): (Duration, Way),
    sender: watch::Sender<Arc<Freshness>>,
) {
    let (tell, mut answers) = mpsc::channel(64);
    let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
    let mut freshness = Freshness::default();
    if let Some(own) = own {
        let name = view.borrow().me.name.clone();
        tokio::spawn(ask_self(name, own, pause, tell.clone()));
    }
    loop {
        let members = members(&view.borrow());
        asked.retain(|name, asked| members.get(name) == Some(&asked.address));
        for (name, address) in members {
            asked.entry(name.clone()).or_insert_with(|| Asked {
                address,
                _task: AbortOnDropHandle::new(tokio::spawn(ask(
                    way.to(&name, address),
                    name,
                    pause,
                    tell.clone(),
                ))),
            });
        }
        let me = view.borrow().me.name.clone();
        let names: Vec<&str> = asked.keys().map(String::as_str).chain([me.as_str()]).collect();
        freshness.forget_others(&names);
        tokio::select! {
            Some((name, position, asked_at_ms)) = answers.recv() => {
                freshness.heard(&name, position, asked_at_ms);
                if sender.send(Arc::new(freshness.clone())).is_err() {
                    return;
                }
            }
            () = sleep(LOOK_PAUSE) => {}
        }
    }
}

/// One member's questions; they end with it.
struct Asked {
    address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

fn members(view: &ClusterView) -> BTreeMap<String, SocketAddr> {
    let peers = view.peers.iter().filter_map(|peer| peer.status.as_ref());
    peers
        .map(|status| {
            (
                status.name.clone(),
                SocketAddr::new(status.host, status.http_port),
            )
        })
        .collect()
}

async fn ask(member: Reach, name: String, pause: Duration, tell: mpsc::Sender<Heard>) {
    let mut asker = PositionAsker::new(member);
    loop {
        let asked_at_ms = boottime_ms();
        if let Ok(Some(position)) = asker.ask(ASK_LIMIT).await
            && tell.send((name.clone(), position, asked_at_ms)).await.is_err()
        {
            return;
        }
        sleep(pause).await;
    }
}

async fn ask_self(name: String, own: Arc<Positions>, pause: Duration, tell: mpsc::Sender<Heard>) {
    loop {
        let asked_at_ms = boottime_ms();
        if let Some(position) = own.position().await
            && tell.send((name.clone(), position, asked_at_ms)).await.is_err()
        {
            return;
        }
        sleep(pause).await;
    }
}
