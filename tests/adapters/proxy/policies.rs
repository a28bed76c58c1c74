//! What a client can ask for: by options, by host name in TLS, and as whom a balancer announces it.

use podgres::core::routing::Server;
use podgres::proxy::{Limits, RefusalReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::cluster::{Cluster, cluster, member};
use super::routes::{Route, answer, complaint, read_to_end, until};

const IN_RECOVERY: &str = "SELECT pg_is_in_recovery()";

fn aged(staleness_ms: u64, lag_bytes: u64) -> Vec<Server> {
    let standby = Server {
        staleness_ms: Some(staleness_ms),
        lag_bytes: Some(lag_bytes),
        ..member(1)
    };
    vec![member(0), standby]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_limits_of_its_own() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), aged(5_000, 1 << 20)).await;
    for (options, standby) in [
        ("", "t"),
        ("-c podgres.max_staleness=4s", "f"),
        ("-c podgres.max_staleness=5s", "t"),
        ("--podgres.max_lag=1MB", "t"),
        ("-c podgres.max_lag=1023kB", "f"),
        ("-c podgres.max_staleness=1s -c podgres.max_staleness=1min", "t"),
    ] {
        let words = format!("sslmode=disable options='{options}'");
        assert_eq!(
            answer(&read.psql(&words, IN_RECOVERY).await),
            standby,
            "{options}"
        );
    }
    let shown = read
        .psql(
            "sslmode=disable options='-c podgres.max_lag=2MB'",
            "SHOW podgres.max_lag",
        )
        .await;
    assert_eq!(answer(&shown), "2MB", "the server gets the packet as it was");

    let words = "sslmode=disable options='-c podgres.max_staleness=often'";
    let refused = complaint(&read.psql(words, IN_RECOVERY).await);
    assert!(
        refused.contains("FATAL:  22023: invalid value for parameter \"podgres.max_staleness\"")
            || refused.contains("invalid value for parameter \"podgres.max_staleness\""),
        "{refused}"
    );
    assert!(refused.contains("HINT:"), "{refused}");
    assert_eq!(read.refused(RefusalReason::InvalidOption), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_shown_who_the_client_is() {
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let words = "sslmode=disable application_name=shop";
    let shown = answer(&write.psql(words, "SHOW application_name").await);
    assert_eq!(shown, "shop 127.0.0.1");
}

/// The `application_name` of a session that a balancer announces as that of 192.0.2.7, by the primary's word.
async fn announced(cluster: &Cluster, route: &Route, name: &str) -> String {
    let words = format!("user\0quick\0database\0postgres\0application_name\0{name}\0\0");
    let length = u32::try_from(words.len() + 8).expect("a length");
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.9 4000 5432\r\n";
    let startup = [&length.to_be_bytes()[..], &[0, 3, 0, 0], words.as_bytes()].concat();
    let mut stream = TcpStream::connect(route.address).await.expect("connect");
    let sent = stream.write_all(&[header, &startup[..]].concat()).await;
    sent.expect("sent");
    assert_eq!(stream.read_u8().await.expect("an answer"), b'R', "authenticated");
    let sql = format!("SELECT application_name FROM pg_stat_activity WHERE application_name LIKE '{name}%'");
    until("the session is there", || !cluster.admin(0, &sql).is_empty()).await;
    cluster.admin(0, &sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_shown_whom_a_balancer_announces_unless_they_are_not_to_be() {
    let cluster = cluster();
    let shown = Route::read_write(Limits::default(), vec![member(0)]).await;
    let name = announced(&cluster, &shown, "announced").await;
    assert_eq!(name, "announced 192.0.2.7");
    let hidden = Route::without_clients(vec![member(0)]).await;
    assert_eq!(announced(&cluster, &hidden, "hidden").await, "hidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_fallback_there_is_an_error_that_says_why() {
    let _cluster = cluster();
    let limits = super::routes::short_hold();
    let read = Route::read_only(limits, aged(5_000, 0)).await;
    let words = "sslmode=disable options='-c podgres.max_staleness=1s -c podgres.fallback=none'";
    let refused = complaint(&read.psql(words, IN_RECOVERY).await);
    assert!(
        refused.contains("server \"pg-1\" is 5000 ms stale, 1000 are allowed"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_causal_read_that_nobody_can_answer_goes_to_the_primary_or_fails() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), aged(0, 0)).await;
    let words = "sslmode=disable options='-c podgres.min_lsn=FF/0 -c podgres.wait=100ms'";
    assert_eq!(answer(&read.psql(words, IN_RECOVERY).await), "f");
    let strict =
        "sslmode=disable options='-c podgres.min_lsn=FF/0 -c podgres.wait=100ms -c podgres.fallback=none'";
    let refused = complaint(&read.psql(strict, IN_RECOVERY).await);
    assert!(
        refused.contains("no server has replayed up to FF/0 within 100 ms"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_name_in_tls_picks_a_policy() {
    let _cluster = cluster();
    let read = Route::read_only(super::routes::short_hold(), aged(0, 7)).await;
    let address = read.address.ip();
    let at = |name: &str| format!("hostaddr={address} host={name} sslmode=require");
    let own = answer(&read.psql(&at("any.db.test"), IN_RECOVERY).await);
    assert_eq!(own, "t", "a name that is no policy's");
    let named = answer(&read.psql(&at("primary.db.test"), IN_RECOVERY).await);
    assert_eq!(named, "f", "channel binding and all");
    let strict = read.psql(&at("strict.db.test"), IN_RECOVERY).await;
    let alert = complaint(&strict);
    assert!(alert.contains("SSL error"), "{alert}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_bytes_behind_the_promise_of_tls_are_an_attack() {
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let mut stream = TcpStream::connect(write.address).await.expect("connect");
    stream
        .write_all(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f])
        .await
        .expect("SSLRequest");
    assert_eq!(stream.read_u8().await.expect("answer"), b'S');
    stream
        .write_all(b"\0\0\0\x12\0\x03\0\0user\0app\0\0")
        .await
        .expect("startup packet");
    let said = read_to_end(&mut stream).await;
    assert!(
        String::from_utf8_lossy(&said).contains("received unencrypted data"),
        "{said:?}"
    );
    assert_eq!(write.refused(RefusalReason::EarlyData), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_has_its_limit_and_a_balancer_says_who_it_is() {
    let _cluster = cluster();
    let limits = Limits {
        max_connections_per_client: 1,
        ..Limits::default()
    };
    let write = Route::read_write(limits, vec![member(0)]).await;
    let quick = b"\0\0\0\x26\0\x03\0\0user\0quick\0database\0postgres\0\0";
    let begin = async |header: &[u8]| {
        let mut stream = TcpStream::connect(write.address).await.expect("connect");
        stream
            .write_all(&[header, &quick[..]].concat())
            .await
            .expect("write");
        let kind = stream.read_u8().await.expect("an answer");
        (kind, stream)
    };
    let (first, _kept) = begin(b"PROXY TCP4 192.0.2.1 192.0.2.9 4000 5432\r\n").await;
    assert_eq!(first, b'R', "authenticated");
    let (second, _kept) = begin(b"PROXY TCP4 192.0.2.2 192.0.2.9 4000 5432\r\n").await;
    assert_eq!(second, b'R', "another client");
    let (third, mut refused) = begin(b"PROXY TCP4 192.0.2.1 192.0.2.9 4001 5432\r\n").await;
    assert_eq!(third, b'E');
    let said = String::from_utf8_lossy(&read_to_end(&mut refused).await).into_owned();
    assert!(
        said.contains("53300") && said.contains("from this address"),
        "{said}"
    );
    let (garbled, _) = begin(b"PROXY TCP4 192.0.2.1\r\n").await;
    assert_eq!(garbled, b'E');
    assert_eq!(write.refused(RefusalReason::TooManyOfClient), 1);
    assert_eq!(write.refused(RefusalReason::ProxyHeader), 1);
}
