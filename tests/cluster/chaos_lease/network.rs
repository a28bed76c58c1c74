//! Partitions: which packets of a pod are dropped. Clients reach it all the time, which is what makes a former primary dangerous.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use podgres::core::member::Ordinal;
use podgres::demo::DemoState;
use tokio::net::TcpSocket;

use crate::harness::Demo;
use crate::namespaces::Cut;

/// An answer over loopback takes microseconds.
const ANSWER: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// All other pods, the API server and DNS, both ways.
    All,
    /// Nobody hears it.
    Mute,
    /// It hears nobody.
    Deaf,
    /// The pod so many ordinals further, both ways.
    Peer(u32),
    ApiServer,
}

impl From {
    pub(super) fn draw(random: &mut fastrand::Rng) -> Self {
        match random.u32(0..10) {
            0..3 => Self::All,
            3 | 4 => Self::Mute,
            5 | 6 => Self::Deaf,
            7 | 8 => Self::Peer(random.u32(1..3)),
            _ => Self::ApiServer,
        }
    }

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Mute => "mute",
            Self::Deaf => "deaf",
            Self::Peer(_) => "one peer",
            Self::ApiServer => "api server",
        }
    }
}

/// Cuts a pod off for a while; what came of it.
pub(super) fn cut(demo: &Demo, ordinal: u32, from: From, time: Duration) -> String {
    let state = demo.deployed();
    let Some(pod) = state.pod(Ordinal(ordinal)).map(|pod| pod.address) else {
        return "there is no such pod".to_owned();
    };
    let Some(other) = other_side(&state, ordinal, from) else {
        return "there is nobody to be cut off from".to_owned();
    };
    let cut = begin(pod, other, from);
    assert!(!answers(pod, other), "{pod} still reaches {other}");
    if from != From::ApiServer {
        let back = SocketAddr::new(pod, other.port());
        assert!(!answers(other.ip(), back), "{other} still reaches {pod}");
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert!(answers(client, back), "clients do not reach {pod}");
    }
    std::thread::sleep(time);
    format!("{} packets dropped", cut.packets())
}

/// Somebody whom the pod no longer reaches.
fn other_side(state: &DemoState, ordinal: u32, from: From) -> Option<SocketAddr> {
    let further = match from {
        From::ApiServer => return state.api_server,
        From::Peer(further) => further,
        From::All | From::Mute | From::Deaf => 1,
    };
    let peer = state.pod(Ordinal((ordinal + further) % 3))?;
    Some(SocketAddr::new(peer.address, state.ports.http))
}

fn begin(pod: IpAddr, other: SocketAddr, from: From) -> Cut {
    // Not its own to itself, nor clients', who come from 127.0.0.1.
    let says = format!("ip saddr {pod} ip daddr {pod}/24 ip daddr != {pod}");
    let hears = format!("ip daddr {pod} ip saddr {pod}/24 ip saddr != {pod}");
    match from {
        From::All => Cut::new(&[says, hears]),
        From::Mute => Cut::new(&[says]),
        From::Deaf => Cut::new(&[hears]),
        From::Peer(_) => Cut::between(pod, other.ip()),
        From::ApiServer => {
            let (address, port) = (other.ip(), other.port());
            Cut::new(&[
                format!("ip saddr {pod} ip daddr {address} tcp dport {port}"),
                format!("ip saddr {address} tcp sport {port} ip daddr {pod}"),
            ])
        }
    }
}

/// Whether anything comes back when `from` knocks at `to`: a connection or a refusal.
fn answers(from: IpAddr, to: SocketAddr) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((from, 0).into()).expect("an own address");
        tokio::time::timeout(ANSWER, socket.connect(to)).await.is_ok()
    })
}
