//! Members over TLS: verified by the cluster's authority and the pod's name, on the port that answers plain probes too.

use std::net::SocketAddr;
use std::sync::Arc;

use podgres::core::cluster::PeerContact;
use podgres::core::member::Ordinal;
use podgres::http::serve::{Limits, Listener, serve};
use podgres::http::{Beat, HttpState, router};
use podgres::peers::{Peers, Way, ask, get_json};
use podgres::postgres::tls::ClientTls;
use podgres::proxy::CertificateFolder;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{LOOPBACK, PATIENCE, PEER_TIMEOUT, until_contact};
use crate::authority::Authority;
use crate::http::{standby, view};

const DOMAIN: &str = "pg.test.svc.cluster.local";

/// Shows a certificate for `name` of the member `pg-1`; the folder with it.
async fn member(authority: &Authority, name: &str) -> (SocketAddr, JoinHandle<()>, TempDir) {
    let folder = crate::user::temporary_directory();
    authority.issue(folder.path(), &format!("DNS:{name}.{DOMAIN}"));
    let certificate = CertificateFolder::open(folder.path()).expect("a certificate");
    let listener = Listener::tcp(SocketAddr::new(LOOPBACK, 0)).await.expect("listen");
    let Listener::Tcp(tcp, _) = &listener else {
        unreachable!("it listens on TCP");
    };
    let address = tcp.local_addr().expect("address");
    let listener = listener.with_tls(Some(Arc::new(move || certificate.for_http())));
    let (sender, seen) = watch::channel(Arc::new(view(standby(1))));
    let state = HttpState::new(seen, Beat::new(PATIENCE), PEER_TIMEOUT);
    let running = tokio::spawn(async move {
        let limits = Limits::default();
        serve(vec![listener], router(state), limits, std::future::pending()).await;
        drop(sender);
    });
    (address, running, folder)
}

fn trusting(authority: &Authority) -> Way {
    let tls = ClientTls::open(authority.directory.path()).expect("an authority");
    Way::verified(Arc::new(move || tls.config()), DOMAIN.to_owned())
}

fn following(way: Way, address: SocketAddr) -> Peers {
    let mut peers = Peers::new("pg", PEER_TIMEOUT, way);
    peers.set_targets(vec![(Ordinal(1), vec![address.ip()], address.port())]);
    peers
}

#[tokio::test]
async fn a_member_is_followed_over_tls_and_its_plain_probes_are_answered() {
    let ours = Authority::new("ours");
    let (address, running, _folder) = member(&ours, "pg-1").await;
    let mut peers = following(trusting(&ours), address);
    let peer = until_contact(&mut peers, PeerContact::Connected).await;
    assert_eq!(peer.status, Some(standby(1)));
    let plain = get_json(&format!("http://{address}"), "/cluster", PEER_TIMEOUT).await;
    assert_eq!(plain.expect("a plain answer")["cluster"], "pg");
    running.abort();
}

#[tokio::test]
async fn a_member_with_a_foreign_certificate_or_anothers_name_is_not_believed() {
    let (ours, stranger) = (Authority::new("ours"), Authority::new("stranger"));
    for (authority, name) in [(&stranger, "pg-1"), (&ours, "pg-2")] {
        let (address, running, _folder) = member(authority, name).await;
        let mut peers = following(trusting(&ours), address);
        let peer = until_contact(&mut peers, PeerContact::Unreachable).await;
        assert_eq!(peer.status, None, "{name}");
        let error = ask(trusting(&ours).to("pg-1", address), PEER_TIMEOUT).await;
        assert!(error.is_err(), "{name}: {error:?}");
        running.abort();
    }
}

/// Whoever cannot show a certificate is not asked without one.
#[tokio::test]
async fn a_member_without_tls_is_not_reached_plain() {
    let ours = Authority::new("ours");
    let server = crate::http::Server::start(standby(1)).await;
    let error = ask(trusting(&ours).to("pg-1", server.address), PEER_TIMEOUT).await;
    assert!(error.is_err(), "{error:?}");
}
