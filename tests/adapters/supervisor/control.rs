//! The socket against clients that are slow, many, silent or hostile. No PostgreSQL is started here.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use podgres::core::supervision::{MAX_LINE_BYTES, SupervisorReply, SupervisorRequest};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::pod::{LIMIT, Pod};

const STATUS: &[u8] = b"{\"request\":\"status\"}\n";
const HOSTILE_INPUTS: usize = 4000;

/// Sends `bytes`, says that nothing follows, and reads what comes back until the end.
async fn exchange(pod: &Pod, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(pod.socket()).await.unwrap();
    // The supervisor may have closed already.
    if stream.write_all(bytes).await.is_ok() {
        stream.shutdown().await.ok();
    }
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    read.expect("the connection stays open").ok();
    answer
}

fn refusal(answer: &[u8]) -> String {
    match serde_json::from_slice(answer) {
        Ok(SupervisorReply::Refused { message }) => message,
        other => panic!("not a refusal: {other:?} {:?}", String::from_utf8_lossy(answer)),
    }
}

#[tokio::test]
async fn garbage_is_refused_and_the_connection_closed() {
    let mut pod = Pod::empty();
    pod.supervise().await;
    let mode = std::fs::metadata(pod.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    for garbage in [
        "\n",
        "hello\n",
        "{}\n",
        "{\"request\":\"dance\"}\n",
        "[[[[\n",
        "{\"request\":\"wait\"}\n",
    ] {
        let message = refusal(&exchange(&pod, garbage.as_bytes()).await);
        assert!(message.starts_with("could not read the request: "), "{message}");
    }
    let deep = "[".repeat(MAX_LINE_BYTES) + "\n";
    refusal(&exchange(&pod, deep.as_bytes()).await);
    let long = vec![b'x'; MAX_LINE_BYTES + 1];
    assert_eq!(
        refusal(&exchange(&pod, &long).await),
        "line longer than 65536 bytes"
    );
    // A line cut off is no request, and several lines are several requests.
    assert_eq!(exchange(&pod, &STATUS[..10]).await, b"");
    let two = exchange(&pod, &[STATUS, STATUS].concat()).await;
    assert_eq!(two.split(|byte| *byte == b'\n').count(), 3);
}

/// Random bytes, and valid requests with some bytes changed, cut off or doubled.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let valid = prop::sample::select(vec![
        STATUS,
        b"{\"request\":\"wait\",\"version\":0,\"timeout_ms\":18446744073709551615}\n",
        b"{\"request\":\"grant_licence\",\"duration_ms\":18446744073709551615}\n",
        b"{\"request\":\"grant_licence\",\"duration_ms\":null}\n",
        b"{\"request\":\"cancel\"}\n",
        b"{\"request\":\"stop\",\"mode\":\"fast\"}\n",
        b"{\"request\":\"reload\",\"server\":{\"role\":\"standby\",\"upstream\":null}}\n",
        b"{\"request\":\"start\",\"server\":{\"role\":\"standby\",\"upstream\":{\"host\":\"\\u0000\",\"address\":\"::1\",\
          \"port\":65535,\"slot\":\"'; --\"}}}\n",
    ]);
    let changed = (
        valid,
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        1..4_usize,
    );
    let changed = changed.prop_map(|(line, changes, times)| {
        let mut bytes = line.repeat(times);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    });
    prop_oneof![
        4 => changed,
        2 => vec(any::<u8>(), 0..200),
        1 => "[\\[\\]{}\",:0-9a-z\\\\\n ]{0,300}".prop_map(String::into_bytes),
    ]
}

#[tokio::test]
async fn hostile_bytes_do_no_harm() {
    let mut pod = Pod::empty();
    pod.supervise().await;
    let before = pod.ask(SupervisorRequest::Status).await;
    let mut runner = TestRunner::deterministic();
    let inputs = hostile();
    for count in 0..HOSTILE_INPUTS {
        let bytes = inputs.new_tree(&mut runner).unwrap().current();
        let answer = exchange(&pod, &bytes).await;
        for line in answer
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let reply = serde_json::from_slice::<SupervisorReply>(line);
            assert!(
                reply.is_ok(),
                "input {count} {bytes:?}: {}",
                String::from_utf8_lossy(line)
            );
        }
        if count % 100 == 0 {
            pod.ask(SupervisorRequest::Status).await;
        }
    }
    let after = pod.ask(SupervisorRequest::Status).await;
    assert_eq!(
        (before.pid, before.data_directory),
        (after.pid, after.data_directory)
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", after.pid)).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak_kb: u32 = peak.trim_end_matches("kB").trim().parse().unwrap();
    assert!(peak_kb < 64 * 1024, "the supervisor grew to {peak_kb} kB");
}

#[tokio::test]
async fn silent_slow_and_many_clients_block_nobody() {
    let mut pod = Pod::empty();
    pod.supervise().await;
    let waiting = {
        let version = pod.ask(SupervisorRequest::Status).await.version;
        SupervisorRequest::Wait {
            version,
            timeout_ms: 1500,
        }
    };
    let crowd = async {
        let mut crowd = Vec::new();
        for number in 0..200 {
            let mut stream = UnixStream::connect(pod.socket()).await.unwrap();
            match number % 3 {
                0 => {}
                1 => stream.write_all(&STATUS[..7]).await.unwrap(),
                _ => while stream.try_write(&STATUS.repeat(50)).is_ok() {},
            }
            crowd.push(stream);
            let asked = Instant::now();
            pod.ask(SupervisorRequest::Status).await;
            assert!(
                asked.elapsed() < Duration::from_secs(2),
                "took {:?}",
                asked.elapsed()
            );
        }
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", pod.pid()))
            .unwrap()
            .count();
        assert!(descriptors < 64, "{descriptors} file descriptors are open");
        crowd
    };
    // The long poll of a client that has shown itself valid lasts through all of it.
    let (_crowd, _) = tokio::join!(crowd, pod.ask(waiting));
}

#[tokio::test]
async fn a_long_poll_wakes_every_client_and_ends_with_its_own() {
    let mut pod = Pod::empty();
    pod.supervise().await;
    let version = pod.ask(SupervisorRequest::Status).await.version;
    let timeout_ms = u64::MAX;
    let wait = SupervisorRequest::Wait { version, timeout_ms };
    let polling = pod.ask(wait);
    let granting = async {
        tokio::task::yield_now().await;
        pod.ask(SupervisorRequest::GrantLicence { until_ms: None }).await
    };
    let (woken, granted) = tokio::join!(polling, granting);
    assert_eq!(woken.version, granted.version);
    assert!(woken.version > version);
}
