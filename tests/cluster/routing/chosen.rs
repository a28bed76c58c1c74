//! Which server a session gets where several would do, and what standbys do once the primary is known to be gone.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use podgres::core::member::Ordinal;
use podgres::demo::Target;
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio_postgres::{Config, NoTls};

use super::clients::{Clients, Work, answered, config_of, on_standby, written};
use crate::harness::{Demo, Start, member, wait_for};
use crate::kit::{psql_command, signal};

const PATIENCE: Duration = Duration::from_secs(20);

/// A further endpoint of one pod.
fn endpoint(demo: &Demo, ordinal: u32, port: u16) -> Config {
    let own = config_of(demo, ordinal, Target::ReadOnly);
    let mut config = Config::new();
    config.host(
        demo.deployed()
            .pod(Ordinal(ordinal))
            .expect("a pod")
            .address
            .to_string(),
    );
    config.port(port).dbname(own.get_dbname().expect("a database"));
    config.user(own.get_user().expect("a user"));
    config.password(own.get_password().expect("a password"));
    config
}

#[test]
fn a_token_goes_to_the_standby_that_will_be_there_first() {
    let demo = Start::new(16).with(&["--replicas", "3"]).run();
    demo.wait_streaming(2);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let slow = ["--member", "2"];
    demo.sql(&slow, "ALTER SYSTEM SET recovery_min_apply_delay = '2s'");
    demo.sql(&slow, "SELECT pg_reload_conf()");
    demo.wait_sql(&slow, "SHOW recovery_min_apply_delay", "2s");
    let fast = demo.deployed().pod(Ordinal(1)).expect("a pod").address;
    let runtime = Runtime::new().expect("runtime");
    runtime.block_on(async {
        let (writer, connection) = config_of(&demo, 0, Target::ReadWrite)
            .connect(NoTls)
            .await
            .expect("read-write");
        tokio::spawn(connection);
        let read = config_of(&demo, 0, Target::ReadOnly);
        for n in 0..40 {
            let token = written(&writer, n).await;
            let options =
                format!("-c podgres.min_lsn={token} -c podgres.max_lag=1TB -c podgres.max_staleness=1h");
            let sql = format!("SELECT inet_server_addr(), exists (SELECT FROM work WHERE n = {n})");
            let row = answered(&read, &options, &sql).await;
            let (server, found): (std::net::IpAddr, bool) = (row.get(0), row.get(1));
            assert_eq!((server, found), (fast, true), "at the {n}th try");
        }
    });
}

const SERVES_FOR: u16 = 7434;
const REFUSES: u16 = 7435;

/// The primary says itself that it is none now: its server has stopped and cannot be started.
#[test]
fn standbys_serve_for_a_while_or_refuse_once_the_primary_is_known_to_be_gone() {
    let further = format!(
        "PODGRES_LISTEN={SERVES_FOR},mode=read-only,fallback=none,on_primary_loss=serve-for:8s;\
         {REFUSES},mode=read-only,fallback=none,on_primary_loss=refuse"
    );
    let demo = Start::new(16)
        .with(&["--replicas", "2", "--set", &further])
        .with(&["--set", "PODGRES_HOLD=300ms"])
        .run();
    demo.wait_streaming(1);
    let served = |port| on_standby(&endpoint(&demo, 1, port));
    let serving = || config_of(&demo, 1, Target::ReadOnly);
    assert!(wait_for(PATIENCE, || {
        served(SERVES_FOR) == Some(true) && served(REFUSES) == Some(true)
    }));

    let data = demo.sql(&["--member", "0"], "SHOW data_directory");
    let control = std::path::Path::new(&data).join("global/pg_control");
    let away = control.with_extension("away");
    fs::rename(&control, &away).expect("away");
    signal(demo.pid("demo-0", "postgres"), Signal::KILL);
    let began = Instant::now();
    assert!(wait_for(PATIENCE, || served(REFUSES).is_none()), "it refuses");
    assert_eq!(on_standby(&serving()), Some(true), "by default they go on");
    if began.elapsed() < Duration::from_secs(6) {
        assert_eq!(served(SERVES_FOR), Some(true), "{:?}", began.elapsed());
    }
    assert!(
        wait_for(PATIENCE, || served(SERVES_FOR).is_none()),
        "not for ever"
    );
    assert!(began.elapsed() > Duration::from_secs(7), "{:?}", began.elapsed());
    // Longer than max_staleness too.
    assert!(wait_for(PATIENCE, || began.elapsed() > Duration::from_secs(12)));
    assert_eq!(on_standby(&serving()), Some(true), "nothing newer exists");
    fs::rename(&away, &control).expect("back");
}

/// How many ends of pipes a process has.
fn pipes(pid: u32) -> usize {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let links = folder
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("pipe:"))
        .count()
}

#[test]
fn pipes_are_for_bulk_data_alone_and_bounded() {
    const BOUND: usize = 64;
    let demo = Start::new(16).with(&["--replicas", "2"]).run();
    demo.wait_streaming(1);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let sidecar = demo.pid("demo-0", "sidecar");
    let before = pipes(sidecar);
    let writers = Clients::start_as(&config_of(&demo, 0, Target::ReadWrite), &NoTls, Work::Write, 8);
    for _ in 0..10 {
        writers.wait_for_more(10);
        assert_eq!(pipes(sidecar), before, "small messages are copied");
    }
    writers.stop();
    let dsn = demo.route("demo-0", "read_write_port");
    let copy = "COPY (SELECT repeat('x', 8000) FROM generate_series(1, 20000)) TO STDOUT";
    let copying: Vec<_> = (0..12)
        .map(|_| {
            let mut command = psql_command(&dsn, copy);
            command.stdout(Stdio::null()).spawn().expect("psql")
        })
        .collect();
    let mut most = 0;
    for mut psql in copying {
        while psql.try_wait().expect("wait").is_none() {
            most = most.max(pipes(sidecar));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(psql.wait().expect("wait").success());
    }
    assert!(
        most > before && most - before <= BOUND,
        "{before} before, then {most}"
    );
    let status = demo.status().expect("status");
    assert_eq!(member(&status, "demo-0")["state"], "running");
}
