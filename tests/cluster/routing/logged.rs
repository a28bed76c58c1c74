//! What the log says of clients: who they are, also behind a balancer, and where they went.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use podgres::core::member::Ordinal;
use serde_json::Value;

use crate::harness::{Demo, Start, wait_for};

/// A startup packet of protocol 3.0.
fn startup(parameters: &str) -> Vec<u8> {
    let length = u32::try_from(8 + parameters.len()).expect("short");
    [&length.to_be_bytes(), &[0, 3, 0, 0], parameters.as_bytes()].concat()
}

/// Says something to a route of the only pod; the first byte of the answer.
fn said(demo: &Demo, port: u16, words: &[&[u8]]) -> u8 {
    let address = demo.deployed().pod(Ordinal(0)).expect("a pod").address;
    let mut stream = TcpStream::connect((address, port)).expect("connect");
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).expect("a limit");
    stream.write_all(&words.concat()).expect("write");
    let mut first = [0];
    stream.read_exact(&mut first).expect("an answer");
    first[0]
}

/// The one line about a client at that address.
fn line_about(demo: &Demo, client: &str) -> Value {
    let lines = || {
        let log = demo.log("demo-0", "sidecar");
        let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines
            .filter(|line: &Value| line["client"] == client)
            .collect::<Vec<_>>()
    };
    assert!(
        wait_for(Duration::from_secs(5), || !lines().is_empty()),
        "{client} is not in the log"
    );
    let mut lines = lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

#[test]
fn the_log_says_which_client_got_which_server_and_who_was_refused_why() {
    let demo = Start::new(16)
        .with(&["--replicas", "1"])
        .with(&["--set", "PODGRES_LOG_LEVEL=debug"])
        .with(&["--set", "PODGRES_TRUSTED_PROXIES=127.0.0.0/8"])
        .run();
    demo.wait_streaming(0);
    let ports = demo.deployed().ports;
    let user = |more: &str| startup(&format!("user\0app\0database\0postgres\0{more}\0"));
    let version_1 = b"PROXY TCP4 192.0.2.77 192.0.2.9 4000 5432\r\n";
    let version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x4e\xc0\0\x02\x09\x0f\xa0\x15\x38";

    assert_eq!(said(&demo, ports.read_write, &[version_1, &user("")]), b'R');
    let begun = line_about(&demo, "192.0.2.77");
    assert_eq!(begun["message"], "began a routed session");
    assert_eq!(
        (&begun["policy"], &begun["server"]),
        (&"read-write".into(), &"demo-0".into())
    );

    let replication = user("replication\0true\0");
    assert_eq!(said(&demo, ports.read_only, &[version_2, &replication]), b'E');
    let refused = line_about(&demo, "192.0.2.78");
    assert_eq!(
        (&refused["policy"], &refused["reason"]),
        (&"read-only".into(), &"replication".into())
    );
    let message = refused["message"].as_str().expect("a message");
    assert!(message.starts_with("refused a routed connection: "), "{message}");
}
