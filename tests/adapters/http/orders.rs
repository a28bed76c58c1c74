//! Orders: who may give them, what reaches the one who carries them out, and what is answered.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use podgres::core::operate::{Answer, Order, Outcome};
use podgres::core::signature::{MemberKey, SignedRequest, unhex};
use podgres::http::HttpState;
use podgres::http::serve::Limits;
use podgres::peers::{send_order, send_signed_order};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::lab::{PATIENCE, Server, primary};

const LIMIT: Duration = Duration::from_secs(10);

/// A member that takes note of orders and answers them as done, and what it took.
async fn member() -> (Server, Arc<Mutex<Vec<Order>>>) {
    let taken: Arc<Mutex<Vec<Order>>> = Arc::default();
    let noted = Arc::clone(&taken);
    let change = move |state: &mut HttpState| {
        state.member_key = Arc::new(|| Some(MemberKey::derive("pg", "secret")));
        state.operator = Arc::new(move |order| {
            noted.lock().expect("lock").push(order);
            Box::pin(std::future::ready(Answer::new(Outcome::Done, "it is done")))
        });
    };
    let server = Server::start_with(
        primary(0),
        Limits::default(),
        Duration::from_mins(1),
        change,
        vec![],
    );
    (server.await, taken)
}

fn restart() -> Order {
    Order::Restart { member: None }
}

#[tokio::test]
async fn a_members_signature_has_authority_and_another_secrets_has_not() {
    let (server, taken) = member().await;
    let key = MemberKey::derive("pg", "secret");
    let sent = send_signed_order(server.address, &restart(), &key, LIMIT).await;
    let (status, body) = sent.expect("an answer");
    assert_eq!(
        (status.as_u16(), body["outcome"].as_str()),
        (200, Some("done")),
        "{body}"
    );
    assert_eq!(*taken.lock().expect("lock"), [restart()]);
    for (cluster, secret) in [("pg", "other"), ("other", "secret")] {
        let key = MemberKey::derive(cluster, secret);
        let sent = send_signed_order(server.address, &restart(), &key, LIMIT).await;
        assert_eq!(sent.expect("an answer").0.as_u16(), 401);
    }
    let url = format!("http://{}", server.address);
    let sent = send_order(&url, &restart(), None, LIMIT).await;
    assert_eq!(sent.expect("an answer").0.as_u16(), 401);
    // No token file is set here: no token would help.
    let sent = send_order(&url, &restart(), Some("any"), LIMIT).await;
    assert_eq!(sent.expect("an answer").0.as_u16(), 403);
    assert_eq!(taken.lock().expect("lock").len(), 1);
}

/// One connection on which requests follow each other.
struct Session(TcpStream);

impl Session {
    async fn open(server: &Server) -> Self {
        Self(TcpStream::connect(server.address).await.expect("connect"))
    }

    async fn ask(&mut self, head: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let text = format!("{head}\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.write_all(text.as_bytes()).await.expect("write");
        let mut answer = Vec::new();
        loop {
            let mut chunk = [0; 4096];
            let read = timeout(PATIENCE, self.0.read(&mut chunk))
                .await
                .expect("in time")
                .expect("read");
            assert!(
                read > 0,
                "the connection ended: {}",
                String::from_utf8_lossy(&answer)
            );
            answer.extend_from_slice(&chunk[..read]);
            let text = String::from_utf8_lossy(&answer).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            if let Ok(body) = serde_json::from_str(body) {
                return (head[9..12].parse().expect("a status"), body);
            }
        }
    }

    async fn challenge(&mut self) -> Vec<u8> {
        let (_, body) = self.ask("GET /challenge HTTP/1.1", "").await;
        unhex(body["challenge"].as_str().expect("a challenge").as_bytes()).expect("hexadecimal digits")
    }
}

fn signed(challenge: &[u8], path: &str, body: &str) -> String {
    MemberKey::derive("pg", "secret").sign(&SignedRequest {
        challenge,
        method: "POST",
        path,
        body: body.as_bytes(),
    })
}

#[tokio::test]
async fn a_recorded_request_is_worth_nothing_and_an_altered_one_neither() {
    let (server, taken) = member().await;
    let mut session = Session::open(&server).await;
    let challenge = session.challenge().await;
    let signature = signed(&challenge, "/pause", "{}");
    let head = format!("POST /pause HTTP/1.1\r\nAuthorization: {signature}");
    assert_eq!(session.ask(&head, "{}").await.0, 200);
    let (status, body) = session.ask(&head, "{}").await;
    assert_eq!(status, 401, "a second time on the same connection");
    assert!(
        body["error"].as_str().expect("an error").contains("challenge"),
        "{body}"
    );

    let mut other = Session::open(&server).await;
    assert_eq!(other.ask(&head, "{}").await.0, 401, "no challenge was asked for");
    other.challenge().await;
    assert_eq!(
        other.ask(&head, "{}").await.0,
        401,
        "another connection's challenge"
    );
    for (path, body) in [("/resume", "{}"), ("/pause?x", "{}"), ("/pause", "{ }")] {
        let challenge = other.challenge().await;
        let signature = signed(&challenge, "/pause", "{}");
        let head = format!("POST {path} HTTP/1.1\r\nAuthorization: {signature}");
        assert_eq!(other.ask(&head, body).await.0, 401, "{path} {body}");
    }
    assert_eq!(*taken.lock().expect("lock"), [Order::Pause { paused: true }]);
}

#[tokio::test]
async fn a_bad_or_endless_body_is_refused() {
    let (server, taken) = member().await;
    let mut session = Session::open(&server).await;
    for (path, body, expected) in [
        ("/switchover", "{\"candidat\": 1}".to_owned(), 400),
        ("/failover", String::new(), 400),
        ("/restart", "x".repeat(60_000), 400),
        ("/switchover", "x".repeat(70_000), 401),
    ] {
        let challenge = session.challenge().await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nAuthorization: {}",
            signed(&challenge, path, &body)
        );
        let (status, answer) = session.ask(&head, &body).await;
        assert_eq!(status, expected, "{path}: {answer}");
    }
    assert!(taken.lock().expect("lock").is_empty());
    let wrong_verb = server.ask("GET /switchover").await;
    assert_eq!(wrong_verb.status, 405);
    assert!(wrong_verb.head.contains("allow: post"), "{}", wrong_verb.head);
}
