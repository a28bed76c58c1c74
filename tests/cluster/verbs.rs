//! The verbs that run no server: what they say, and with which exit code they end.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use crate::hand::Pod;
use crate::harness::LIMIT;
use crate::network::Network;
use crate::plain::as_postgres;

/// Runs a verb in a pod's environment, which must end it: exit code and output.
fn ends(pod: &Pod, verb: &'static str) -> (i32, String) {
    let mut container = pod.start(verb);
    let code = container.ended(LIMIT);
    (code.expect("an exit code"), container.log())
}

#[test]
fn row_01_a_name_that_does_not_tell_who_the_pod_is_ends_every_container_with_64() {
    let network = Network::new(16);
    for name in [
        "pg",
        "pg-",
        "pg-x",
        "pg-1x",
        "pg-01",
        "-0",
        "Pg-0",
        "pg-4294967296",
    ] {
        let mut pod = network.unnamed_pod(0);
        pod.set("POD_NAME", name);
        for verb in ["init", "postgres", "sidecar", "check"] {
            let (code, log) = ends(&pod, verb);
            assert_eq!(code, 64, "{verb} of \"{name}\": {log}");
            let expected = format!("pod name \"{name}\" does not end in a dash and an ordinal");
            assert!(
                log.contains("invalid value for POD_NAME") && log.contains(&expected),
                "{log}"
            );
            assert!(
                log.contains("hint: a StatefulSet names its pods <set>-<ordinal>"),
                "{log}"
            );
        }
        assert!(crate::plain::listing(&pod.volume).is_empty());
    }
}

/// What is wrong, the settings that make it so, and what is said.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

#[test]
fn row_18_missing_double_and_unreadable_secrets_end_every_container_with_64() {
    let network = Network::new(16);
    let password = network.file("secret/more", "two\nlines\n");
    let cases: [Case; 6] = [
        (
            "missing",
            &[("POSTGRES_PASSWORD_FILE", "")],
            "POSTGRES_PASSWORD_FILE: not set",
        ),
        (
            "double",
            &[("POSTGRES_PASSWORD", "secret-word")],
            "both POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are set",
        ),
        (
            "not there",
            &[("POSTGRES_PASSWORD_FILE", "/nowhere/password")],
            "could not read \"/nowhere/password\"",
        ),
        (
            "two lines",
            &[("POSTGRES_PASSWORD_FILE", password.to_str().expect("utf-8"))],
            "contains an end of line",
        ),
        (
            "double replication password",
            &[
                ("PODGRES_REPLICATION_PASSWORD", "secret-word"),
                ("PODGRES_REPLICATION_PASSWORD_FILE", "/x"),
            ],
            "both PODGRES_REPLICATION_PASSWORD and PODGRES_REPLICATION_PASSWORD_FILE are set",
        ),
        (
            "the superuser replicates",
            &[("PODGRES_REPLICATION_USER", "postgres")],
            "\"postgres\" is the superuser",
        ),
    ];
    for (what, pairs, expected) in cases {
        let mut pod = network.unnamed_pod(0);
        for (key, value) in pairs {
            pod.set(key, value);
        }
        for verb in ["init", "postgres", "sidecar", "check"] {
            let (code, log) = ends(&pod, verb);
            assert_eq!(code, 64, "{what}, {verb}: {log}");
            assert!(log.contains(expected), "{what}, {verb}: {log}");
            assert!(!log.contains("secret-word"), "{log}");
        }
    }
}

#[test]
fn check_finds_nothing_where_all_is_well() {
    let mut network = Network::new(16);
    let mut pod = network.pod(0);
    assert_eq!(
        ends(&pod, "check"),
        (0, "pg-0: nothing found that cannot work\n".to_owned())
    );
    pod.run();
    pod.wait_ready();
    let (code, log) = ends(&pod, "check");
    assert_eq!(code, 0, "beside a running server: {log}");
    // As in the sidecar's container, which has no PostgreSQL: that was always one thing that cannot work.
    pod.set("PG_BINDIR", "/nonexistent");
    let (code, log) = ends(&pod, "check");
    assert_eq!(code, 0, "without programs beside a running server: {log}");
}

#[test]
fn check_names_what_cannot_work_each_with_a_hint() {
    let mut network = Network::new(16);
    let named = network.pod(0);
    let closed = named.volume.join("closed");
    fs::create_dir(&closed).expect("folder");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("mode");
    let link = named.volume.join("link");
    std::os::unix::fs::symlink("/tmp", &link).expect("link");
    let below_closed = closed.join("pgdata").display().to_string();
    let link = link.display().to_string();
    for (key, value, problem, hint) in [
        (
            "PODGRES_SERVICE",
            "other",
            "this pod has no name of its own",
            "headless Service",
        ),
        (
            "PODGRES_CLUSTER_DOMAIN",
            "example.org",
            "pg-0.pg.default.svc.example.org",
            "--cluster-domain",
        ),
        (
            "PODGRES_DNS_SERVER",
            "127.0.0.9:9",
            "no DNS server answered",
            "DNS must answer",
        ),
        (
            "PODGRES_FIRST_ORDINAL",
            "3",
            "3 is above this pod's own ordinal 0",
            "spec.ordinals.start",
        ),
        (
            "PODGRES_RUN_DIR",
            "/proc/podgres",
            "could not make folder \"/proc/podgres\"",
            "emptyDir",
        ),
        (
            "PODGRES_PEER_TIMEOUT",
            "soon",
            "invalid value 'soon'",
            "--peer-timeout",
        ),
        (
            "PODGRES_PEER_TIMEOUT",
            "0s",
            "0s is too short",
            "hint: give 100ms to 10s",
        ),
        ("PG_BINDIR", "/nonexistent", "has no \"initdb\"", "hint: "),
        ("PGDATA", "data", "\"data\" is not absolute", "full path"),
        // A mount point on every Linux.
        (
            "PGDATA",
            "/dev/shm",
            "\"/dev/shm\", since it is a mount point",
            "sub-directory",
        ),
        ("PGDATA", &link, "symbolic link", "sub-directory"),
        ("PGDATA", &below_closed, "cannot write to folder", "fsGroup"),
    ] {
        let mut pod = network.unnamed_pod(0);
        pod.set(key, value);
        let (code, log) = ends(&pod, "check");
        assert_eq!(code, 64, "{key}={value}: {log}");
        assert!(
            log.contains(problem) && log.contains(hint),
            "{key}={value}: {log}"
        );
    }
    // All at once: each is named.
    let mut pod = network.unnamed_pod(0);
    pod.set("PODGRES_SERVICE", "other");
    pod.set("PGDATA", "/dev/shm");
    let (code, log) = ends(&pod, "check");
    assert_eq!(code, 64, "{log}");
    assert!(
        log.contains("mount point") && log.contains("no name of its own"),
        "{log}"
    );
    assert!(log.ends_with("podgres: error: 2 things cannot work\n"), "{log}");
}

#[test]
fn install_copies_the_program_even_over_one_that_runs() {
    let network = Network::new(16);
    let target = network.path().join("new/bin");
    let install = || {
        let mut install = crate::harness::podgres();
        let output = install.arg("install").arg(&target).output().expect("install");
        assert!(output.status.success(), "{output:?}");
    };
    install();
    let copy = target.join("podgres");
    let version =
        |program: &std::path::Path| Command::new(program).arg("--version").output().expect("podgres");
    assert!(version(&copy).status.success());
    assert_eq!(
        fs::metadata(&copy).expect("copy").permissions().mode() & 0o777,
        0o755
    );
    let pod = network.unnamed_pod(1);
    // Waits for a name that does not come.
    let mut running = as_postgres(&copy);
    running.arg("init").envs(&pod.environment).stderr(Stdio::null());
    let mut running = running.spawn().expect("podgres init");
    install();
    assert_eq!(running.try_wait().expect("wait"), None);
    running.kill().and_then(|()| running.wait()).expect("kill");
    assert_eq!(
        version(&copy).stdout,
        version(network.path().join("podgres").as_path()).stdout
    );
    assert_eq!(crate::plain::names_in(&target), ["podgres"]);
}

#[test]
fn install_where_one_may_not_write_says_so() {
    let program = env!("CARGO_BIN_EXE_podgres");
    for (folder, code) in [("/proc/nowhere", 64), ("/etc/podgres-install", 77)] {
        let network = Network::new(16);
        let copy = network.path().join("podgres");
        assert!(copy.exists(), "a copy of {program} that all may run");
        let output = as_postgres(&copy)
            .args(["install", folder])
            .stderr(Stdio::piped())
            .output()
            .expect("install");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(
            message.contains(&format!("could not install to \"{folder}/podgres\"")),
            "{message}"
        );
    }
}

#[test]
fn row_71_no_log_level_shows_a_password_in_its_stored_form() {
    let mut network = Network::new(16);
    let mut pod = network.pod(0);
    pod.set("PODGRES_LOG_LEVEL", "trace");
    pod.run();
    pod.wait_ready();
    // The sidecar writes the role anew, over the same library.
    pod.sql("DROP OWNED BY podgres_replication; DROP ROLE podgres_replication");
    let again = || pod.logs_whole().contains("\"replication\":\"Created\"");
    assert!(crate::harness::wait_for(LIMIT, again), "{}", pod.logs());
    let log = pod.logs_whole();
    assert!(log.contains("\"level\":\"DEBUG\""), "{log}");
    assert!(!log.contains("SCRAM-SHA-256$"), "{log}");
}
