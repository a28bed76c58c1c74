//! The shipped DNS client against the demo's DNS server, and against servers that misbehave.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use podgres::core::member::{Ordinal, Topology};
use podgres::demo::dns::{Server, Zone};
use podgres::dns::{DnsError, Found, Resolver};
use tokio::net::UdpSocket;

fn topology() -> Topology {
    Topology {
        cluster: "pg".to_owned(),
        service: "pg-headless".to_owned(),
        namespace: "prod".to_owned(),
        cluster_domain: "cluster.test".to_owned(),
        first_ordinal: Ordinal(0),
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, fastrand::u8(1..255), fastrand::u8(..), 1], 0))
}

fn pods<const N: usize>(pods: [(u32, &str); N]) -> BTreeMap<Ordinal, IpAddr> {
    pods.into_iter()
        .map(|(ordinal, address)| (Ordinal(ordinal), address.parse().expect(address)))
        .collect()
}

async fn server() -> (Server, Zone, Resolver) {
    let zone = Zone::new(topology(), 5432).expect("a zone");
    let server = Server::bind(loopback(), zone.clone()).await.expect("a server");
    let resolver = Resolver::new(Some(server.address())).expect("a client");
    (server, zone, resolver)
}

fn found(ordinal: u32, addresses: &[&str]) -> Found {
    Found {
        ordinal: Ordinal(ordinal),
        name: format!("pg-{ordinal}"),
        addresses: addresses.iter().map(|a| a.parse().expect(a)).collect(),
    }
}

#[tokio::test]
async fn row_10_and_11_service_and_pods_resolve_to_ipv4_and_ipv6() {
    let (_server, zone, resolver) = server().await;
    zone.set_pods(&pods([(0, "127.7.7.10"), (1, "fd00::11")]))
        .expect("pods");
    let service = resolver
        .addresses("pg-headless.prod.svc.cluster.test")
        .await
        .expect("service");
    let all: Vec<IpAddr> = vec!["127.7.7.10".parse().expect("v4"), "fd00::11".parse().expect("v6")];
    assert_eq!(service, all);
    for (ordinal, address) in [(0, all[0]), (1, all[1])] {
        let host = topology().pod_host(Ordinal(ordinal));
        assert_eq!(resolver.addresses(&host).await.expect("pod"), [address]);
        assert_eq!(
            resolver
                .addresses(&format!("{host}."))
                .await
                .expect("pod with dot"),
            [address]
        );
    }
    assert_eq!(
        resolver.addresses("fd00::1").await.expect("literal"),
        ["fd00::1".parse::<IpAddr>().expect("v6")]
    );
}

#[tokio::test]
async fn members_come_from_srv_records() {
    let (_server, zone, resolver) = server().await;
    let none = resolver
        .members(&topology(), Ordinal(0))
        .await
        .expect("no pod is no error");
    assert_eq!(none, []);
    // A gap that probing would not cross.
    zone.set_pods(&pods([(0, "127.7.7.10"), (7, "127.7.7.17"), (3, "fd00::3")]))
        .expect("pods");
    let members = resolver.members(&topology(), Ordinal(0)).await.expect("members");
    assert_eq!(
        members,
        [
            found(0, &["127.7.7.10"]),
            found(3, &["fd00::3"]),
            found(7, &["127.7.7.17"])
        ]
    );
}

#[tokio::test]
async fn members_without_a_named_port_are_probed_past_gaps() {
    let (_server, zone, resolver) = server().await;
    zone.set_pods(&pods([(0, "127.7.7.10"), (2, "127.7.7.12"), (3, "127.7.7.13")]))
        .expect("pods");
    zone.drop_service_port();
    let members = resolver.members(&topology(), Ordinal(0)).await.expect("members");
    assert_eq!(members.iter().map(|m| m.ordinal.0).collect::<Vec<_>>(), [0, 2, 3]);
    zone.set_pods(&pods([(4, "127.7.7.14")])).expect("pods");
    zone.drop_service_port();
    assert_eq!(
        resolver.members(&topology(), Ordinal(0)).await.expect("members"),
        []
    );
    let members = resolver.members(&topology(), Ordinal(4)).await.expect("members");
    assert_eq!(members, [found(4, &["127.7.7.14"])]);
    let many: BTreeMap<Ordinal, IpAddr> = (0..40u8)
        .map(|i| (Ordinal(i.into()), IpAddr::from([127, 7, 8, 10 + i])))
        .collect();
    zone.set_pods(&many).expect("pods");
    zone.drop_service_port();
    let members = resolver.members(&topology(), Ordinal(1)).await.expect("members");
    assert_eq!(members.len(), 40);
}

#[tokio::test]
async fn row_72_probing_starts_at_the_first_ordinal() {
    let mut topology = topology();
    topology.first_ordinal = Ordinal(5);
    let zone = Zone::new(topology.clone(), 5432).expect("a zone");
    let server = Server::bind(loopback(), zone.clone()).await.expect("a server");
    let resolver = Resolver::new(Some(server.address())).expect("a client");
    zone.set_pods(&pods([(4, "127.7.7.14"), (5, "127.7.7.15"), (6, "127.7.7.16")]))
        .expect("pods");
    zone.drop_service_port();
    let members = resolver.members(&topology, Ordinal(5)).await.expect("members");
    assert_eq!(members.iter().map(|m| m.ordinal.0).collect::<Vec<_>>(), [5, 6]);
}

#[tokio::test]
async fn row_79_a_name_that_appears_is_seen_at_once() {
    let (_server, zone, resolver) = server().await;
    let host = topology().pod_host(Ordinal(0));
    for _ in 0..3 {
        let error = resolver.addresses(&host).await.expect_err("no pod");
        assert!(matches!(error, DnsError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(&host), "{error}");
    }
    zone.set_pods(&pods([(0, "127.7.7.10")])).expect("pods");
    assert!(resolver.addresses(&host).await.is_ok());
    zone.set_pods(&pods([(0, "127.7.7.99")])).expect("pods");
    let moved: IpAddr = "127.7.7.99".parse().expect("v4");
    assert_eq!(resolver.addresses(&host).await.expect("moved"), [moved]);
    zone.set_pods(&pods([])).expect("pods");
    assert!(matches!(
        resolver.addresses(&host).await,
        Err(DnsError::NotFound { .. })
    ));
}

#[tokio::test]
async fn a_name_without_addresses_is_not_a_missing_name() {
    let (_server, zone, resolver) = server().await;
    zone.set_pods(&pods([])).expect("pods");
    for host in ["pg-headless.prod.svc.cluster.test", "prod.svc.cluster.test"] {
        let error = resolver.addresses(host).await.expect_err(host);
        assert!(matches!(error, DnsError::NoRecords { .. }), "{error}");
    }
    let error = resolver
        .addresses("www.example.com")
        .await
        .expect_err("a foreign name");
    assert!(matches!(error, DnsError::ServerFailure { .. }), "{error}");
    for host in ["", ".", "a..b", &"x".repeat(64), &"x.".repeat(200)] {
        let error = resolver.addresses(host).await.expect_err(host);
        assert!(matches!(error, DnsError::InvalidName { .. }), "{host:?}: {error}");
    }
}

#[tokio::test]
async fn a_silent_or_absent_server_is_named_unreachable_in_bounded_time() {
    let silent = UdpSocket::bind(loopback()).await.expect("a socket");
    let absent = SocketAddr::new(loopback().ip(), 9);
    for server in [silent.local_addr().expect("its address"), absent] {
        let resolver = Resolver::new(Some(server)).expect("a client");
        let asked_at = Instant::now();
        let error = resolver
            .addresses("pg-0.pg.prod.svc.cluster.test")
            .await
            .expect_err("no server");
        assert!(matches!(error, DnsError::Unreachable { .. }), "{error}");
        assert!(
            error.to_string().contains("\"pg-0.pg.prod.svc.cluster.test\""),
            "{error}"
        );
        assert!(
            asked_at.elapsed() < Duration::from_secs(9),
            "{:?}",
            asked_at.elapsed()
        );
        let error = resolver
            .members(&topology(), Ordinal(0))
            .await
            .expect_err("no server");
        assert!(
            !error.absent(),
            "silence must not look like an empty cluster: {error}"
        );
    }
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let socket = UdpSocket::bind(loopback()).await.expect("a socket");
    let resolver = Resolver::new(Some(socket.local_addr().expect("its address"))).expect("a client");
    let garbage = tokio::spawn(async move {
        let mut packet = [0; 1500];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut packet).await else {
                continue;
            };
            for answer in [
                Vec::new(),
                vec![0; 3],
                (0..=255).collect(),
                packet[..length / 2].to_vec(),
            ] {
                drop(socket.send_to(&answer, client).await);
            }
            // The right id with a body that ends too early.
            let mut torn = packet[..12].to_vec();
            torn[2] |= 0x80;
            torn[7] = 9;
            drop(socket.send_to(&torn, client).await);
        }
    });
    let asked_at = Instant::now();
    let error = resolver
        .addresses("pg-0.pg.prod.svc.cluster.test")
        .await
        .expect_err("garbage");
    assert!(matches!(error, DnsError::Unreachable { .. }), "{error}");
    assert!(
        asked_at.elapsed() < Duration::from_secs(9),
        "{:?}",
        asked_at.elapsed()
    );
    garbage.abort();
}

#[tokio::test]
async fn an_answer_too_long_for_udp_comes_over_tcp() {
    let (server, zone, resolver) = server().await;
    let many: BTreeMap<Ordinal, IpAddr> = (0..200u8)
        .map(|i| (Ordinal(i.into()), IpAddr::from([127, 7, 9, i])))
        .collect();
    zone.set_pods(&many).expect("pods");
    let over_udp = zone
        .answer(&question("pg-headless.prod.svc.cluster.test"), true)
        .expect("an answer");
    assert!(
        over_udp.len() < 512 && over_udp[2] & 2 != 0,
        "not marked as truncated"
    );
    let service = resolver
        .addresses("pg-headless.prod.svc.cluster.test")
        .await
        .expect("service");
    assert_eq!(service.len(), 200);
    assert_eq!(
        resolver
            .members(&topology(), Ordinal(0))
            .await
            .expect("members")
            .len(),
        200
    );
    drop(server);
}

#[tokio::test]
async fn the_server_outlives_hostile_packets() {
    let (server, zone, resolver) = server().await;
    zone.set_pods(&pods([(0, "127.7.7.10")])).expect("pods");
    let question = question(&topology().pod_host(Ordinal(0)));
    let mut own_answer = question.clone();
    own_answer[2] |= 0x80;
    assert_eq!(zone.answer(&own_answer, true), None, "an answer was answered");
    let attacker = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    for round in 0..2000 {
        let mut packet = question.clone();
        for _ in 0..=round % 7 {
            let place = fastrand::usize(..packet.len());
            packet[place] = fastrand::u8(..);
        }
        packet.truncate(fastrand::usize(..=packet.len()));
        drop(zone.answer(&packet, round % 2 == 0));
        attacker.send_to(&packet, server.address()).await.expect("sent");
    }
    // A name that points at itself.
    attacker
        .send_to(
            &[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xC0, 12, 0, 1, 0, 1],
            server.address(),
        )
        .await
        .expect("sent");
    // TCP connections that say nothing take no place from a client over UDP.
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(
            tokio::net::TcpStream::connect(server.address())
                .await
                .expect("connected"),
        );
    }
    assert!(resolver.addresses(&topology().pod_host(Ordinal(0))).await.is_ok());
}

/// A question for the IPv4 address of `host`, without EDNS.
fn question(host: &str) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in host.split('.') {
        packet.push(u8::try_from(label.len()).expect("a short label"));
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}
