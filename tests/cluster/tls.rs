//! TLS between members and for clients, by mounted files, which may change while everything runs.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use serde_json::Value;

use crate::authority::Authority;
use crate::backup::{Lab, text};
use crate::harness::{Demo, LIMIT, Start, member, wait_for};
use crate::kit::{answer, open_folder};
use crate::mounted::Mounted;
use crate::postgresql::programs_with_tls;

const SENDERS: &str = "SELECT count(*), bool_and(ssl) FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)";
const ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

fn demo_with_tls(mounted: &Mounted, replicas: &str) -> Demo {
    let set = |key: &str| format!("{key}={}", mounted.path().display());
    let demo = Start::new(15)
        .with(&["--replicas", replicas])
        .with(&["--set", &set("PODGRES_TLS_DIR")])
        .with(&["--set", &set("PODGRES_CONFIGURATION_DIR")])
        .run();
    let standbys: usize = replicas.parse().expect("a number");
    demo.wait_streaming(standbys - 1);
    demo
}

/// A client of a server or a route that calls it by the name of a pod and trusts `authority`.
pub(crate) fn client(
    demo: &Demo,
    address: SocketAddr,
    name: &str,
    authority: &Authority,
    options: &str,
) -> Output {
    let state = demo.deployed();
    let password = fs::read_to_string(&state.password_file).expect("password");
    let dsn = format!(
        "host={name}.demo.default.svc.cluster.local hostaddr={} port={} user={} dbname={} sslrootcert={} {options}",
        address.ip(),
        address.port(),
        state.superuser,
        state.database,
        authority.directory.path().join("ca.crt").display(),
    );
    Command::new(programs_with_tls().join("psql"))
        .args(["-X", "-A", "-t", "-q", "-c", ENCRYPTED, &dsn])
        .env("LC_ALL", "C")
        .env("PGPASSWORD", password.trim_end())
        .output()
        .expect("psql")
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "it was let in");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The server and both routes of a pod.
fn endpoints(demo: &Demo, pod: usize) -> [SocketAddr; 3] {
    let state = demo.deployed();
    let ports = [
        state.ports.postgres,
        state.ports.read_write,
        state.ports.read_only,
    ];
    ports.map(|port| SocketAddr::new(state.pods[pod].address, port))
}

fn verified(demo: &Demo, authority: &Authority) -> bool {
    let everywhere = (0..2).flat_map(|pod| endpoints(demo, pod));
    everywhere.into_iter().all(|address| {
        let options = "sslmode=verify-full channel_binding=require";
        client(demo, address, "demo-0", authority, options)
            .status
            .success()
    })
}

#[test]
fn members_and_clients_verify_each_other_from_end_to_end() {
    let (ours, stranger) = (Authority::new("ours"), Authority::new("stranger"));
    let mounted = Mounted::new();
    mounted.put_tls(&ours, &ours);
    let demo = demo_with_tls(&mounted, "2");

    assert_eq!(demo.sql(&["--member", "0"], SENDERS), "1|t");
    for pod in ["0", "1"] {
        assert_eq!(demo.sql(&["--member", pod], "SHOW ssl"), "on");
    }
    let conninfo = demo.sql(&["--member", "1"], "SHOW primary_conninfo");
    assert!(conninfo.contains("sslmode=verify-full"), "{conninfo}");

    // The probe, the clone and the receiver: whoever came for replication came encrypted.
    let log = demo.log("demo-0", "postgres");
    let came: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("replication connection authorized: user=podgres_replication"))
        .collect();
    assert!(came.len() >= 3, "{log}");
    for line in came {
        assert!(line.contains("SSL enabled (protocol=TLSv1.3"), "{line}");
    }

    for pod in 0..2 {
        for address in endpoints(&demo, pod) {
            for options in [
                "sslmode=require",
                "sslmode=verify-full",
                "sslmode=verify-full channel_binding=require",
            ] {
                let output = client(&demo, address, "demo-0", &ours, options);
                assert_eq!(answer(&output), "t", "{address} {options}");
            }
            let mistrusted = client(&demo, address, "demo-0", &stranger, "sslmode=verify-full");
            assert!(
                complaint(&mistrusted).contains("certificate verify failed"),
                "{mistrusted:?}"
            );
            let misnamed = client(&demo, address, "demo-7", &ours, "sslmode=verify-full");
            assert!(
                complaint(&misnamed).contains("does not match host name"),
                "{misnamed:?}"
            );
        }
    }
}

/// Certificates have the pods' names, and where TLS is on a server refuses replication without it. The dump's programs are another user's, whose home
/// directory this one's is not.
#[test]
fn a_backup_wanted_the_servers_addresses_in_their_certificates() {
    let (ours, stranger) = (Authority::new("ours"), Authority::new("stranger"));
    let (mounted, mistrusting) = (Mounted::new(), Mounted::new());
    mounted.put_tls(&ours, &ours);
    mistrusting.put_tls(&ours, &stranger);
    let set = format!("PODGRES_TLS_DIR={}", mounted.path().display());
    let lab = Lab::with_standbys(Start::new(15).with(&["--set", &set]), 1);
    let backup = |folder: &Mounted, more: &[&str]| {
        let folder = ["--tls-dir", text(folder.path())];
        let mut command = lab.backup_command(&[&folder, more].concat());
        command.output().expect("podgres backup")
    };
    assert!(answer(&backup(&mounted, &[])).contains("-physical: physical of demo-1"));
    assert!(answer(&backup(&mounted, &["--kind", "logical"])).contains("-logical: logical of demo-1"));
    for (folder, more) in [(&mistrusting, &[][..]), (&mounted, &["--namespace", "other"][..])] {
        let refused = backup(folder, &[&["--from", "standby"], more].concat());
        let said = complaint(&refused);
        assert!(said.contains("invalid peer certificate"), "{said}");
    }
}

#[test]
fn a_standby_that_cannot_verify_its_primary_waits_and_stays_empty() {
    let (ours, stranger) = (Authority::new("ours"), Authority::new("stranger"));
    let mounted = Mounted::new();
    mounted.put_tls(&ours, &ours);
    let demo = demo_with_tls(&mounted, "1");
    mounted.put_tls(&ours, &stranger);
    demo.ask(&["scale", "2"]);
    // The members do not believe each other either: it is asked itself, plainly.
    let own = || {
        let seen = demo.get(1, "/cluster").map(|(_, body)| body)?;
        let seen: Value = serde_json::from_str(&seen).ok()?;
        Some(member(&seen, "demo-1").clone())
    };
    let waits = || {
        own().is_some_and(|found| {
            let message = found["message"].to_string();
            message.contains("could not verify or set up TLS") && message.contains("UnknownIssuer")
        })
    };
    assert!(wait_for(LIMIT, waits), "{:#?}", own());
    assert_eq!(
        own().map(|found| found["situation"].clone()),
        Some("waiting_for_primary".into())
    );
    demo.wait("an unheard member", |status| {
        member(status, "demo-1")["state"] == "unreachable"
    });
    assert!(!demo.data_directory("demo-1").exists());
    let slots = "SELECT count(*) FROM pg_stat_replication";
    assert_eq!(demo.sql(&["--member", "0"], slots), "0");

    // It goes on by itself when the file is right.
    mounted.put_tls(&ours, &ours);
    demo.wait_streaming(1);
    assert_eq!(demo.sql(&["--member", "0"], SENDERS), "1|t");
}

#[test]
fn changed_certificates_are_taken_up_while_everything_runs() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let mounted = Mounted::new();
    mounted.put_tls(&before, &before);
    let demo = demo_with_tls(&mounted, "2");
    assert!(verified(&demo, &before));
    let started = "SELECT pg_postmaster_start_time()";
    let postmasters = || ["0", "1"].map(|pod| demo.sql(&["--member", pod], started));
    let receiver = "SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    let first = (postmasters(), demo.sql(&["--member", "1"], receiver));

    mounted.put_tls(&after, &after);
    assert!(
        wait_for(LIMIT, || verified(&demo, &after)),
        "the new certificates are not used"
    );
    let options = "sslmode=verify-full";
    for pod in 0..2 {
        let [server, ..] = endpoints(&demo, pod);
        complaint(&client(&demo, server, "demo-0", &before, options));
        let copy = demo.directory.join(format!("pods/demo-{pod}/run/tls.key"));
        assert_eq!(
            fs::read(&copy).expect("copy"),
            fs::read(mounted.file("tls.key")).expect("key")
        );
        assert_eq!(
            fs::metadata(&copy).expect("copy").permissions().mode() & 0o777,
            0o600
        );
    }
    assert_eq!(
        (postmasters(), demo.sql(&["--member", "1"], receiver)),
        first,
        "the change disturbed somebody"
    );
    // The next receiver verifies the new certificate.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
    assert_eq!(demo.sql(&["--member", "0"], end), "t");
    let streams_again = || {
        let now = demo.sql(&["--member", "1"], receiver);
        !now.is_empty() && now != first.1
    };
    assert!(
        wait_for(LIMIT, streams_again),
        "{}",
        demo.log("demo-1", "postgres")
    );
    assert_eq!(demo.sql(&["--member", "0"], SENDERS), "1|t");
}

#[test]
fn a_certificate_that_cannot_be_used_leaves_the_one_before_in_force() {
    let ours = Authority::new("ours");
    let mounted = Mounted::new();
    mounted.put_tls(&ours, &ours);
    let demo = demo_with_tls(&mounted, "2");
    let made = open_folder();
    ours.issue(made.path(), "DNS:other");
    let read = |name: &str| fs::read(mounted.file(name)).expect("mounted");
    let (certificate, authority) = (read("tls.crt"), read("ca.crt"));
    // The key of another certificate.
    let key = fs::read(made.path().join("tls.key")).expect("key");
    mounted.put(&[
        ("tls.crt", &certificate),
        ("tls.key", &key),
        ("ca.crt", &authority),
    ]);
    let said = || {
        ["demo-0", "demo-1"].iter().all(|pod| {
            demo.log(pod, "postgres")
                .contains("SSL configuration was not reloaded")
        })
    };
    assert!(wait_for(LIMIT, said), "{}", demo.log("demo-0", "postgres"));
    assert!(verified(&demo, &ours));
}
