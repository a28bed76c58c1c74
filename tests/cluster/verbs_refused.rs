//! What stands in the way of every start, and the exit code that says whose it is to change.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::hand::Pod;
use crate::harness::LIMIT;
use crate::network::Network;

fn ends(pod: &Pod, verb: &'static str) -> (i32, String) {
    let mut container = pod.start(verb);
    let code = container.ended(LIMIT);
    (code.expect("an exit code"), container.log())
}

#[test]
fn root_was_told_by_initdb_alone_for_an_hour() {
    let network = Network::new(16);
    let pod = network.unnamed_pod(0);
    for verb in ["init", "postgres", "check"] {
        let mut command = if rustix::process::geteuid().is_root() {
            Command::new(&pod.binary)
        } else {
            let mut command = Command::new("unshare");
            command.arg("--map-root-user").arg(&pod.binary);
            command
        };
        let output = command.arg(verb).env_clear().envs(&pod.environment).output();
        let output = output.expect("podgres");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(64), "{verb}: {text}");
        assert!(text.contains("this container runs as root"), "{verb}: {text}");
        assert!(
            text.contains("999 in Debian images, 70 in Alpine"),
            "{verb}: {text}"
        );
    }
    assert!(crate::plain::listing(&pod.volume).is_empty());
}

#[test]
fn want_of_permission_and_bad_settings_ended_as_something_else() {
    let mut network = Network::new(16);
    let named = network.pod(0);
    let closed = named.directory.join("closed");
    fs::create_dir(&closed).expect("folder");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("mode");
    let below = closed.join("pgdata").display().to_string();
    let deeper = closed.join("pgdata/data").display().to_string();
    let closed = closed.display().to_string();
    let link = named.directory.join("link");
    std::os::unix::fs::symlink(&named.volume, &link).expect("link");
    let link = link.display().to_string();
    for (verb, key, value, expected, words) in [
        (
            "postgres",
            "PODGRES_RUN_DIR",
            closed.as_str(),
            77,
            "Permission denied",
        ),
        ("init", "PGDATA", &below, 77, "could not write to directory"),
        ("init", "PGDATA", &deeper, 77, "could not create directory"),
        ("init", "PGDATA", &link, 64, "symbolic link"),
        (
            "init",
            "POSTGRES_INITDB_ARGS",
            "--waldir=/wal",
            64,
            "not supported",
        ),
        (
            "init",
            "POSTGRES_INITDB_ARGS",
            "--bogus",
            64,
            "initdb does not know it",
        ),
    ] {
        let mut pod = network.unnamed_pod(0);
        pod.set(key, value);
        let (code, log) = ends(&pod, verb);
        assert_eq!(code, expected, "{verb} {key}={value}: {log}");
        assert!(log.contains(words), "{verb} {key}={value}: {log}");
    }
}

#[test]
fn a_sidecar_that_may_not_ask_the_supervisor_said_nothing_of_why() {
    let mut network = Network::new(16);
    let pod = network.pod(0);
    let socket = std::path::Path::new(&pod.environment["PODGRES_RUN_DIR"]).join("supervisor.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("socket");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).expect("mode");
    let (code, log) = ends(&pod, "check");
    assert_eq!(code, 64, "{log}");
    assert!(
        log.contains("cannot write to socket") && log.contains("fsGroup"),
        "{log}"
    );
    let sidecar = pod.start("sidecar");
    let said = || sidecar.log().contains("could not reach the supervisor");
    assert!(crate::harness::wait_for(LIMIT, said), "{}", sidecar.log());
    pod.wait_situation("supervisor_unreachable", "");
    let log = sidecar.log();
    assert!(
        log.contains("Permission denied") && log.contains("fsGroup"),
        "{log}"
    );
    assert_eq!(log.matches("give all containers").count(), 1, "{log}");
}
