//! Every path and method, and what may change something.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use podgres::core::cluster::check::CHECK_PATHS;
use podgres::http::HttpState;
use podgres::http::authorise::{AdminToken, Token};
use podgres::http::serve::{Limits, Listener};
use tokio::net::{TcpStream, UnixStream};

use super::lab::{Server, exchange, primary, send, standby};

#[tokio::test]
async fn every_path_answers_get_head_and_options() {
    let server = Server::start(standby(1)).await;
    let fails = [
        "/",
        "/primary",
        "/master",
        "/read-write",
        "/leader",
        "/standby-leader",
        "/standby_leader",
    ];
    let needs_sync = ["/synchronous", "/sync", "/quorum"];
    let pages = [
        "/patroni",
        "/cluster",
        "/history",
        "/config",
        "/challenge",
        "/explain",
        "/metrics",
        "/debug/decisions",
    ];
    for path in CHECK_PATHS.iter().map(|(path, _)| *path).chain(pages) {
        let fails = fails.contains(&path) || needs_sync.contains(&path) || path.starts_with("/read-only-");
        let expected = if fails { 503 } else { 200 };
        for method in ["GET", "HEAD", "OPTIONS"] {
            let answer = server.ask(&format!("{method} {path}")).await;
            assert_eq!(answer.status, expected, "{method} {path}: {}", answer.body);
            assert_eq!(answer.body.is_empty(), method != "GET", "{method} {path}");
            if method == "GET" && path != "/metrics" {
                answer.json();
            }
        }
    }
    let probe = server
        .ask("GET /replica?lag=16MB&replication_state=streaming")
        .await;
    assert_eq!(
        (probe.status, probe.json()["reason"].as_str()),
        (
            200,
            Some(
                "standby, streaming, 0 bytes behind 0/3000100, which was told 0 ms ago, limit 16777216 bytes"
            )
        )
    );
    for (query, said) in [
        ("lag=x", "lag"),
        ("lag=%FF", "lag"),
        ("lag=1XB", "1XB"),
        ("mode=none", "apply or write"),
    ] {
        let answer = server.ask(&format!("GET /readiness?{query}")).await;
        assert_eq!(answer.status, 503, "{query}");
        assert!(answer.body.contains(said), "{query}: {}", answer.body);
    }
    let accepting = |kind: &str| format!("GET /metrics HTTP/1.1\r\nAccept: {kind}\r\nX-Rest:");
    let metrics = server
        .ask(&accepting(
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
        ))
        .await;
    assert!(metrics.head.contains("application/openmetrics-text") && metrics.body.contains("# EOF"));
    for asked in [
        accepting("text/plain;version=0.0.4;q=1,*/*;q=0.1"),
        "GET /metrics".to_owned(),
    ] {
        let metrics = server.ask(&asked).await;
        assert!(
            metrics.head.contains("text/plain; version=0.0.4"),
            "{}",
            metrics.head
        );
        assert!(!metrics.body.contains("# EOF"), "{}", metrics.body);
    }
}

#[tokio::test]
async fn a_change_of_the_view_shows_in_the_next_answer() {
    let server = Server::start(primary(0)).await;
    assert_eq!(server.ask("GET /primary").await.status, 200);
    server.change(|me| me.writable = false);
    let answer = server.ask("GET /primary").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("not allowed"), "{}", answer.body);
    let cluster = server.ask("GET /cluster").await.json();
    assert_eq!(cluster["members"][0]["writable"], false);
}

#[tokio::test]
async fn a_loop_that_stands_still_fails_liveness_but_not_startup() {
    let beat = Duration::from_millis(1);
    let server = Server::start_with(standby(1), Limits::default(), beat, |_| {}, vec![]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    for (path, expected) in [
        ("/startup", 200),
        ("/liveness", 503),
        ("/readiness", 503),
        ("/cluster", 200),
    ] {
        assert_eq!(
            server.ask(&format!("GET {path}")).await.status,
            expected,
            "{path}"
        );
    }
}

#[tokio::test]
async fn what_would_change_something_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("podgres.sock");
    let unix = Listener::unix(&path).await.expect("listen");
    assert_eq!(
        std::fs::metadata(&path).expect("socket").permissions().mode() & 0o777,
        0o660
    );
    let token = |state: &mut HttpState| {
        state.admin_token = Arc::new(|| Token::Set(AdminToken::new("right").expect("a token")));
    };
    let server = Server::start_with(
        primary(0),
        Limits::default(),
        Duration::from_mins(1),
        token,
        vec![unix],
    )
    .await;
    for method in ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "BREW"] {
        for path in ["/switchover", "/cluster", "/primary"] {
            let answer = server.ask(&format!("{method} {path}")).await;
            assert_eq!(answer.status, 401, "{method} {path}");
            assert!(
                answer.head.contains("www-authenticate: bearer"),
                "{method} {path}"
            );
            assert!(
                answer.json()["hint"].as_str().expect("hint").contains("Bearer"),
                "{method} {path}"
            );
        }
    }
    let with = async |token: &str, path: &str| {
        let mut socket = TcpStream::connect(server.address).await.expect("connect");
        let head = format!("Host: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n");
        send(&mut socket, &format!("POST {path} HTTP/1.1\r\n{head}")).await
    };
    assert_eq!(with("wrong", "/cluster").await.status, 401);
    let allowed = with("right", "/cluster").await;
    assert_eq!(allowed.status, 405);
    assert!(
        allowed.head.contains("allow: get, head, options"),
        "{}",
        allowed.head
    );
    assert_eq!(with("right", "/nowhere").await.status, 404);
    let local = UnixStream::connect(&path).await.expect("connect");
    assert_eq!(exchange(local, "POST /cluster").await.status, 405);
    assert_eq!(
        server.ask("GET /nowhere?x").await.json()["error"],
        "unknown path \"/nowhere\""
    );
}

#[tokio::test]
async fn a_browser_gets_the_dashboard_where_a_load_balancer_gets_the_check() {
    let server = Server::start(standby(1)).await;
    assert_eq!(server.ask("GET /").await.status, 503, "this is no primary");
    let socket = TcpStream::connect(server.address).await.expect("connect");
    let browser = "GET / HTTP/1.1\r\nHost: x\r\nAccept: text/html,*/*;q=0.8\r\nConnection: close\r\n\r\n";
    let page = send(&mut { socket }, browser).await;
    assert_eq!(page.status, 200, "{}", page.head);
    assert!(page.head.contains("text/html"), "{}", page.head);
    assert!(
        page.body.contains("<td>pg-1</td><td>standby</td>"),
        "{}",
        page.body
    );
}
