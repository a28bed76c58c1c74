//! Protocol 3.2 byte by byte through the routes: versions and options that are negotiated, and cancel keys of more than four bytes.

use std::time::Duration;

use podgres::core::routing::RouteMode;
use podgres::postgres::tls::ClientTls;
use podgres::proxy::Limits;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::cluster::{DOMAIN, cluster, loopback, member};
use super::encrypted;
use super::newer::{clients, newer};
use super::routes::{PATIENCE, Route, sqlstate};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];
/// What PostgreSQL 18 makes under protocol 3.2.
const LONG_KEY_BYTES: usize = 32;
/// Every session asks for it.
const UNKNOWN_OPTION: &[u8] = b"_pq_.unknown_to_all";

trait Line: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Line for T {}

/// Length word, code, and the rest.
fn packet(code: [u16; 2], rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + rest.len()).expect("short");
    let code = code.map(u16::to_be_bytes).concat();
    [&length.to_be_bytes(), code.as_slice(), rest].concat()
}

/// A connection to a route, after the handshake if there is one.
async fn line(route: &Route, tls: Option<&ClientTls>) -> Box<dyn Line> {
    let mut stream = TcpStream::connect(route.address).await.expect("connect");
    let Some(tls) = tls else {
        return Box::new(stream);
    };
    stream.write_all(&SSL_REQUEST).await.expect("SSLRequest");
    assert_eq!(stream.read_u8().await.expect("an answer"), b'S');
    let name = format!("any.{DOMAIN}").try_into().expect("name");
    let connected = tls.connector().connect(name, stream).await;
    Box::new(connected.expect("handshake"))
}

/// The next message: type, and body.
async fn message(line: &mut dyn Line) -> (u8, Vec<u8>) {
    let kind = line.read_u8().await.expect("a message");
    let length = line.read_u32().await.expect("its length");
    let mut body = vec![0; usize::try_from(length).expect("length") - 4];
    line.read_exact(&mut body).await.expect("its body");
    (kind, body)
}

/// A session as far as to its first `ReadyForQuery`.
struct Session {
    line: Box<dyn Line>,
    /// The body of `NegotiateProtocolVersion`.
    negotiated: Vec<u8>,
    /// The body of `BackendKeyData`: process and key.
    key: Vec<u8>,
}

impl Session {
    async fn open(mut line: Box<dyn Line>, minor: u16, user: &str) -> Self {
        let user = format!("user\0{user}\0database\0template1\0");
        let startup = [user.as_bytes(), UNKNOWN_OPTION, b"\0on\0\0"].concat();
        let startup = packet([3, minor], &startup);
        line.write_all(&startup).await.expect("startup packet");
        let (mut negotiated, mut key) = (Vec::new(), Vec::new());
        loop {
            match message(&mut *line).await {
                (b'v', body) => negotiated = body,
                (b'K', body) => key = body,
                (b'Z', _) => break,
                (b'R' | b'S', _) => {}
                (other, body) => panic!("{} {}", char::from(other), String::from_utf8_lossy(&body)),
            }
        }
        Self {
            line,
            negotiated,
            key,
        }
    }

    /// Sleeps until it is cancelled: the SQLSTATE of its end. `cancel` sends the requests.
    async fn cancelled(&mut self, cancel: impl AsyncFn(Vec<u8>)) -> String {
        let query = b"Q\0\0\0\x18SELECT pg_sleep(60)\0";
        self.line.write_all(query).await.expect("a query");
        let request = packet([1234, 5678], &self.key);
        let sending = async {
            loop {
                // One that comes before the query is forgotten by the server.
                cancel(request.clone()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let (kind, body) = tokio::select! {
            answer = timeout(PATIENCE, async { loop {
                let answer = message(&mut *self.line).await;
                if answer.0 != b'T' { break answer; }
            }}) => answer.expect("cancelled in time"),
            () = sending => unreachable!("it is repeated for ever"),
        };
        sqlstate(&[&[kind, 0, 0, 0, 0], body.as_slice()].concat())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_cancel_key_reaches_its_server() {
    let (cluster, clients) = (cluster(), clients());
    let newer = newer(&clients, &cluster);
    let servers = || vec![newer.server.clone(), member(1)];
    let tls = ClientTls::open(&cluster.tls()).expect("authority");
    let pass = Route::read_write(Limits::default(), servers()).await;
    let end = encrypted::route(&cluster, RouteMode::ReadWrite, Limits::default(), servers()).await;
    // These lead to the other server.
    let other = Route::read_only(Limits::default(), servers()).await;
    let other_end = encrypted::route(&cluster, RouteMode::ReadOnly, Limits::default(), servers()).await;
    for (kind, route, cancels, tls) in [
        ("plain", &pass, &other, None),
        ("passed through", &pass, &pass, Some(&tls)),
        ("plain, where TLS would end", &end, &other_end, None),
        ("ended", &end, &other_end, Some(&tls)),
    ] {
        let mut session = Session::open(line(route, tls).await, 2, "app").await;
        assert_eq!(session.key.len(), 4 + LONG_KEY_BYTES, "{kind}");
        let ended = session.cancelled(async |request| {
            let mut line = line(cancels, tls).await;
            line.write_all(&request).await.expect("request");
            // A close, in whatever form, is the answer.
            drop(line.read(&mut [0; 16]).await);
        });
        assert_eq!(ended.await, "57014", "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_options_are_between_client_and_server() {
    let (cluster, clients) = (cluster(), clients());
    let newer = newer(&clients, &cluster);
    // Asked for, of whom, answered, and bytes of the cancel key.
    for (minor, (server, user), answered, key) in [
        (0, (&newer.server, "app"), 0_u32, 4),
        (2, (&newer.server, "app"), 2, LONG_KEY_BYTES),
        (9999, (&newer.server, "app"), 2, LONG_KEY_BYTES),
        (2, (&member(0), "quick"), 0, 4),
    ] {
        let route = Route::read_write(Limits::default(), vec![server.clone()]).await;
        let session = Session::open(line(&route, None).await, minor, user).await;
        let version = (3 << 16) + answered;
        let one_option = 1_u32.to_be_bytes();
        let expected = [&version.to_be_bytes()[..], &one_option, UNKNOWN_OPTION, &[0]].concat();
        assert_eq!(session.negotiated, expected, "3.{minor} to {user}");
        assert_eq!(session.key.len(), 4 + key, "3.{minor} to {user}");
    }
}

/// PostgreSQL 18 makes keys of 32 bytes; the protocol allows for more.
#[tokio::test(flavor = "multi_thread")]
async fn the_longest_cancel_key_passes_whole() {
    let listener = TcpListener::bind((loopback(97), 0)).await.expect("port");
    let mut server = member(0);
    server.address = listener.local_addr().expect("address");
    let route = Route::read_write(Limits::default(), vec![server]).await;
    let key: Vec<u8> = (0..=255).collect();
    let request = packet([1234, 5678], &[&[0, 0, 0, 1], key.as_slice()].concat());
    let mut client = TcpStream::connect(route.address).await.expect("connect");
    client.write_all(&request).await.expect("request");
    let (mut member, _) = timeout(PATIENCE, listener.accept())
        .await
        .expect("in time")
        .expect("it");
    let mut got = vec![0; request.len()];
    member.read_exact(&mut got).await.expect("the request");
    assert_eq!(got, request);
}
