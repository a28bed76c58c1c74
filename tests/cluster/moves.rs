//! The operator's verbs on real clusters under a Lease, given through the shipped command line and over HTTP.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Demo, LIMIT, Start, member, members, podgres, wait_for};

/// Three pods under a Lease, all synchronous.
fn leased(more: &[&str]) -> Demo {
    let mut start = Start::new(16);
    start.arguments = ["--leadership", "lease"].map(str::to_owned).into();
    let demo = start.with(more).run();
    wait_synchronous(&demo);
    demo
}

/// Both standbys stream and are in the recorded set, so that any of them may take over.
fn wait_synchronous(demo: &Demo) -> Value {
    demo.wait("two synchronous standbys", |status| {
        let streaming = members(status)
            .iter()
            .filter(|member| member["state"] == "streaming");
        let sync = streaming.filter(|member| member["sync"] == true).count();
        let recorded = status["synchronous"]["members"].as_array().map_or(0, Vec::len);
        (sync, recorded) == (2, 2)
    })
}

fn refused(demo: &Demo, words: &[&str]) -> (i32, String) {
    let output = demo.verb(words);
    (
        output.status.code().expect("an exit code"),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn primary(status: &Value) -> String {
    let found = members(status)
        .iter()
        .find(|member| member["role"] == "primary" && member["writable"] == true);
    found
        .map(|member| member["name"].as_str().expect("a name").to_owned())
        .unwrap_or_default()
}

/// POST to a pod's HTTP port: code and body.
fn post(demo: &Demo, ordinal: u32, path: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
    use std::io::{Read as _, Write as _};
    let state = demo.deployed();
    let pod = state.pod(podgres::core::member::Ordinal(ordinal)).expect("a pod");
    let mut socket = TcpStream::connect((pod.address, state.ports.http)).expect("connect");
    socket.set_read_timeout(Some(LIMIT)).expect("a limit");
    let body = body.to_string();
    let token = token
        .map(|token| format!("Authorization: Bearer {token}\r\n"))
        .unwrap_or_default();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{token}Content-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(request.as_bytes()).expect("write");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (
        head[9..12].parse().expect("a status"),
        serde_json::from_str(body).unwrap_or(Value::Null),
    )
}

/// Writes numbers through the read-write route, each until it is acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    running: JoinHandle<(Vec<i64>, Vec<String>)>,
}

impl Writer {
    fn start(demo: &Demo) -> Self {
        demo.sql(&[], "CREATE TABLE IF NOT EXISTS numbers (n bigint)");
        let dsn = demo.ask(&["dsn"]);
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let running = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(write(&dsn, &asked))
        });
        Self { stop, running }
    }

    /// What was acknowledged, which must all be there, and errors other than a cut connection.
    fn end(self, demo: &Demo) {
        self.stop.store(true, Ordering::Relaxed);
        let (acknowledged, errors) = self.running.join().expect("the writer");
        assert!(errors.is_empty(), "{errors:?}");
        assert!(
            acknowledged.len() > 20,
            "too little was written: {}",
            acknowledged.len()
        );
        let list: Vec<String> = acknowledged.iter().map(ToString::to_string).collect();
        let missing = format!(
            "SELECT count(*) FROM unnest('{{{}}}'::bigint[]) AS a(n) WHERE n NOT IN (SELECT n FROM numbers)",
            list.join(",")
        );
        assert_eq!(demo.sql(&[], &missing), "0", "acknowledged commits were lost");
    }
}

async fn write(dsn: &str, stop: &AtomicBool) -> (Vec<i64>, Vec<String>) {
    let (mut acknowledged, mut errors, mut number) = (Vec::new(), Vec::new(), 0_i64);
    while !stop.load(Ordering::Relaxed) {
        let connected = tokio_postgres::connect(dsn, tokio_postgres::NoTls).await;
        let (client, connection) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                errors.push(format!("connecting: {error:?}"));
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let driver = tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            match client
                .execute("INSERT INTO numbers VALUES ($1)", &[&number])
                .await
            {
                Ok(_) => acknowledged.push(number),
                Err(error) => {
                    let said = error.as_db_error().map(|said| said.code().code().to_owned());
                    // Cut by the server or the route: the next connection waits for the new primary.
                    if said.as_deref().is_some_and(|code| !code.starts_with("57P0")) {
                        errors.push(format!("writing: {error:?}"));
                    }
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        driver.abort();
    }
    (acknowledged, errors)
}

#[test]
fn a_switchover_loses_nothing_and_the_verbs_refuse_what_has_no_sense() {
    let demo = leased(&[]);
    let writer = Writer::start(&demo);
    let said = demo.done(&["switchover"]);
    assert!(said.contains("is the primary now, in term 2"), "{said}");
    let status = wait_synchronous(&demo);
    let (second, third) = (primary(&status), 3);
    assert_ne!(second, "demo-0");
    assert!(said.contains(&second), "{said}");

    let said = demo.done(&["switchover", "--to", "demo-0"]);
    assert!(
        said.contains(&format!("\"demo-0\" is the primary now, in term {third}")),
        "{said}"
    );
    wait_synchronous(&demo);
    writer.end(&demo);

    for (words, code, expected) in [
        (
            vec!["switchover", "--to", "demo-0"],
            65,
            "\"demo-0\" is the primary already",
        ),
        (
            vec!["switchover", "--to", "demo-7"],
            64,
            "the cluster has no member \"demo-7\"",
        ),
        (vec!["reinit", "demo-0"], 65, "cannot clone \"demo-0\" afresh"),
        (
            vec!["restart", "demo-9"],
            64,
            "the cluster has no member \"demo-9\"",
        ),
        (
            vec!["failover", "--to", "demo-0", "--yes"],
            65,
            "is the primary already",
        ),
        (vec!["failover", "--to", "demo-9"], 64, "has no member \"demo-9\""),
        (vec!["failover", "--to", "demo-1"], 64, "nobody answers"),
        (vec!["failover"], 64, "--to"),
    ] {
        let (found, error) = refused(&demo, &words);
        assert_eq!(found, code, "{words:?}: {error}");
        assert!(error.contains(expected), "{words:?}: {error}");
    }

    by_the_lease(&demo);
    let history = demo.done(&["history", "-o", "json"]);
    let history: Value = serde_json::from_str(&history).expect("JSON");
    let leaders: Vec<&str> = history
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["new_leader"].as_str())
        .collect();
    assert_eq!(leaders, ["demo-0", &second, "demo-0"]);
    let rows: Value = serde_json::from_str(&demo.get(1, "/history").expect("an answer").1).expect("JSON");
    assert_eq!(
        (&rows[1][0], &rows[1][2]),
        (&json!(1), &json!("switchover")),
        "{rows}"
    );
    let explained = demo.done(&["explain", "demo-1"]);
    assert!(explained.contains("demo-1 is standby: streaming"), "{explained}");
    assert!(
        explained.contains("what would be lost: no acknowledged commit"),
        "{explained}"
    );
    assert!(
        explained.contains("demo-2: synchronous, switchover possible"),
        "{explained}"
    );
    for (said, code) in [("no\n", 65), ("yes\n", 0)] {
        let (found, text) = answered(&demo, "demo-1", said);
        assert_eq!(found, Some(code), "{said}: {text}");
    }
}

#[test]
fn a_restart_a_fresh_clone_and_a_forced_move() {
    let demo = leased(&["--set", "PODGRES_NO_READS=true"]);
    let started = |name: &str| {
        let ordinal = name.rsplit_once('-').expect("an ordinal").1;
        demo.sql(&["--member", ordinal], "SELECT pg_postmaster_start_time()")
    };
    // Asked of demo-0 for another member: the request goes there signed.
    for name in ["demo-0", "demo-1"] {
        let before = started(name);
        let said = demo.done(&["restart", name]);
        assert!(
            said.contains(&format!("PostgreSQL of \"{name}\" was restarted")),
            "{said}"
        );
        assert_ne!(started(name), before, "{name}");
    }
    let status = wait_synchronous(&demo);
    assert_eq!(
        (primary(&status).as_str(), &status["term"]),
        ("demo-0", &json!(1))
    );

    let clones = member(&status, "demo-2")["clones_total"].clone();
    let said = demo.done(&["reinit", "demo-2"]);
    assert!(said.contains("cloned afresh"), "{said}");
    let status = wait_synchronous(&demo);
    assert_ne!(member(&status, "demo-2")["clones_total"], clones);
    // No standby is to serve reads: the primary does.
    assert_eq!(member(&status, "demo-2")["tags"]["no_reads"], true);
    assert_eq!(demo.get(2, "/replica").expect("an answer").0, 503);
    assert_eq!(demo.sql(&["--read-only"], "SELECT pg_is_in_recovery()"), "f");

    let said = demo.done(&["failover", "--to", "demo-2", "--yes"]);
    assert!(
        said.contains("\"demo-2\" is the primary now, in term 2"),
        "{said}"
    );
    assert!(said.contains("What was known before"), "{said}");
    assert_eq!(primary(&wait_synchronous(&demo)), "demo-2");
}

/// A failover whose question is answered through a pipe.
fn answered(demo: &Demo, to: &str, said: &str) -> (Option<i32>, String) {
    let mut command = podgres();
    command
        .args(["failover", "--to", to, "--dir"])
        .arg(&demo.directory);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("podgres");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(said.as_bytes()).expect("write");
    drop(pipe);
    let output = child.wait_with_output().expect("podgres");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code(), text)
}

/// From where the Kubernetes API is reached and no member.
fn by_the_lease(demo: &Demo) {
    let kubeconfig = demo.directory.join("kubeconfig");
    let given = |words: &[&str]| {
        let mut command = podgres();
        command
            .args(words)
            .args(["--cluster", "demo", "--kubeconfig"])
            .arg(&kubeconfig);
        let output = command.output().expect("podgres");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let pid = demo.pid("demo-1", "postgres");
    let (code, text) = given(&["restart", "demo-1"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("PostgreSQL of \"demo-1\" was restarted"), "{text}");
    assert_ne!(demo.pid("demo-1", "postgres"), pid);
    let (code, text) = given(&["reinit", "demo-1"]);
    assert!(code == Some(0) && text.contains("cloned afresh"), "{text}");
    for (words, expected, told) in [
        (["reinit", "demo-0"], 65, "cannot clone \"demo-0\" afresh"),
        (["restart", "demo-9"], 64, "has no member \"demo-9\""),
    ] {
        let (code, text) = given(&words);
        assert!(code == Some(expected) && text.contains(told), "{words:?}: {text}");
    }
    wait_synchronous(demo);
}

#[test]
fn while_paused_nobody_takes_over_and_the_primary_comes_back() {
    let demo = leased(&[
        "--set",
        "PODGRES_LEASE_DURATION=6s",
        "--set",
        "PODGRES_RENEW_DEADLINE=2s",
        "--set",
        "PODGRES_RETRY_PERIOD=500ms",
    ]);
    assert!(demo.done(&["pause"]).contains("is paused"));
    let (code, error) = refused(&demo, &["failover", "--to", "demo-1", "--yes"]);
    assert_eq!(code, 65, "{error}");
    assert!(error.contains("by force: the cluster is paused"), "{error}");
    demo.ask(&["delete-pod", "0", "--force"]);
    demo.wait("the same primary in a new term", |status| {
        primary(status) == "demo-0" && status["term"] == 2
    });
    let status = wait_synchronous(&demo);
    assert_eq!(status["paused"], true);
    assert_eq!(
        member(&status, "demo-1")["promised_term"],
        member(&status, "demo-2")["promised_term"]
    );
    // A planned move is the operator's own work, and the second waits until the first is through.
    let moved = ["demo-1", "demo-0"].map(|to| demo.done(&["switchover", "--to", to]));
    for (said, term) in moved.iter().zip([3, 4]) {
        assert!(
            said.contains(&format!("is the primary now, in term {term}")),
            "{moved:?}"
        );
    }
    let status = wait_synchronous(&demo);
    assert_eq!(
        (primary(&status).as_str(), &status["paused"]),
        ("demo-0", &json!(true))
    );
    assert!(demo.done(&["resume"]).contains("not paused any more"));
    demo.ask(&["delete-pod", "0", "--force"]);
    let status = demo.wait("another primary", |status| {
        !["", "demo-0"].contains(&primary(status).as_str())
    });
    assert_eq!(status["paused"], false);
}

#[test]
fn orders_over_http_need_authority_and_have_patronis_codes() {
    let folder = crate::kit::open_folder();
    let file = folder.path().join("token");
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::write(&file, "first-token\n").expect("write");
    fs::set_permissions(&file, readable).expect("chmod");
    let setting = format!("PODGRES_ADMIN_TOKEN_FILE={}", file.display());
    let demo = leased(&["--set", &setting]);
    let token = Some("first-token");
    for (token, path, body, expected) in [
        (None, "/switchover", json!({"leader": "demo-0"}), 401),
        (Some("wrong"), "/switchover", json!({"leader": "demo-0"}), 401),
        (token, "/switchover", json!({"leader": "demo-1"}), 412),
        (
            token,
            "/switchover",
            json!({"leader": "demo-0", "candidate": "demo-0"}),
            412,
        ),
        (token, "/switchover", json!({"when": "now"}), 400),
        (token, "/failover", json!({}), 400),
        (token, "/reinitialize", json!({}), 412),
        (token, "/config", json!({"pause": true}), 405),
        (token, "/switchover", json!({"candidate": "demo-9"}), 400),
        (
            token,
            "/failover",
            json!({"leader": "demo-1", "candidate": "demo-2"}),
            412,
        ),
        (token, "/nowhere", json!({}), 404),
    ] {
        let (code, answer) = post(&demo, 0, path, token, &body);
        assert_eq!(code, expected, "{path} {body}: {answer}");
    }
    fs::write(&file, "second-token\n").expect("write");
    let body = json!({"leader": "demo-0", "candidate": "demo-1"});
    assert_eq!(
        post(&demo, 2, "/switchover", token, &body).0,
        401,
        "a rotated token"
    );
    let token = Some("second-token");
    let (code, answer) = post(&demo, 2, "/switchover", token, &body);
    assert_eq!(
        (code, &answer["primary"], &answer["term"]),
        (200, &json!("demo-1"), &json!(2)),
        "{answer}"
    );
    carried_out(&demo, token);
    fs::remove_file(&file).expect("remove");
    assert_eq!(
        post(&demo, 2, "/pause", Some("second-token"), &json!({})).0,
        403,
        "no token file"
    );

    // The command line with a URL and a token file.
    fs::write(&file, "third\n").expect("write");
    let state = demo.deployed();
    let url = format!(
        "http://{}",
        std::net::SocketAddr::new(state.pods[2].address, state.ports.http)
    );
    let by_url = |file: &str| {
        let mut command = podgres();
        command
            .args(["pause", "--url", &url, "--token-file", file])
            .output()
            .expect("podgres")
    };
    let output = by_url(file.to_str().expect("utf-8"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::write(folder.path().join("wrong"), "wrong").expect("write");
    let output = by_url(folder.path().join("wrong").to_str().expect("utf-8"));
    assert_eq!(
        output.status.code(),
        Some(77),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let paused = wait_for(LIMIT, || {
        let page = demo.get(1, "/metrics").map(|(_, page)| page).unwrap_or_default();
        page.contains("\npodgres_in_office 1\n")
            && page.contains("\npodgres_gate_attached 1\n")
            && page.contains("\npodgres_synchronous_quorum 1\n")
            && page.contains("patroni_is_paused{scope=\"demo\",name=\"demo-1\"} 1")
    });
    assert!(paused, "{:?}", demo.get(1, "/metrics"));
}

/// What comes of each order that ends with 200, where "demo-1" is the primary.
fn carried_out(demo: &Demo, token: Option<&str>) {
    wait_synchronous(demo);
    let started = || demo.sql(&["--member", "2"], "SELECT pg_postmaster_start_time()");
    let before = started();
    let (code, answer) = post(demo, 2, "/restart", token, &json!({}));
    assert_eq!((code, &answer["outcome"]), (200, &json!("done")), "{answer}");
    assert_ne!(started(), before);
    let clones = |status: &Value| member(status, "demo-2")["clones_total"].clone();
    let before = clones(&wait_synchronous(demo));
    let order = json!({"force": false, "from-leader": false});
    let (code, answer) = post(demo, 2, "/reinitialize", token, &order);
    assert_eq!((code, &answer["outcome"]), (200, &json!("done")), "{answer}");
    assert_ne!(clones(&wait_synchronous(demo)), before);
    for (path, paused) in [("/pause", true), ("/resume", false)] {
        let (code, answer) = post(demo, 0, path, token, &json!({}));
        assert_eq!((code, &answer["outcome"]), (200, &json!("done")), "{answer}");
        demo.wait(path, |status| status["paused"] == paused);
    }
    // The primary is named, so that nothing is to be lost: a switchover, whatever the path says.
    let body = json!({"leader": "demo-1", "candidate": "demo-2"});
    let (code, answer) = post(demo, 0, "/failover", token, &body);
    assert_eq!((code, &answer["primary"]), (200, &json!("demo-2")), "{answer}");
    wait_synchronous(demo);
    let (_, rows) = demo.get(0, "/history").expect("an answer");
    let rows: Value = serde_json::from_str(&rows).expect("JSON");
    let last = rows.as_array().and_then(|rows| rows.last()).expect("a change");
    assert_eq!(last[2], "switchover", "{rows}");
    let (code, answer) = post(demo, 0, "/failover", token, &json!({"candidate": "demo-1"}));
    assert_eq!((code, &answer["primary"]), (200, &json!("demo-1")), "{answer}");
    wait_synchronous(demo);
}

#[test]
fn with_fixed_leadership_members_restart_and_clone_and_nothing_moves() {
    let demo = Start::new(16).with(&["--replicas", "2"]).run();
    demo.wait_streaming(1);
    for words in [vec!["switchover"], vec!["failover", "--to", "demo-1", "--yes"]] {
        let (code, error) = refused(&demo, &words);
        assert_eq!(code, 65, "{error}");
        assert!(error.contains("leadership is fixed"), "{error}");
    }
    assert_eq!(refused(&demo, &["pause"]).0, 65);
    assert_eq!(demo.done(&["history", "-o", "json"]), "[]\n");
    assert_eq!(demo.done(&["history"]), "the primary has never changed\n");
    for name in ["demo-0", "demo-1"] {
        assert!(demo.done(&["restart", name]).contains("was restarted"));
    }
    demo.wait_streaming(1);
    assert!(demo.done(&["reinit", "demo-1"]).contains("cloned afresh"));
    demo.wait_streaming(1);
}
