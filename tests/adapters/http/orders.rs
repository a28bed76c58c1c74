//! Orders: who may give them, what reaches the one who carries them out, and what is answered.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use podgres::core::operate::{Answer, Order, Outcome};
use podgres::core::signature::{MemberKey, SignedRequest, unhex};
use podgres::http::HttpState;
use podgres::http::authorise::{AdminToken, Token};
use podgres::http::serve::Limits;
use podgres::peers::{send_order, send_signed_order};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::lab::{PATIENCE, Server, primary};

const LIMIT: Duration = Duration::from_secs(10);

type Taken = Arc<Mutex<Vec<Order>>>;

/// A member that takes note of orders and answers them as done, and what it took.
async fn member() -> (Server, Taken) {
    member_that_answers(Outcome::Done, |_| {}).await
}

async fn member_that_answers(outcome: Outcome, more: impl FnOnce(&mut HttpState)) -> (Server, Taken) {
    let taken = Taken::default();
    let noted = Arc::clone(&taken);
    let change = move |state: &mut HttpState| {
        state.member_key = Arc::new(|| Some(MemberKey::derive("pg", "secret")));
        state.operator = Arc::new(move |order| {
            noted.lock().expect("lock").push(order);
            Box::pin(std::future::ready(Answer::new(outcome, "it is done")))
        });
        more(state);
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

const BEARER: &str = "HTTP/1.1\r\nAuthorization: Bearer s3cret";

/// One that knows the operator's token.
async fn with_token(outcome: Outcome) -> (Server, Taken) {
    let token = |state: &mut HttpState| {
        state.admin_token = Arc::new(|| Token::Set(AdminToken::new("s3cret").expect("a token")));
    };
    member_that_answers(outcome, token).await
}

/// The codes of Patroni's manual, for every path that takes an order, with the operator's token over TCP.
#[tokio::test]
async fn every_order_is_answered_with_patronis_code_for_how_it_ended() {
    for (outcome, code, word) in [
        (Outcome::Done, 200, "done"),
        (Outcome::Accepted, 202, "accepted"),
        (Outcome::Invalid, 400, "invalid"),
        (Outcome::Pending, 409, "pending"),
        (Outcome::NotPossible, 412, "not_possible"),
        (Outcome::Failed, 503, "failed"),
    ] {
        let (server, taken) = with_token(outcome).await;
        let mut session = Session::open(&server).await;
        let orders = [
            ("POST /switchover", r#"{"leader": "pg-0"}"#),
            ("POST /failover", r#"{"candidate": "pg-1"}"#),
            ("POST /restart", ""),
            ("POST /reinitialize", r#"{"force": true, "from-leader": false}"#),
            ("POST /pause", ""),
            ("POST /resume", ""),
            ("PATCH /config", r#"{"pause": true}"#),
            ("PUT /config", r#"{"pause": null}"#),
        ];
        for (order, body) in orders {
            let (status, answer) = session.ask(&format!("{order} {BEARER}"), body).await;
            let found = (status, answer["outcome"].as_str(), answer["message"].as_str());
            assert_eq!(found, (code, Some(word), Some("it is done")), "{order}");
        }
        assert_eq!(taken.lock().expect("lock").len(), orders.len());
    }
}

/// What Patroni has and podgres has not: never carried out by halves, and each answer says what to do instead.
#[tokio::test]
async fn what_is_not_taken_is_refused_with_what_to_do_instead() {
    let (server, taken) = with_token(Outcome::Done).await;
    let mut session = Session::open(&server).await;
    for (request, body, code, hint) in [
        (
            "POST /switchover",
            r#"{"leader": "pg-0", "scheduled_at": "2030-01-01T00:00+00"}"#,
            400,
            "CronJob",
        ),
        (
            "POST /restart",
            r#"{"schedule": "2030-01-01T00:00+00"}"#,
            400,
            "CronJob",
        ),
        (
            "POST /restart",
            r#"{"restart_pending": true}"#,
            400,
            "GET /patroni",
        ),
        ("POST /restart", r#"{"role": "replica"}"#, 400, "GET /patroni"),
        (
            "POST /restart",
            r#"{"postgres_version": "16.1"}"#,
            400,
            "GET /patroni",
        ),
        ("PATCH /config", r#"{"ttl": 30}"#, 400, "PODGRES_"),
        (
            "PATCH /config",
            r#"{"pause": true, "loop_wait": 5}"#,
            400,
            "PODGRES_",
        ),
        ("PATCH /config", "{}", 400, "PODGRES_"),
        (
            "PUT /config",
            r#"{"postgresql": {"parameters": {}}}"#,
            400,
            "PODGRES_",
        ),
        ("PATCH /config", r#"{"pause": "yes"}"#, 400, "true, false or null"),
        ("DELETE /switchover", "", 404, "none to delete"),
        ("DELETE /restart", "", 404, "none to delete"),
        ("POST /reload", "", 404, "change the StatefulSet"),
        ("POST /failsafe", "{}", 404, "confirmations"),
        ("POST /sigterm", "", 404, "Delete the pod"),
        ("POST /citus", "{}", 404, "Citus"),
        ("POST /mpp", "{}", 404, "Citus"),
        ("POST /config", r#"{"pause": true}"#, 405, "PATCH"),
        ("DELETE /config", "", 405, "PATCH"),
        ("DELETE /pause", "", 405, "takes POST"),
        ("DELETE /read-only", "", 405, "takes POST"),
    ] {
        let (status, answer) = session.ask(&format!("{request} {BEARER}"), body).await;
        assert_eq!(status, code, "{request} {body}: {answer}");
        let said = answer["hint"].as_str().unwrap_or_default();
        assert!(said.contains(hint), "{request} {body}: {answer}");
    }
    // Without authority none of it is told.
    for request in ["DELETE /switchover", "POST /reload", "PATCH /config"] {
        let (status, answer) = session.ask(&format!("{request} HTTP/1.1"), "").await;
        assert_eq!(status, 401, "{request}: {answer}");
    }
    assert!(taken.lock().expect("lock").is_empty());
}
