//! Bytes that nobody should send, at every port and socket of a pod: they end their connection and nothing else.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::harness::{Demo, Start, member};
use crate::kit;

/// Inputs for each place.
const INPUTS: usize = 60;
/// Connections that are left open half way, for each place.
const STALLED: usize = 40;
/// Longer than a place takes to end what cannot become anything; a whole round has no wait in it.
const PATIENCE: Duration = Duration::from_secs(15);

/// What can be sent to and read from.
trait Stream: Read + Write + Send {
    fn end_of_input(&self);
}

impl Stream for TcpStream {
    fn end_of_input(&self) {
        self.shutdown(Shutdown::Write).ok();
    }
}

impl Stream for UnixStream {
    fn end_of_input(&self) {
        self.shutdown(Shutdown::Write).ok();
    }
}

#[derive(Clone, Debug)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Place {
    fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
        }
    }
}

fn startup(parameters: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + parameters.len()).expect("short");
    [&length.to_be_bytes()[..], &[0, 3, 0, 0], parameters].concat()
}

/// The beginnings of what is understood somewhere; none of them changes anything even if it is whole.
fn seeds() -> Vec<Vec<u8>> {
    vec![
        startup(b"user\0postgres\0database\0postgres\0\0"),
        startup(b"user\0nobody\0replication\0true\0\0"),
        startup(b"user\0x\0options\0-c podgres.max_lag=-1\0\0"),
        vec![0, 0, 0, 8, 4, 210, 22, 47],
        vec![0, 0, 0, 8, 4, 210, 22, 48],
        vec![0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2],
        vec![0x16, 3, 1, 0, 100, 1, 0, 0, 96, 3, 3],
        vec![0xff; 4],
        vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        b"GET /readiness?lag=%ff%00&mode=x HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"POST /read-only HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{}".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /peer/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n".to_vec(),
        b"{\"request\":\"status\"}\n".to_vec(),
        b"{\"request\":\"wait\",\"version\":-1,\"timeout_ms\":1e99}\n".to_vec(),
        b"{\"request\":\"start\",\"server\":{\"role\":\"standby\",\"upstream\":{}}}\n".to_vec(),
        b"{\"request\":\"run\",\"job\":{\"job\":\"clone\"}}\n".to_vec(),
        b"{\"request\":\"scale\",\"replicas\":\"x\"}\n".to_vec(),
        [b"[".repeat(20_000), b"\n".to_vec()].concat(),
        vec![b'x'; 70_000],
        b"\n\n\0\n".to_vec(),
    ]
}

/// A seed, or parts of two, with bytes changed, cut off or repeated; or chance alone.
fn input(random: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let pick = |random: &mut fastrand::Rng| seeds[random.usize(..seeds.len())].clone();
    let mut bytes = match random.u8(..4) {
        0 => std::iter::repeat_with(|| random.u8(..)).take(300).collect(),
        1 => {
            let (mut first, second) = (pick(random), pick(random));
            first.truncate(random.usize(..=first.len()));
            first.extend(second);
            first
        }
        _ => pick(random),
    };
    for _ in 0..random.usize(..4) {
        if !bytes.is_empty() {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
    }
    if random.bool() {
        bytes.truncate(random.usize(..=bytes.len()));
    }
    bytes
}

/// Sends it all and waits until the other side has ended the connection, which must come to that.
fn send(place: &Place, bytes: &[u8]) {
    let mut stream = place
        .connect()
        .unwrap_or_else(|error| panic!("{place:?}: {error}"));
    // It may hang up before it has everything.
    if stream.write_all(bytes).is_ok() {
        stream.end_of_input();
    }
    let begun = Instant::now();
    let mut chunk = [0; 4096];
    // A reset is an end too. A stream of lines (/peer/stream) ends when its reader goes.
    while begun.elapsed() < Duration::from_millis(300) && matches!(stream.read(&mut chunk), Ok(1..)) {}
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
    assert!(
        begun.elapsed() < PATIENCE,
        "{place:?} keeps a connection open after {shown:?}"
    );
}

fn assert_all_works(demo: &Demo, before: &[(u64, u64, u64)]) {
    let status = demo.wait_streaming(1);
    assert_eq!(pids(&status), before, "a process has ended");
    demo.sql(&["--read-write"], "INSERT INTO t VALUES (1)");
    demo.sql(&["--read-only"], "SELECT count(*) FROM t");
    assert_eq!(demo.get(0, "/readiness").expect("an answer").0, 200);
}

fn pids(status: &serde_json::Value) -> Vec<(u64, u64, u64)> {
    let pid = |name: &str, process: &str| member(status, name)["pids"][process].as_u64().expect("a pid");
    ["demo-0", "demo-1"]
        .map(|name| {
            (
                pid(name, "supervisor"),
                pid(name, "postgres"),
                pid(name, "sidecar"),
            )
        })
        .to_vec()
}

/// Resident bytes of a process.
fn resident(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .expect("a number")
        * 1024
}

#[test]
fn hostile_bytes_at_every_port_and_socket_end_their_connection_and_nothing_else() {
    let demo = Start::new(15).with(&["--replicas", "2"]).run();
    let status = demo.wait_streaming(1);
    demo.sql(&[], "CREATE TABLE t (i int)");
    let before = pids(&status);
    let state = demo.deployed();
    let pod = |ordinal| state.pod(podgres::core::member::Ordinal(ordinal)).expect("a pod");
    let run = |name: &str| demo.directory.join("pods").join(name).join("run");
    let mut places = vec![Place::Unix(state.control_socket.clone())];
    for ordinal in [0, 1] {
        for port in [
            state.ports.postgres,
            state.ports.read_write,
            state.ports.read_only,
            state.ports.http,
        ] {
            places.push(Place::Tcp((pod(ordinal).address, port).into()));
        }
        for socket in ["supervisor.sock", "podgres.sock"] {
            places.push(Place::Unix(run(&pod(ordinal).name).join(socket)));
        }
    }

    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let seeds = seeds();
    std::thread::scope(|scope| {
        for place in &places {
            let mut random = random.fork();
            let seeds = &seeds;
            scope.spawn(move || {
                for _ in 0..INPUTS {
                    send(place, &input(&mut random, seeds));
                }
            });
        }
    });
    assert_all_works(&demo, &before);

    // Clients that begin and never go on hold up nobody else.
    let stalled: Vec<Box<dyn Stream>> = places
        .iter()
        // PostgreSQL's own port has a limit of 100 of its own.
        .filter(|place| !matches!(place, Place::Tcp(address) if address.port() == state.ports.postgres))
        .flat_map(|place| (0..STALLED).map(move |_| place))
        .filter_map(|place| {
            let mut stream = place.connect().ok()?;
            let bytes = input(&mut random, &seeds);
            stream.write_all(&bytes[..bytes.len().min(7)]).ok()?;
            Some(stream)
        })
        .collect();
    assert!(
        stalled.len() > places.len() * STALLED / 2,
        "{} are open",
        stalled.len()
    );
    assert_all_works(&demo, &before);
    drop(stalled);
    for (supervisor, _, sidecar) in before {
        for pid in [supervisor, sidecar] {
            assert!(resident(pid) < 200 << 20, "{pid} takes {} bytes", resident(pid));
        }
    }
    for name in ["demo-0", "demo-1"] {
        for container in ["sidecar", "postgres"] {
            let log = demo.log(name, container);
            assert_eq!(kit::count(&log, "panicked"), 0, "{name} {container}:\n{log}");
        }
    }
}
