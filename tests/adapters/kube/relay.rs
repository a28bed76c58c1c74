//! A proxy between client and API server that counts requests and does to them what networks and servers do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podgres::kube::Reach;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::harness::loopback;

/// What becomes of a request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nothing arrives, nothing is answered, the connection stays.
    Swallow,
    /// It is carried out, and the connection cut in place of the answer.
    LoseReply,
    Delay(Duration),
    /// The answer's status line and headers, and its body, in place of the server's.
    Answer(&'static str, String),
}

#[derive(Default)]
struct State {
    /// Method, target and body of each request, as it came.
    requests: Vec<(String, String, String)>,
    /// For requests of this method, or all; so many more times.
    fault: Option<(Option<&'static str>, Fault, usize)>,
}

pub(crate) struct Relay {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Nothing flows any more, though all connections stay.
    frozen: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(loopback()).await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let state = Arc::<Mutex<State>>::default();
        let frozen = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, Arc::clone(&state), frozen.subscribe()));
        Self {
            address,
            state,
            frozen,
            tasks,
        }
    }

    pub(crate) fn reach(&self) -> Reach {
        assert!(!self.tasks.is_empty(), "the relay has ended");
        Reach::Url {
            url: format!("http://{}", self.address),
            token_file: None,
        }
    }

    pub(crate) fn fault(&self, method: Option<&'static str>, fault: Fault, times: usize) {
        self.state.lock().expect("state").fault = Some((method, fault, times));
    }

    pub(crate) fn heal(&self) {
        self.state.lock().expect("state").fault = None;
        self.frozen.send_replace(false);
    }

    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Method, target and body of each request since the last time.
    pub(crate) fn requests(&self) -> Vec<(String, String, String)> {
        std::mem::take(&mut self.state.lock().expect("state").requests)
    }

    /// Since the last time: watches, other reads, writes.
    pub(crate) fn counted(&self) -> (usize, usize, usize) {
        let requests = self.requests();
        let count = |is: &dyn Fn(&str, &str) -> bool| {
            requests
                .iter()
                .filter(|(method, target, _)| is(method, target))
                .count()
        };
        let watch = |target: &str| target.contains("watch=1");
        (
            count(&|method, target| method == "GET" && watch(target)),
            count(&|method, target| method == "GET" && !watch(target)),
            count(&|method, _| method != "GET"),
        )
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    state: Arc<Mutex<State>>,
    frozen: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.expect("a connection");
        let (state, frozen) = (Arc::clone(&state), frozen.clone());
        // A connection's error ends it, as on a network.
        connections.spawn(async move { drop(carry(client, server, &state, frozen).await) });
    }
}

/// One request a connection: the server is told to close, which the client hears.
async fn carry(
    mut client: TcpStream,
    server: SocketAddr,
    state: &Mutex<State>,
    mut frozen: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let Some((head, body)) = request(&mut client).await? else {
        return Ok(());
    };
    let mut words = head.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let fault = {
        let mut state = state.lock().expect("state");
        let body = String::from_utf8_lossy(&body).into_owned();
        state.requests.push((method.clone(), target, body));
        match &mut state.fault {
            Some((wanted, fault, times)) if *times > 0 && wanted.is_none_or(|wanted| wanted == method) => {
                *times -= 1;
                Some(fault.clone())
            }
            _ => None,
        }
    };
    let frozen_for_ever = frozen.wait_for(|frozen| !frozen);
    if frozen_for_ever.await.is_err() {
        return Ok(());
    }
    match &fault {
        Some(Fault::Swallow) => return std::future::pending().await,
        Some(Fault::Answer(status, body)) => {
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            return client.write_all(answer.as_bytes()).await;
        }
        Some(Fault::Delay(delay)) => tokio::time::sleep(*delay).await,
        Some(Fault::LoseReply) | None => {}
    }
    let mut upstream = TcpStream::connect(server).await?;
    let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let head = format!("{line}\r\nConnection: close\r\n{headers}");
    upstream.write_all(head.as_bytes()).await?;
    upstream.write_all(&body).await?;
    answer(&mut client, &mut upstream, fault.as_ref(), frozen).await
}

async fn answer(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    fault: Option<&Fault>,
    mut frozen: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut chunk, mut nothing) = (vec![0; 16 * 1024], [0; 1]);
    loop {
        let read = tokio::select! {
            read = upstream.read(&mut chunk) => read?,
            gone = from_client.read(&mut nothing) => return gone.map(drop),
        };
        if matches!(fault, Some(Fault::LoseReply)) {
            return Ok(());
        }
        if frozen.wait_for(|frozen| !frozen).await.is_err() || read == 0 {
            return Ok(());
        }
        to_client.write_all(&chunk[..read]).await?;
    }
}

/// A request's head with its empty line, and its body; `None`: the client has gone.
async fn request(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head
        .to_ascii_lowercase()
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next().and_then(|text| text.parse().ok()))
        .unwrap_or(0);
    while bytes.len() < end + length {
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some((head, bytes.split_off(end))))
}
