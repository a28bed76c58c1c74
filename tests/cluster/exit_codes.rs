//! What a mistyped command ends with: whose it is to change what was given, and what was given, in the message.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use podgres::demo::DemoState;
use serde_json::json;

use crate::harness::{LIMIT, podgres, wait_for};
use crate::plain::{drop_privileges, give_away};

/// Exit code and messages; what is given to it through a pipe.
fn ends(command: &mut Command, input: &str) -> (Option<i32>, String) {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("podgres");
    // One that reads nothing may have ended.
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes())
        .ok();
    let output = child.wait_with_output().expect("podgres");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code(), text)
}

#[test]
fn what_is_mistyped_is_64_and_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().to_string_lossy().into_owned();
    let sidecar = |words: &[&'static str]| [&["sidecar", "--pod-name", "pg-0"], words].concat();
    let route = |words: &[&'static str]| [&["route", "--cluster"], words].concat();
    let lease = ["--leadership", "lease", "--pod-uid", "u"];
    for (words, code, told) in [
        (
            vec!["replay", "/nowhere/at/all"],
            64,
            "could not read \"/nowhere/at/all\"",
        ),
        (vec!["replay", "-"], 64, "\"-\" is no recording"),
        (
            vec!["check", "-f", "/nowhere/at/all"],
            64,
            "could not read \"/nowhere/at/all\"",
        ),
        (
            vec!["status", "--url", "nonsense"],
            64,
            "invalid address \"nonsense\"",
        ),
        (
            vec!["restart", "pg-0", "--url", "https://10.0.0.1"],
            64,
            "invalid address \"https://10.0.0.1\"",
        ),
        (
            vec!["status", "--url", "http://127.0.0.1:1"],
            69,
            "no member answers",
        ),
        (route(&["a b"]), 64, "PODGRES_CLUSTER: \"a b\" cannot be part"),
        (
            route(&["pg", "--service", "p.g"]),
            64,
            "PODGRES_SERVICE: \"p.g\" cannot",
        ),
        (
            route(&["pg", "--namespace", ""]),
            64,
            "POD_NAMESPACE: \"\" cannot",
        ),
        (
            route(&["pg", "--cluster-domain", "x."]),
            64,
            "PODGRES_CLUSTER_DOMAIN: \"x.\" is no domain",
        ),
        (
            route(&["pg", "--peer-timeout", "0s"]),
            64,
            "PODGRES_PEER_TIMEOUT: 0s is too short",
        ),
        (
            route(&["pg", "--peer-timeout", "60s"]),
            64,
            "1min is longer than the limit of 10s",
        ),
        (
            route(&["pg", "--max-staleness", "0"]),
            64,
            "PODGRES_MAX_STALENESS: 0s of the read_only route",
        ),
        (
            sidecar(&["--peer-timeout", "0s"]),
            64,
            "PODGRES_PEER_TIMEOUT: 0s is too short",
        ),
        (
            sidecar(&[&lease[..], &["--peer-timeout", "60s"]].concat()),
            64,
            "1min is longer than the renew deadline of 10s",
        ),
        (
            sidecar(&["--durability", "majority"]),
            64,
            "PODGRES_DURABILITY: \"majority\" needs a Lease",
        ),
        (
            sidecar(&["--admin-token-file", "/nowhere/at/all"]),
            64,
            "PODGRES_ADMIN_TOKEN_FILE: could not read \"/nowhere/at/all\"",
        ),
        (
            sidecar(&["--admin-token-file", "/dev/null"]),
            64,
            "\"/dev/null\" is empty",
        ),
        (
            sidecar(&["--max-staleness", "0"]),
            64,
            "PODGRES_MAX_STALENESS: 0s",
        ),
        (sidecar(&["--service", "A"]), 64, "PODGRES_SERVICE: \"A\" cannot"),
    ] {
        let mut command = podgres();
        command.env_clear().env("PODGRES_RUN_DIR", &run).args(&words);
        let (found, text) = ends(&mut command, "not a recording");
        assert_eq!(found, Some(code), "{words:?}: {text}");
        assert!(text.contains(told), "{words:?}: {text}");
        assert!(
            code != 64
                || words[0] == "replay"
                || words[0] == "check"
                || text.contains("expected")
                || text.contains("hint:"),
            "{text}"
        );
    }
}

#[test]
fn live_objects_are_asked_for_where_kubectl_asks() {
    let mut command = podgres();
    command
        .env_clear()
        .env("KUBECONFIG", "/nowhere/kubeconfig")
        .args(["check", "--live", "pg"]);
    let (code, text) = ends(&mut command, "");
    assert_ne!(code, Some(0), "{text}");
    assert!(text.contains("/nowhere/kubeconfig"), "{text}");
}

/// Somebody else's demo: its run folders cannot be looked into.
#[test]
fn the_demo_of_another_user_was_said_not_to_run() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let state = json!({
        "cluster": "demo", "service": "demo", "namespace": "default", "cluster_domain": "cluster.local",
        "first_ordinal": 0, "replicas": 1, "network": {"a": 1, "b": 1},
        "ports": {"postgres": 1, "read_write": 2, "read_only": 3, "http": 4, "dns": 5},
        "superuser": "postgres", "database": "postgres", "password_file": "/nowhere",
        "program_directory": "/nowhere", "user": null, "control_socket": "/nowhere", "grace_ms": 1,
        "pods": [{"name": "demo-0", "ordinal": 0, "address": "127.1.1.10"}],
    });
    let state: DemoState = serde_json::from_value(state).expect("a demo");
    state.save(folder.path()).expect("demo.json");
    let (code, text) = ends(podgres().arg("install").arg(folder.path()), "");
    assert_eq!(code, Some(0), "{text}");
    let restart = || {
        let mut command = Command::new(folder.path().join("podgres"));
        command
            .env_clear()
            .args(["restart", "demo-0", "--dir"])
            .arg(folder.path());
        drop_privileges(&mut command);
        ends(&mut command, "")
    };
    let (code, text) = restart();
    assert_eq!(code, Some(69), "it does not run: {text}");

    let closed = folder.path().join("pods/demo-0");
    fs::create_dir_all(closed.join("run")).expect("folders");
    give_away(&closed);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("mode");
    let (code, text) = restart();
    assert_eq!(code, Some(77), "{text}");
    assert!(text.contains("somebody else's"), "{text}");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("mode");
}

#[test]
fn a_sidecar_waited_for_its_port_without_a_word() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let log = folder.path().join("log");
    let mut command = podgres();
    command
        .env_clear()
        .env("PODGRES_RUN_DIR", folder.path())
        .args(["sidecar", "--pod-name", "pg-0", "--listen-address", "127.0.0.1"])
        .args(["--http-port", &port.to_string()])
        .stderr(fs::File::create(&log).expect("a log"));
    let mut sidecar = command.spawn().expect("podgres");
    let told = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.contains(&format!(
            "could not listen on \\\"127.0.0.1:{port}\\\": another process has it"
        ))
    };
    let found = wait_for(Duration::from_secs(5).min(LIMIT), told);
    let goes_on = sidecar.try_wait().expect("wait").is_none();
    sidecar.kill().and_then(|()| sidecar.wait()).expect("kill");
    assert!(
        found && goes_on,
        "{}",
        fs::read_to_string(&log).unwrap_or_default()
    );
}
