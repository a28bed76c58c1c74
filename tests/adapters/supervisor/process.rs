//! The supervisor's process: this test binary, started again for one "test" that runs the supervisor.
//!
//! What it needs to know comes in its environment; see [`super::pod`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use podgres::postgres::{Login, Secret, ServerSettings};
use podgres::supervisor::{self, SupervisorOptions};

use super::pod::{PASSWORD, Pod};

pub(super) const ROOT: &str = "SUPERVISOR_TEST_ROOT";
pub(super) const ADDRESS: &str = "SUPERVISOR_TEST_ADDRESS";
pub(super) const PROGRAMS: &str = "SUPERVISOR_TEST_PROGRAMS";
pub(super) const STOP_TIMEOUT_MS: &str = "SUPERVISOR_TEST_STOP_TIMEOUT_MS";
pub(super) const GATED: &str = "SUPERVISOR_TEST_GATED";
pub(super) const MEMBER: &str = "SUPERVISOR_TEST_MEMBER";
pub(super) const PANIC: &str = "SUPERVISOR_TEST_PANIC";

/// What the other tests run as their supervisor. By itself it tries one without PostgreSQL's programs.
#[test]
fn supervisor_process() {
    let Some(root) = std::env::var_os(ROOT) else {
        return without_programs_it_says_so();
    };
    let text = |name: &str| std::env::var(name).unwrap();
    let root = PathBuf::from(root);
    let login = |user: &str| Login {
        user: user.into(),
        password: Secret::new(PASSWORD.into()),
    };
    let address: IpAddr = text(ADDRESS).parse().unwrap();
    let settings = ServerSettings {
        member: text(MEMBER),
        data_directory: root.join("volume/data"),
        program_directory: text(PROGRAMS).into(),
        run_directory: root.clone(),
        socket_directories: vec![root.clone()],
        listen_addresses: address.to_string(),
        local_address: address,
        port: 5432,
        superuser: login("postgres"),
        replication: login("podgres_replication"),
        database: "postgres".into(),
        initdb_arguments: vec!["--no-sync".into()],
        host_auth_method: "scram-sha-256".into(),
        initdb_scripts: root.join("no-scripts"),
        user_configuration: None,
        tls: None,
        stop_timeout: Duration::from_millis(text(STOP_TIMEOUT_MS).parse().unwrap()),
        gated: std::env::var_os(GATED).is_some(),
        archive_command: None,
        restore_program: None,
    };
    supervisor::stop_on_panic();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let exit = runtime.block_on(async {
        if let Some(file) = std::env::var_os(PANIC) {
            tokio::spawn(panic_when_there_is(file.into()));
        }
        supervisor::run(settings, SupervisorOptions::default()).await
    });
    exit.unwrap_or_else(|error| panic!("{error}"));
}

async fn panic_when_there_is(file: PathBuf) {
    while !file.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("planted");
}

fn without_programs_it_says_so() {
    let mut pod = Pod::empty();
    pod.programs = pod.path().join("nowhere");
    let status = pod
        .command(&std::env::current_exe().unwrap(), &[])
        .status()
        .unwrap();
    assert!(!status.success());
    assert!(
        pod.log().contains("could not find out the version of PostgreSQL"),
        "{}",
        pod.log()
    );
}
