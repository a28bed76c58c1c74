//! In which order candidates are tried. Chance comes from outside.

use std::net::IpAddr;

use super::Server;
use crate::core::fnv::fnv_1a;

/// The order in which to try the candidates: the less used of two random ones, the other, then the rest
/// by use. `sessions` tells how many sessions a server has, `warm` how much of its share one that has just come
/// back is to get, in percent; `draws` are three random numbers.
#[must_use]
pub fn choose<'a>(
    candidates: &[&'a Server],
    sessions: &dyn Fn(&Server) -> usize,
    warm: &dyn Fn(&Server) -> u8,
    draws: [usize; 3],
) -> Vec<&'a Server> {
    let [first, second, chance] = draws;
    let mut rest: Vec<(bool, usize, &Server)> = candidates
        .iter()
        .map(|server| {
            let cold = chance % 100 >= usize::from(warm(server));
            (cold, sessions(server), *server)
        })
        .collect();
    let mut pair = Vec::with_capacity(rest.len());
    for draw in [first, second] {
        if !rest.is_empty() {
            pair.push(rest.remove(draw % rest.len()));
        }
    }
    pair.sort_by_key(|(cold, used, _)| (*cold, *used));
    rest.sort_by_key(|(cold, used, _)| (*cold, *used));
    pair.into_iter().chain(rest).map(|(.., server)| server).collect()
}

/// Puts one server first for all sessions of a client: where it `has` sessions already, else the one that its address
/// falls to, for every endpoint that sees the same candidates (rendezvous hashing). The others keep their order.
#[must_use]
pub fn keep_together<'a>(
    mut order: Vec<&'a Server>,
    client: IpAddr,
    has: &dyn Fn(&Server) -> bool,
) -> Vec<&'a Server> {
    let place = |server: &&Server| (has(server), score(client, &server.name));
    let first = order.iter().copied().max_by_key(place);
    if let Some(first) = first {
        order.retain(|server| server.name != first.name);
        order.insert(0, first);
    }
    order
}

/// FNV-1a, and its bits mixed (as in MurmurHash3), so that neighbouring addresses fall apart.
fn score(client: IpAddr, server: &str) -> u64 {
    let address = match client.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let hash = fnv_1a(address.octets().into_iter().chain(server.bytes()));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}
