//! A server on a port of its own, what it shows, and a plain client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podgres::core::cluster::{ClusterView, PeerContact, PeerEntry};
use podgres::core::member::Ordinal;
use podgres::core::policy::Leadership;
use podgres::core::status::MemberStatus;
use podgres::http::serve::{Limits, Listener, serve};
use podgres::http::{Beat, HttpState, router};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A streaming standby of "pg", from the text that another member would send.
pub(crate) fn standby(ordinal: u32) -> MemberStatus {
    member(ordinal, "standby", "streaming", true)
}

/// A primary of "pg".
pub(crate) fn primary(ordinal: u32) -> MemberStatus {
    member(ordinal, "primary", "running", false)
}

fn member(ordinal: u32, role: &str, state: &str, in_recovery: bool) -> MemberStatus {
    let value = json!({
        "name": format!("pg-{ordinal}"), "cluster": "pg", "ordinal": ordinal, "uid": "u",
        "role": role, "state": state, "situation": state, "message": "", "held_data": "some",
        "system_identifier": "7", "accepting": true, "was_streaming": in_recovery, "writable": !in_recovery, "job": null,
        "server": {
            "server_version": 150_018, "system_identifier": "7", "timeline": 1, "in_recovery": in_recovery,
            "receiver_streaming": in_recovery, "flush_lsn": "0/3000100", "replay_lsn": "0/3000100",
            "upstream_lsn": null, "replay_age_ms": null, "postmaster_start_time": "", "replication": [],
            "slots": [], "oldest_wal_lsn": null, "wal_segment_size_bytes": 16_777_216, "replication_role": true,
        },
        "host": "127.0.0.1", "postgres_port": 5432, "http_port": 8008, "read_write_port": 6432,
        "read_only_port": 6433, "pids": null, "version": "0.1.0", "clones_total": 0,
    });
    serde_json::from_value(value).expect("a status")
}

pub(crate) fn view(me: MemberStatus) -> ClusterView {
    let peer = primary(0);
    let peer = PeerEntry {
        ordinal: Ordinal(0),
        name: peer.name.clone(),
        status: Some(peer),
        contact: PeerContact::Connected,
        heard_ms_ago: Some(1),
    };
    ClusterView {
        cluster: "pg".to_owned(),
        leadership: Some(Leadership::Fixed),
        durability: "async".to_owned(),
        term: 1,
        lease_holder: None,
        read_only: false,
        read_only_switch: None,
        paused: false,
        lease: None,
        peers: if me.ordinal == Ordinal(0) {
            vec![]
        } else {
            vec![peer]
        },
        me,
    }
}

/// A server on a free port of its own; ends with the test.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) view: watch::Sender<Arc<ClusterView>>,
    pub(super) stop: Option<oneshot::Sender<()>>,
    pub(super) running: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Server {
    pub(crate) async fn start(me: MemberStatus) -> Self {
        let limits = Limits::default();
        Self::start_with(me, limits, Duration::from_mins(1), |_| {}, vec![]).await
    }

    pub(super) async fn start_with(
        me: MemberStatus,
        limits: Limits,
        beat: Duration,
        change: impl FnOnce(&mut HttpState),
        mut listeners: Vec<Listener>,
    ) -> Self {
        let (view, seen) = watch::channel(Arc::new(view(me)));
        let mut state = HttpState::new(seen, Beat::new(beat), Duration::from_secs(2));
        change(&mut state);
        let listener = Listener::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .expect("listen");
        let Listener::Tcp(tcp, _) = &listener else {
            panic!("not TCP")
        };
        let address = tcp.local_addr().expect("address");
        listeners.push(listener);
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            serve(listeners, router(state), limits, async { drop(stopped.await) }).await;
        });
        Self {
            address,
            view,
            stop: Some(stop),
            running,
        }
    }

    /// Publishes a changed status of the member itself.
    pub(crate) fn change(&self, change: impl FnOnce(&mut MemberStatus)) {
        self.view.send_modify(|view| change(&mut Arc::make_mut(view).me));
    }

    pub(super) async fn ask(&self, request: &str) -> Answer {
        let socket = TcpStream::connect(self.address).await.expect("connect");
        exchange(socket, request).await
    }
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

pub(super) async fn exchange(mut socket: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> Answer {
    let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    send(&mut socket, &request).await
}

pub(super) async fn send(socket: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), request: &str) -> Answer {
    socket.write_all(request.as_bytes()).await.expect("write");
    let mut text = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut text))
        .await
        .expect("an answer in time")
        .expect("read");
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {text:?}"));
    Answer {
        status: head[9..12].parse().expect("status"),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}
