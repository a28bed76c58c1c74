//! The demo's parts by themselves: control socket, addresses, process trees, connection strings.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podgres::core::member::{Ordinal, Topology};
use podgres::core::policy::Leadership;
use podgres::demo::addresses::claim;
use podgres::demo::dns::Zone;
use podgres::demo::state::{Network, PodState, Ports};
use podgres::demo::tree::{self, Scope};
use podgres::demo::{DemoError, DemoState, Target, dsn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

use super::lab::{Demo, LIMIT, ORDERLY, state_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_socket_survives_hostile_bytes() {
    let demo = Demo::of(ORDERLY, |options| options.replicas = Some(1)).await;
    let socket = demo.state().control_socket;
    assert_eq!(fs::metadata(&socket).expect("a socket").mode() & 0o777, 0o600);
    let endless = vec![b'['; 100_000];
    let hostile: [&[u8]; 8] = [
        b"\n",
        b"{}\n",
        b"\xff\xfe\x00\n",
        b"{\"request\":\"scale\",\"replicas\":-1}\n",
        b"{\"request\":\"scale\",\"replicas\":99999999999}\n",
        b"{\"request\":\"delete-pod\",\"ordinal\":\"../..\"}\n",
        b"{\"request\":\"explode\"}\n",
        &endless,
    ];
    for bytes in hostile {
        let mut stream = UnixStream::connect(&socket).await.expect("connected");
        // The demo may close before it has read all.
        drop(stream.write_all(bytes).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(
            tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer))
                .await
                .expect("an answer or an end"),
        );
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.contains("\"refused\""), "{answer}");
    }
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(UnixStream::connect(&socket).await.expect("connected"));
    }
    // One connection, several requests.
    let mut stream = UnixStream::connect(&socket).await.expect("connected");
    stream
        .write_all(b"{\"request\":\"status\"}\n{\"request\":\"status\"}\n")
        .await
        .expect("sent");
    stream.shutdown().await.expect("shut down");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    assert_eq!(answer.lines().count(), 2, "{answer}");
    demo.stop().await;
}

#[allow(clippy::unnecessary_wraps, reason = "the shape that claim asks for")]
fn zone(port: u16) -> Result<Zone, DemoError> {
    let topology = Topology {
        cluster: "pg".to_owned(),
        service: "pg".to_owned(),
        namespace: "default".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        first_ordinal: Ordinal(0),
    };
    Ok(Zone::new(topology, port).expect("a zone"))
}

#[tokio::test]
async fn demos_with_one_seed_get_networks_of_their_own_and_keep_them() {
    let seed = fastrand::u64(..);
    let hosts = [10, 11, 12];
    let first = claim(None, seed, &hosts, zone).await.expect("a network");
    let second = claim(None, seed, &hosts, zone).await.expect("a network");
    assert_ne!(first.network, second.network);
    let kept = (first.network, first.ports);
    first.server.close().await;
    let again = claim(Some(kept), fastrand::u64(..), &hosts, zone)
        .await
        .expect("a network");
    assert_eq!((again.network, again.ports), kept);
    // Somebody else listens where a pod would.
    again.server.close().await;
    let guest = TcpListener::bind((kept.0.host(11), kept.1.read_only))
        .await
        .expect("a port");
    let elsewhere = claim(Some(kept), seed, &hosts, zone).await.expect("a network");
    assert_ne!(elsewhere.network, kept.0);
    drop(guest);
}

#[test]
fn killing_a_tree_takes_what_has_left_its_session_and_nothing_else() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let spawn = || {
        let script = "setsid sh -c 'sleep 1000 & sleep 1000' & sh -c 'sleep 1000 & wait' & wait";
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0).stdin(Stdio::null());
        command.spawn().expect("a shell")
    };
    let (mut ours, mut other) = (spawn(), spawn());
    let scope = |pid| Scope {
        roots: [pid].into(),
        ..Scope::default()
    };
    let members = |pid| scope(pid).members(&tree::processes());
    let began = Instant::now();
    while members(ours.id()).len() < 6 || members(other.id()).len() < 6 {
        assert!(began.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(10));
    }
    let (doomed, spared) = (members(ours.id()), members(other.id()));
    assert!(runtime.block_on(tree::kill(&scope(ours.id()))));
    assert!(
        doomed
            .iter()
            .all(|pid| state_of(*pid).is_none_or(|state| state == 'Z')),
        "{doomed:?}"
    );
    assert!(
        spared
            .iter()
            .all(|pid| state_of(*pid).is_some_and(|state| state != 'Z')),
        "{spared:?}"
    );
    assert!(runtime.block_on(tree::kill(&scope(other.id()))));
    ours.wait().expect("reaped");
    other.wait().expect("reaped");
}

#[test]
fn row_71_connection_strings_carry_any_password_and_any_number_of_hosts() {
    let root = tempfile::tempdir().expect("a directory");
    let file = root.path().join("password");
    let network = Network { a: 3, b: 7 };
    let pod = |ordinal: u32| PodState {
        name: format!("pg-{ordinal}"),
        ordinal: Ordinal(ordinal),
        address: network.host(10 + u8::try_from(ordinal).expect("small")),
    };
    let state = DemoState {
        cluster: "pg".to_owned(),
        service: "pg".to_owned(),
        namespace: "default".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        first_ordinal: Ordinal(0),
        replicas: 3,
        leadership: Leadership::Fixed,
        api_server: None,
        network,
        ports: Ports::default(),
        superuser: "post gres".to_owned(),
        database: "data/base".to_owned(),
        password_file: file.clone(),
        program_directory: PathBuf::from("/usr/bin"),
        user: None,
        control_socket: root.path().join("demo.sock"),
        grace_ms: 30_000,
        pods: (0..3).map(pod).collect(),
    };
    for password in [
        "plain",
        "it's \\ : / ? # @ , & = % +",
        " ",
        "\"",
        "päss wörd",
        "a\nb",
        "$(id)`",
    ] {
        fs::write(&file, format!("{password}\n")).expect("a password");
        for (target, port, hosts) in [
            (Target::ReadWrite, 6432, 3),
            (Target::ReadOnly, 6433, 3),
            (Target::Member(Ordinal(1)), 5432, 1),
        ] {
            let text = dsn(&state, target).expect("a connection string");
            assert!(
                text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\''),
                "{text}"
            );
            let config: tokio_postgres::Config = text.parse().expect("a connection string");
            assert_eq!(config.get_password(), Some(password.as_bytes()));
            assert_eq!(
                (config.get_user(), config.get_dbname()),
                (Some("post gres"), Some("data/base"))
            );
            assert_eq!(config.get_hosts().len(), hosts);
            assert!(
                config.get_ports().iter().all(|found| *found == port),
                "{:?}",
                config.get_ports()
            );
        }
    }
    let absent = dsn(&state, Target::Member(Ordinal(3))).expect_err("no such pod");
    assert_eq!(absent.to_string(), "pod \"pg-3\" does not exist");
    state.save(root.path()).expect("saved");
    assert_eq!(DemoState::load(root.path()).expect("loaded"), Some(state));
    assert_eq!(
        DemoState::load(&root.path().join("none")).expect("no error"),
        None
    );
    fs::write(root.path().join("demo.json"), "{torn").expect("written");
    assert!(DemoState::load(root.path()).is_err());
}
