//! What goes through a session that is up: pipelines, notifications, and thousands that say nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{join_all, poll_fn};
use podgres::core::routing::Server;
use podgres::proxy::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, NoTls};

use super::cluster::{cluster, loopback, member};
use super::routes::{PATIENCE, Route, until};

const IDLE_SESSIONS: u64 = 2_000;
/// `AuthenticationOk`, `ReadyForQuery`.
pub(super) const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_keeps_its_order() {
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let client = write.connect().await.expect("session");
    let statement = client
        .prepare("SELECT $1::int4, pg_backend_pid()")
        .await
        .expect("prepared");
    // All are sent before the first answer is read.
    let asked = (0..500_i32).map(|number| {
        let (client, statement) = (&client, &statement);
        async move {
            client
                .query_one(statement, &[&number])
                .await
                .expect("row")
                .get::<_, i32>(0)
        }
    });
    let answers = timeout(PATIENCE, join_all(asked)).await.expect("in time");
    assert_eq!(answers, (0..500).collect::<Vec<i32>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_come_to_a_session_that_asks_nothing() {
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let mut config = tokio_postgres::Config::new();
    config
        .host(write.address.ip().to_string())
        .port(write.address.port());
    config.user("quick").dbname("postgres");
    let (listener, mut connection) = config.connect(NoTls).await.expect("session");
    let (heard, mut notifications) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                drop(heard.send(notification.payload().to_owned()));
            }
        }
    });
    listener.batch_execute("LISTEN news").await.expect("LISTEN");
    let speaker = write.connect().await.expect("session");
    for number in 0..3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let said = format!("NOTIFY news, '{number}'");
        speaker.batch_execute(&said).await.expect("NOTIFY");
        let payload = timeout(PATIENCE, notifications.recv()).await.expect("in time");
        assert_eq!(payload, Some(number.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_idle_sessions_all_answer() {
    more_files();
    let sessions = Arc::new(AtomicU64::new(0));
    let server = Server {
        address: idle_server(Arc::clone(&sessions)).await,
        ..member(0)
    };
    let limits = Limits {
        max_connections: 3_000,
        ..Limits::default()
    };
    let write = Route::read_write(limits, vec![server]).await;
    let address = write.address;
    let connecting = (0..IDLE_SESSIONS).map(|_| begin(address));
    let connecting = futures_util::stream::iter(connecting).buffer_unordered(100);
    let mut clients: Vec<TcpStream> = timeout(PATIENCE, connecting.collect()).await.expect("in time");
    assert_eq!(write.stats.sessions.load(Ordering::Relaxed), IDLE_SESSIONS);
    assert_eq!(sessions.load(Ordering::Relaxed), IDLE_SESSIONS);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asking = clients.iter_mut().enumerate().map(|(number, client)| async move {
        let word = u64::try_from(number).expect("a number").to_be_bytes();
        client.write_all(&word).await.expect("sent");
        let mut back = [0; 8];
        client.read_exact(&mut back).await.expect("answered");
        assert_eq!(back, word);
    });
    timeout(PATIENCE, join_all(asking)).await.expect("all answer");
    drop(clients);
    until("all sessions are over on both sides", || {
        write.stats.sessions.load(Ordering::Relaxed) + sessions.load(Ordering::Relaxed) == 0
    })
    .await;
}

/// The test itself has both ends of everything: four sockets a session.
fn more_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("more open files");
}

pub(super) async fn begin(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    stream
        .write_all(b"\0\0\0\x12\0\x03\0\0user\0app\0\0")
        .await
        .expect("startup packet");
    let mut welcome = [0; WELCOME.len()];
    stream.read_exact(&mut welcome).await.expect("welcome");
    assert_eq!(welcome, WELCOME);
    stream
}

/// Lets everybody in and gives back what it is sent. `sessions` counts those that are there.
async fn idle_server(sessions: Arc<AtomicU64>) -> SocketAddr {
    let socket = TcpListener::bind((loopback(98), 0)).await.expect("port");
    let address = socket.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let sessions = Arc::clone(&sessions);
            tokio::spawn(async move {
                sessions.fetch_add(1, Ordering::Relaxed);
                if read_startup(&mut stream).await.is_ok() && stream.write_all(WELCOME).await.is_ok() {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                }
                sessions.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    address
}

pub(super) async fn read_startup(stream: &mut TcpStream) -> std::io::Result<()> {
    let length = stream.read_u32().await?;
    let mut rest = vec![0; usize::try_from(length).expect("a length") - 4];
    stream.read_exact(&mut rest).await.map(drop)
}
