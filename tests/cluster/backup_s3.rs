//! Backups to a bucket: a real S3 server, and between it and podgres a proxy that answers with errors or cuts.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::backup::{answer, text, told};
use crate::harness::{LIMIT, podgres, programs, wait_for};
use crate::kit::shared;

/// The server, on an address of its own; it ends with the test.
struct S3 {
    child: Child,
    address: SocketAddr,
}

impl S3 {
    fn start() -> Self {
        let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/s3");
        let found = Command::new(tool).output().expect("tests/tools/s3");
        let program = answer(&found);
        let address = free_address();
        let mut child = Command::new(program.trim());
        child.args(["-H", &address.ip().to_string(), "-p", &address.port().to_string()]);
        let child = child
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("S3 server");
        let server = Self { child, address };
        let made =
            || request(address, "PUT /bucket").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"));
        assert!(wait_for(LIMIT, made), "the S3 server does not answer");
        server
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

fn request(address: SocketAddr, line: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(
        stream,
        "{line} HTTP/1.1\r\nHost: s3\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Pass,
    Error,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
}

/// Passes requests on, one a connection, unless their fate is another one.
fn proxy(to: SocketAddr, fate: impl Fn(&str) -> Fate + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("proxy");
    let address = listener.local_addr().expect("an address");
    let fate = Arc::new(fate);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let fate = Arc::clone(&fate);
            thread::spawn(move || serve(client, to, &*fate));
        }
    });
    address
}

fn serve(mut client: TcpStream, to: SocketAddr, fate: &(dyn Fn(&str) -> Fate + Send + Sync)) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let left = match fate(head.lines().next()?) {
        Fate::Error => {
            client
                .write_all(b"HTTP/1.1 500 broken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .ok()?;
            return None;
        }
        Fate::Cut(bytes) => Some(bytes),
        Fate::Pass => None,
    };
    let mut server = TcpStream::connect(to).ok()?;
    server
        .write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())
        .ok()?;
    let (mut from, mut into) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || match left {
        Some(bytes) => {
            let mut body = vec![0; bytes];
            if from.read_exact(&mut body).is_ok() {
                into.write_all(&body).ok();
            }
            into.shutdown(Shutdown::Both).ok();
            from.shutdown(Shutdown::Both).ok();
        }
        None => {
            std::io::copy(&mut from, &mut into).ok();
        }
    });
    std::io::copy(&mut server, &mut client).ok();
    client.shutdown(Shutdown::Both).ok();
    Some(())
}

fn at(address: SocketAddr, words: &[&str]) -> Command {
    let mut command = podgres();
    command
        .args(words)
        .env("PG_BINDIR", programs(16))
        .env("AWS_ENDPOINT_URL", format!("http://{address}"))
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    command
}

const BUCKET: &str = "s3://bucket/some/prefix";

#[test]
fn a_bucket_that_fails_now_and_then_gets_whole_backups() {
    let (server, demo) = (S3::start(), shared());
    let key = demo.directory.parent().expect("a folder").join("backup-key");
    std::fs::write(&key, "5e".repeat(32)).expect("key");
    let requests = AtomicU32::new(0);
    let flaky = proxy(server.address, move |line| {
        match requests.fetch_add(1, Ordering::Relaxed) % 7 {
            2 => Fate::Error,
            5 if line.starts_with("PUT") => Fate::Cut(300),
            _ => Fate::Pass,
        }
    });
    let backup = [
        "backup",
        "--dir",
        text(&demo.directory),
        "--to",
        BUCKET,
        "--key-file",
        text(&key),
    ];
    answer(&at(flaky, &backup).output().expect("backup"));
    answer(
        &at(flaky, &[&backup[..], &["--kind", "logical"]].concat())
            .output()
            .expect("backup"),
    );
    let verify = ["verify", "--all", "--from", BUCKET, "--key-file", text(&key)];
    let verified = answer(&at(flaky, &verify).output().expect("verify"));
    assert_eq!(verified.matches(": verified\n").count(), 2, "{verified}");
    let output = at(server.address, &["verify", "--from", BUCKET])
        .output()
        .expect("verify");
    assert_eq!(
        output.status.code(),
        Some(65),
        "without the key: {}",
        told(&output)
    );
    an_unusable_bucket(&server, &backup);
    a_dead_holder_of_the_lock(&server, &backup);
}

/// Parts are refused for good: exit code 69, and no backup more.
fn an_unusable_bucket(server: &S3, backup: &[&str]) {
    let broken = proxy(server.address, |line| {
        let data = line.contains("partNumber") || line.contains("tar.zst");
        if data { Fate::Error } else { Fate::Pass }
    });
    let output = at(broken, backup).output().expect("backup");
    assert_eq!(output.status.code(), Some(69), "{}", told(&output));
    let list = answer(
        &at(server.address, &["backups", "--from", BUCKET, "-o", "json"])
            .output()
            .expect("backups"),
    );
    assert_eq!(list.matches("\"sequence\"").count(), 2, "{list}");
}

/// A run that was killed holds the lock until its heart has not beaten for fifteen seconds; a living one keeps it.
fn a_dead_holder_of_the_lock(server: &S3, backup: &[&str]) {
    let slow = [backup, &["--max-rate", "100kB"]].concat();
    let mut first = at(server.address, &slow)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("backup");
    let locked =
        || request(server.address, "GET /bucket/some/prefix/lock.json").is_some_and(|a| a.contains(" 200 "));
    assert!(wait_for(LIMIT, locked), "the first run does not begin");
    let output = at(server.address, backup).output().expect("backup");
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    first.kill().expect("kill");
    first.wait().expect("wait");
    let begun = Instant::now();
    answer(&at(server.address, backup).output().expect("backup"));
    assert!(
        begun.elapsed() > Duration::from_secs(14),
        "the lock of a run that might live was taken"
    );
}
