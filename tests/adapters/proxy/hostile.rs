//! Clients that are wrong, slow, or mean harm.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use podgres::core::routing::RouteMode;
use podgres::proxy::{Limits, RefusalReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::cluster::{cluster, loopback, member};
use super::encrypted;
use super::routes::{PATIENCE, Route, answer, long_hold, read_to_end, sqlstate, until};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

fn startup(version: [u8; 4], parameters: &str) -> Vec<u8> {
    let length = u32::try_from(8 + parameters.len()).expect("short");
    [&length.to_be_bytes()[..], &version, parameters.as_bytes()].concat()
}

fn impatient() -> Limits {
    Limits {
        startup_timeout: Duration::from_millis(500),
        hold: Duration::from_millis(100),
        ..Limits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_first_packets_get_an_error_response() {
    let write = Route::read_write(impatient(), vec![]).await;
    for (bytes, expected) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "08P01"),
        (vec![0xff; 4], "08P01"),
        (vec![0, 0, 0, 7], "08P01"),
        (startup([0, 3, 0, 0], "user\0app"), "08P01"),
        (startup([0, 2, 0, 0], "\0"), "0A000"),
        (startup([0, 4, 0, 0], "user\0app\0\0"), "0A000"),
        (startup([0x04, 0xd2, 0x16, 0x31], ""), "0A000"),
        (startup([0, 3, 0, 0], "user\0app\0\0"), "57P03"),
    ] {
        assert_eq!(sqlstate(&write.exchange(&bytes).await), expected, "{bytes:?}");
    }
    assert_eq!(write.refused(RefusalReason::ProtocolViolation), 4);
    assert_eq!(write.refused(RefusalReason::UnsupportedProtocol), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_before_the_answer_to_a_request_are_an_attack() {
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let session = startup([0, 3, 0, 0], "user\0app\0\0");
    for request in [SSL_REQUEST, GSSENC_REQUEST] {
        let answer = write.exchange(&[&request[..], &session].concat()).await;
        assert_eq!(sqlstate(&answer), "08P01");
    }
    // Also while the connection is held.
    let held = Route::read_write(long_hold(), vec![]).await;
    let mut stream = TcpStream::connect(held.address).await.expect("connect");
    stream.write_all(&SSL_REQUEST).await.expect("write");
    until("it is held", || held.stats.held.load(Ordering::Relaxed) == 1).await;
    stream.write_all(b"x").await.expect("write");
    assert_eq!(sqlstate(&read_to_end(&mut stream).await), "08P01");
    assert_eq!(write.refused(RefusalReason::EarlyData), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_encryption_may_be_asked_for_once() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), vec![member(2)]).await;
    let mut stream = TcpStream::connect(read.address).await.expect("connect");
    for request in [GSSENC_REQUEST, SSL_REQUEST] {
        stream.write_all(&request).await.expect("write");
        assert_eq!(stream.read_u8().await.expect("answer"), b'N');
    }
    let session = startup([0, 3, 0, 0], "user\0app\0database\0postgres\0\0");
    stream.write_all(&session).await.expect("write");
    assert_eq!(stream.read_u8().await.expect("authentication"), b'R');
    for request in [GSSENC_REQUEST, SSL_REQUEST] {
        let mut stream = TcpStream::connect(read.address).await.expect("connect");
        stream.write_all(&request).await.expect("write");
        assert_eq!(stream.read_u8().await.expect("answer"), b'N');
        stream.write_all(&request).await.expect("write");
        assert_eq!(sqlstate(&read_to_end(&mut stream).await), "0A000");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_minor_protocol_is_left_to_the_server() {
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let mut stream = TcpStream::connect(write.address).await.expect("connect");
    let session = startup([0, 3, 0, 2], "user\0app\0database\0postgres\0_pq_.x\x001\0\0");
    stream.write_all(&session).await.expect("write");
    assert_eq!(stream.read_u8().await.expect("NegotiateProtocolVersion"), b'v');
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_goes_through_untouched() {
    let cluster = cluster();
    let mut server = member(0);
    server.address.set_ip(loopback(97));
    let tls = tokio::process::Command::new("openssl")
        .args(["s_server", "-quiet", "-www", "-alpn", "postgresql", "-accept"])
        .arg(server.address.to_string())
        .args(["-cert".as_ref(), cluster.tls().join("tls.crt").as_os_str()])
        .args(["-key".as_ref(), cluster.tls().join("tls.key").as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let _tls = tls.expect("openssl");
    let write = Route::read_write(Limits::default(), vec![server]).await;
    let client = tokio::process::Command::new("openssl")
        .args([
            "s_client",
            "-brief",
            "-verify_return_error",
            "-alpn",
            "postgresql",
            "-connect",
        ])
        .arg(write.address.to_string())
        .args(["-CAfile".as_ref(), cluster.tls().join("ca.crt").as_os_str()])
        .stdin(Stdio::null())
        .output();
    let output = timeout(PATIENCE, client)
        .await
        .expect("in time")
        .expect("openssl");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("Verification: OK") && text.contains("CN = server"),
        "{text}"
    );
    let none = Route::read_write(impatient(), vec![]).await;
    assert_eq!(
        none.exchange(&[0x16, 3, 1, 0, 2, 1, 0]).await,
        [0x15, 3, 3, 0, 2, 2, 80]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_closed_in_time_and_harms_nobody() {
    let _cluster = cluster();
    let write = Route::read_write(impatient(), vec![member(0)]).await;
    let mut stream = TcpStream::connect(write.address).await.expect("connect");
    let begun = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        for byte in startup([0, 3, 0, 0], &"x\0y\0".repeat(1000)) {
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let mut answer_bytes = Vec::new();
    tokio::select! {
        () = drip => panic!("it was let drip to the end"),
        _end = timeout(PATIENCE, reader.read_to_end(&mut answer_bytes)) => {}
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(sqlstate(&answer_bytes), "08P01");
    assert_eq!(write.refused(RefusalReason::StartupTimeout), 1);
    assert_eq!(answer(&write.psql("", "SELECT 1").await), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_startup_packets_share_one_time_limit() {
    let write = Route::read_write(impatient(), vec![]).await;
    let mut stream = TcpStream::connect(write.address).await.expect("connect");
    sleep(Duration::from_millis(300)).await;
    stream.write_all(&GSSENC_REQUEST).await.expect("write");
    assert_eq!(stream.read_u8().await.expect("answer"), b'N');
    sleep(Duration::from_millis(300)).await;
    let _closed_early = stream.write_all(&startup([0, 3, 0, 0], "user\0app\0\0")).await;
    assert_eq!(sqlstate(&read_to_end(&mut stream).await), "08P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_never_taken_back_by_a_reset() {
    let write = Route::read_write(impatient(), vec![]).await;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(write.address).await.expect("connect");
        let request = b"GET / HTTP/1.1\r\n".repeat(2000);
        stream.write_all(&request).await.expect("write");
        let mut message = Vec::new();
        let reading = timeout(PATIENCE, stream.read_to_end(&mut message)).await;
        reading.expect("closed in time").expect("closed, not reset");
        stream.write_all(b"more").await.expect("still not reset");
        assert_eq!(sqlstate(&message), "08P01");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_clients_take_the_startup_places_for_a_while_only() {
    let limits = Limits {
        max_connections: 1,
        max_startups: 1,
        ..impatient()
    };
    let write = Route::read_write(limits, vec![]).await;
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(write.address).await.expect("connect"));
    }
    let answer = write.exchange(&startup([0, 3, 0, 0], "user\0app\0\0")).await;
    assert_eq!(sqlstate(&answer), "57P03");
    assert_eq!(write.refused(RefusalReason::StartupTimeout), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_client_ends_its_session() {
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let mut stream = TcpStream::connect(write.address).await.expect("connect");
    let session = startup([0, 3, 0, 0], "user\0app\0database\0postgres\0\0");
    stream.write_all(&session).await.expect("write");
    assert_eq!(stream.read_u8().await.expect("authentication"), b'R');
    stream.shutdown().await.expect("shutdown");
    read_to_end(&mut stream).await;
    until("it is over", || write.stats.sessions.load(Ordering::Relaxed) == 0).await;
}

/// The way to the server ends with the client's last word; the way back does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_said_its_last_word_still_gets_the_whole_answer() {
    const ROWS: usize = 5_000;
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let mut stream = TcpStream::connect(write.address).await.expect("connect");
    let session = startup([0, 3, 0, 0], "user\0quick\0database\0postgres\0\0");
    stream.write_all(&session).await.expect("write");
    let mut said = Vec::new();
    while !said.ends_with(b"Z\0\0\0\x05I") {
        let read = timeout(PATIENCE, stream.read_buf(&mut said)).await;
        assert!(read.expect("in time").expect("read") > 0, "{said:?}");
    }
    let sql = format!("SELECT repeat('x', 1000) FROM generate_series(1, {ROWS})\0");
    let length = u32::try_from(4 + sql.len()).expect("short").to_be_bytes();
    let query = [b"Q", &length[..], sql.as_bytes()].concat();
    stream.write_all(&query).await.expect("write");
    stream.shutdown().await.expect("shutdown");
    let answer = read_to_end(&mut stream).await;
    let row = "x".repeat(1_000);
    let rows = String::from_utf8_lossy(&answer).matches(&row).count();
    assert_eq!(rows, ROWS);
    let complete = format!("SELECT {ROWS}\0Z\0\0\0\x05I");
    assert!(answer.ends_with(complete.as_bytes()), "the end is missing");
}

/// Whether it ends in time, and nothing of it stays.
async fn ends(route: &Route, stream: &mut TcpStream, what: &str) {
    let begun = Instant::now();
    read_to_end(stream).await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{what}: {:?}",
        begun.elapsed()
    );
    until(what, || route.sessions.of("pg-0") == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_stop_half_way_to_tls_or_in_a_header_are_closed_in_time() {
    /// The beginning of a ClientHello of 512 bytes.
    const HALF_HELLO: [u8; 9] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc];
    let cluster = cluster();
    let pass = Route::read_write(impatient(), vec![member(0)]).await;
    let end = encrypted::route(&cluster, RouteMode::ReadWrite, impatient(), vec![member(0)]).await;
    for (route, what) in [(&pass, "passed through"), (&end, "ended")] {
        for asks in [true, false] {
            let mut stream = TcpStream::connect(route.address).await.expect("connect");
            if asks {
                stream.write_all(&SSL_REQUEST).await.expect("write");
                assert_eq!(stream.read_u8().await.expect("answer"), b'S');
            }
            stream.write_all(&HALF_HELLO).await.expect("write");
            ends(route, &mut stream, what).await;
        }
    }
    let mut stream = TcpStream::connect(pass.address).await.expect("connect");
    stream.write_all(b"\r\n\r\n\0\r\nQUI").await.expect("a beginning");
    ends(&pass, &mut stream, "10 bytes of a header").await;
    assert_eq!(answer(&pass.psql("", "SELECT 1").await), "1");
}

/// What a stranger says of the address that it comes from is no startup packet, and is not believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_from_whom_nobody_trusts_is_refused() {
    let _cluster = cluster();
    let write = Route::without_proxies(vec![member(0)]).await;
    let session = startup([0, 3, 0, 0], "user\0quick\0database\0postgres\0\0");
    let version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x09\x0f\xa0\x15\x38";
    for header in [
        &b"PROXY TCP4 192.0.2.1 192.0.2.9 4000 5432\r\n"[..],
        &version_2[..],
    ] {
        let said = write.exchange(&[header, &session].concat()).await;
        assert_eq!(sqlstate(&said), "08P01");
    }
    assert_eq!(write.refused(RefusalReason::ProtocolViolation), 2);
    assert_eq!(write.stats.sessions_total.load(Ordering::Relaxed), 0);
}

/// Bytes that are often nearly right.
fn nonsense(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut rest: Vec<u8> = (0..random.usize(0..200)).map(|_| random.u8(..)).collect();
    let version: [u8; 4] = match random.u8(0..6) {
        0 => [0, 3, 0, 0],
        1 => [0x04, 0xd2, 0x16, random.u8(0x2c..0x34)],
        2 => random.u32(..).to_be_bytes(),
        3 => return SSL_REQUEST.into_iter().chain(rest).collect(),
        4 => return [0x16, 3, 1].into_iter().chain(rest).collect(),
        _ => return rest,
    };
    if random.bool() {
        rest = format!("user\0{}\0\0", "u".repeat(random.usize(0..50))).into_bytes();
    }
    let claimed = if random.bool() {
        8 + rest.len()
    } else {
        random.usize(0..12_000)
    };
    let length = u32::try_from(claimed).expect("small");
    [&length.to_be_bytes()[..], &version, &rest].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_hostile_clients_do_no_harm() {
    let _cluster = cluster();
    let limits = Limits {
        startup_timeout: Duration::from_millis(200),
        ..impatient()
    };
    let read = Arc::new(Route::read_only(limits, vec![member(1), member(2)]).await);
    let seed = fastrand::u64(..);
    let mut workers = JoinSet::new();
    for worker in 0..40_u64 {
        let route = Arc::clone(&read);
        workers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed ^ worker);
            for _ in 0..75 {
                let bytes = nonsense(&mut random);
                let mut stream = TcpStream::connect(route.address).await.expect("connect");
                let _closed_early = stream.write_all(&bytes).await;
                if random.bool() {
                    let _closed_early = stream.shutdown().await;
                }
                let mut first = [0_u8; 1];
                let reading = timeout(PATIENCE, stream.read(&mut first)).await;
                if let Ok(1) = reading.unwrap_or_else(|_| panic!("seed {seed}: no end of {bytes:?}")) {
                    assert!(
                        b"ENSR\x15".contains(&first[0]),
                        "seed {seed}: {first:?} to {bytes:?}"
                    );
                }
            }
        });
    }
    workers.join_all().await;
    assert_eq!(answer(&read.psql("sslmode=prefer", "SELECT 1").await), "1");
    until("nothing stays", || {
        read.sessions.of("pg-1") + read.sessions.of("pg-2") == 0
    })
    .await;
    assert!(read.refused(RefusalReason::ProtocolViolation) > 0);
}
