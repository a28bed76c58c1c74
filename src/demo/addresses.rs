//! Picks the loopback network of a demo, so that demos on one machine never meet.
//!
//! The claim on a network is the demo's DNS server, bound to its first address for as long as the demo
//! runs: the kernel is the lock, among all users, and it is released however the demo ends.

use std::io;
use std::net::{SocketAddr, TcpListener};

use super::DemoError;
use super::dns::{Server, Zone};
use super::state::{Network, Ports};

/// Networks that are tried before the ports are held to be taken on all of them.
const NETWORKS_TRIED: u64 = 64;
/// Added to every port in turn: another server may hold a port on all addresses of the machine.
const PORT_SHIFTS: [u16; 4] = [0, 10_000, 20_000, 30_000];
/// The pods' first address; the demo's own is `.1`.
const FIRST_HOST: u8 = 10;
/// Addresses from here on are for pods that come back with another one.
const FIRST_MOVED_HOST: u8 = 60;
const LAST_HOST: u8 = 250;

/// As many pods as have an address of their own.
pub const MAX_REPLICAS: u32 = 50;

/// A network with a running DNS server on it.
pub struct Claim {
    pub network: Network,
    pub ports: Ports,
    pub zone: Zone,
    pub server: Server,
}

/// Claims the network of an earlier run, or else one that `seed` leads to, with its ports free for `hosts`.
///
/// `zone` makes the DNS zone for a PostgreSQL port.
///
/// # Errors
/// All networks that were tried are in use, or this machine does not let 127.0.0.0/8 be used.
pub async fn claim(
    earlier: Option<(Network, Ports)>,
    seed: u64,
    hosts: &[u8],
    zone: impl Fn(u16) -> Result<Zone, DemoError>,
) -> Result<Claim, DemoError> {
    let drawn = PORT_SHIFTS.into_iter().flat_map(|shift| {
        (0..NETWORKS_TRIED).map(move |step| (network_of(seed, step), shifted(Ports::default(), shift)))
    });
    let mut last = None;
    for (network, ports) in earlier.into_iter().chain(drawn) {
        let zone = zone(ports.postgres)?;
        match claim_one(network, ports, hosts, zone).await {
            Ok(claim) => return Ok(claim),
            Err(refused) => last = Some(refused),
        }
    }
    let (address, source) = last.unwrap_or_else(|| {
        (
            SocketAddr::from(([127, 0, 0, 1], 0)),
            io::Error::other("none tried"),
        )
    });
    Err(DemoError::Address { address, source })
}

async fn claim_one(
    network: Network,
    ports: Ports,
    hosts: &[u8],
    zone: Zone,
) -> Result<Claim, (SocketAddr, io::Error)> {
    let own = SocketAddr::new(network.host(1), ports.dns);
    let server = Server::bind(own, zone.clone())
        .await
        .map_err(|error| (own, error))?;
    for host in hosts {
        check_free(network, ports, *host)?;
    }
    Ok(Claim {
        network,
        ports,
        zone,
        server,
    })
}

/// Whether all ports of a pod can be bound.
fn check_free(network: Network, ports: Ports, host: u8) -> Result<(), (SocketAddr, io::Error)> {
    for port in [ports.postgres, ports.read_write, ports.read_only, ports.http] {
        let address = SocketAddr::new(network.host(host), port);
        TcpListener::bind(address).map_err(|error| (address, error))?;
    }
    Ok(())
}

/// The address of the pod in this place, counted from 0.
#[must_use]
pub fn host_of_place(place: u32) -> u8 {
    FIRST_HOST + u8::try_from(place.min(MAX_REPLICAS - 1)).unwrap_or(0)
}

/// A free address for a pod that is to move, none of `taken`; `None` if there is none.
#[must_use]
pub fn host_to_move_to(network: Network, ports: Ports, taken: &[u8]) -> Option<u8> {
    (FIRST_MOVED_HOST..LAST_HOST)
        .filter(|host| !taken.contains(host))
        .find(|host| check_free(network, ports, *host).is_ok())
}

/// 127.0.x.y is left to the machine's own servers.
fn network_of(seed: u64, step: u64) -> Network {
    // SplitMix64, so that near seeds give far networks.
    let mut mixed = seed.wrapping_add((step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let bytes = (mixed ^ (mixed >> 31)).to_be_bytes();
    Network {
        a: bytes[0] % 254 + 1,
        b: bytes[1],
    }
}

fn shifted(ports: Ports, shift: u16) -> Ports {
    Ports {
        postgres: ports.postgres + shift,
        read_write: ports.read_write + shift,
        read_only: ports.read_only + shift,
        http: ports.http + shift,
        dns: ports.dns + shift,
    }
}
