//! Servers that answer with anything but PostgreSQL's protocol: always an error, never a hang, a panic or a full memory.

use std::time::{Duration, Instant};

use podgres::core::supervision::Upstream;
use podgres::postgres::replication::{UpstreamError, ensure_slot, probe_upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::server::{access, fresh_address, replication};

const LIMIT: Duration = Duration::from_secs(2);

/// What a client gets from a server that sends `script` as soon as it has read something, again and again
/// if `forever`, and then waits for the client to go.
async fn answer_of(script: Vec<u8>, forever: bool) -> UpstreamError {
    let listener = TcpListener::bind((fresh_address(), 0)).await.expect("listener");
    let address = listener.local_addr().expect("address");
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(recite(stream, script.clone(), forever));
        }
    });
    let upstream = Upstream {
        host: "hostile".to_owned(),
        address: address.ip(),
        port: address.port(),
        slot: "podgres_pg_1".to_owned(),
        application_name: None,
    };
    let (login, began) = (replication(), Instant::now());
    let access = access(&upstream, &login, None);
    let (facts, slot) = tokio::join!(probe_upstream(&access, LIMIT), ensure_slot(&access, LIMIT));
    assert!(began.elapsed() < 3 * LIMIT);
    assert!(slot.is_err(), "{slot:?}");
    server.abort();
    facts.expect_err("no PostgreSQL")
}

async fn recite(mut stream: TcpStream, script: Vec<u8>, forever: bool) {
    let mut received = [0; 1024];
    let mut alive = stream.read(&mut received).await.is_ok() && stream.write_all(&script).await.is_ok();
    while alive && forever {
        alive = stream.write_all(&script).await.is_ok();
    }
    while alive && stream.read(&mut received).await.is_ok_and(|count| count > 0) {}
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

fn authentication(kind: u32, body: &[u8]) -> Vec<u8> {
    message(b'R', &[&kind.to_be_bytes(), body].concat())
}

/// The server lets everybody in and is ready for a command.
fn welcome() -> Vec<u8> {
    [authentication(0, b""), message(b'Z', b"I")].concat()
}

fn row(cells: &[&[u8]]) -> Vec<u8> {
    let mut body = u16::try_from(cells.len()).expect("few").to_be_bytes().to_vec();
    for cell in cells {
        body.extend(u32::try_from(cell.len()).expect("short").to_be_bytes());
        body.extend(*cell);
    }
    message(b'D', &body)
}

#[tokio::test]
async fn bytes_that_are_no_protocol() {
    for script in [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"R\xff\xff\xff\xff".to_vec(),
        b"R\x00\x00\x00\x03".to_vec(),
        b"R\x7f\xff\xff\xff".to_vec(),
        message(b'R', b"\x00\x00"),
        message(b'?', b""),
        message(b'Z', b"I"),
        authentication(77, b""),
        authentication(10, b""),
        authentication(10, b"SCRAM-SHA-256"),
        [welcome(), message(b'S', b"no end")].concat(),
    ] {
        let error = answer_of(script.clone(), false).await;
        assert_eq!(error.cause(), "protocol", "{script:?}: {error:?}");
    }
}

#[tokio::test]
async fn rows_that_are_no_answer() {
    for rows in [
        row(&[]),
        row(&[b"not a number", b"1", b"0/1"]),
        row(&[b"1", b"-1", b"0/1"]),
        row(&[b"1", b"1", b"\xff\xfe"]),
        row(&[b"1", b"1"]),
        message(b'D', b"\x00\x01"),
        message(b'D', b"\xff\xff\x00\x00\x00\x10x"),
        message(b'D', b"\x00\x01\x7f\xff\xff\xff"),
        row(&[b"1", b"1", b"0/1"]).repeat(100),
        message(b'G', b"\x00\x00\x00"),
        message(b'H', b"\x00\x00\x00"),
        message(b'W', b"\x00\x00\x00"),
    ] {
        let script = [welcome(), rows, message(b'C', b"X\0"), message(b'Z', b"I")].concat();
        let error = answer_of(script.clone(), false).await;
        assert_eq!(error.cause(), "protocol", "{script:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_prove_itself() {
    let offer = authentication(10, b"SCRAM-SHA-256\0\0");
    let rounds = authentication(11, b"r=x,s=AAAA,i=4294967295");
    let last = authentication(12, b"v=AAAA");
    for script in [
        [offer.clone(), welcome()].concat(),
        [offer.clone(), rounds].concat(),
        [offer.clone(), last].concat(),
        offer.repeat(2),
    ] {
        let error = answer_of(script, false).await;
        assert_eq!(error.cause(), "protocol", "{error:?}");
    }
    for (kind, body) in [(3, &b""[..]), (5, b"salt"), (7, b""), (10, b"SCRAM-SHA-1\0\0")] {
        let error = answer_of(authentication(kind, body), false).await;
        assert_eq!(error.cause(), "authentication_method", "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_never_ends() {
    let notice = message(b'N', &[b"M", &[b'x'; 1000][..], b"\0\0"].concat());
    for script in [
        [welcome(), notice.clone()].concat(),
        [authentication(0, b""), notice].concat(),
        message(b'S', b"name\0value\0"),
    ] {
        let error = answer_of(script, true).await;
        assert!(matches!(error.cause(), "protocol" | "timed_out"), "{error:?}");
    }
    for unfinished in [
        b"".to_vec(),
        b"R".to_vec(),
        welcome(),
        b"R\x00\x00\x10\x00abc".to_vec(),
    ] {
        let error = answer_of(unfinished, false).await;
        assert_eq!(error.cause(), "timed_out", "{error:?}");
    }
}

#[tokio::test]
async fn a_foreign_error_text_is_cut_and_cleaned() {
    let text = format!("SFATAL\0C57P03\0M{}\n\x1b[31m{}\0\0", "a", "b".repeat(20_000));
    let error = answer_of(message(b'E', text.as_bytes()), false).await;
    assert_eq!(error.cause(), "starting", "{error:?}");
    let shown = error.to_string();
    assert!(shown.len() < 600 && !shown.contains(['\n', '\x1b']), "{shown}");
}

#[tokio::test]
async fn random_bytes() {
    for _ in 0..200 {
        let mut random = fastrand::Rng::new();
        let seed = random.get_seed();
        let length = random.usize(1..200);
        let mut script = if random.bool() { welcome() } else { Vec::new() };
        script.extend(std::iter::repeat_with(|| random.u8(..)).take(length));
        // A length that may be right, so that bodies are read too.
        let at = script.len() - length;
        if script.len() > at + 4 {
            script[at + 1..at + 4].fill(0);
        }
        let listener = TcpListener::bind((fresh_address(), 0)).await.expect("listener");
        let address = listener.local_addr().expect("address");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(&script).await
        });
        let upstream = Upstream {
            host: "hostile".to_owned(),
            address: address.ip(),
            port: address.port(),
            slot: "podgres_pg_1".to_owned(),
            application_name: None,
        };
        let probe = probe_upstream(&access(&upstream, &replication(), None), LIMIT).await;
        assert!(probe.is_err(), "seed {seed}");
        drop(server.await);
    }
}
