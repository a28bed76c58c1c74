//! The verbs that ask a running cluster; they share its demo with `steady`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::harness::podgres;
use crate::kit::{answer, count, http_get, psql, shared};

#[test]
fn the_connection_strings_of_a_demo_work_with_psql_as_they_are() {
    let demo = shared();
    let recovery = |words: &[&str]| {
        answer(&psql(
            &demo.ask(words),
            "SELECT pg_is_in_recovery(), current_user",
        ))
    };
    assert_eq!(recovery(&["dsn"]), "f|postgres");
    assert_eq!(recovery(&["dsn", "--read-write"]), "f|postgres");
    assert_eq!(recovery(&["dsn", "--read-only"]), "t|postgres");
    assert_eq!(recovery(&["dsn", "--member", "0"]), "f|postgres");
    assert_eq!(recovery(&["dsn", "--member", "2"]), "t|postgres");
    for wrong in [
        &["dsn", "--member", "3"][..],
        &["dsn", "--member", "0", "--read-only"],
    ] {
        let output = demo.try_ask(wrong);
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn status_shows_a_table() {
    let demo = shared();
    demo.wait_streaming(2);
    let output = podgres().args(["status", "--dir"]).arg(&demo.directory).output();
    let text = answer(&output.expect("status"));
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0][..4],
        ["cluster", "demo,", "system", "identifier"],
        "{text}"
    );
    assert_eq!(lines[3][..4], ["MEMBER", "ROLE", "STATE", "TL"], "{text}");
    assert_eq!(lines[4][..4], ["demo-0", "primary", "running", "1"], "{text}");
    assert_eq!(lines[5][..4], ["demo-1", "standby", "streaming", "1"], "{text}");
    assert_eq!(lines[6][..4], ["demo-2", "standby", "streaming", "1"], "{text}");
    // The same by one member's address, and from the environment.
    let url = format!("http://{}", demo.address("demo-1", "http_port"));
    let by_url = podgres().args(["status", "--url", &url]).output();
    assert!(answer(&by_url.expect("status")).contains("demo-2"));
    let by_environment = podgres()
        .arg("status")
        .env("PODGRES_DEMO_DIR", &demo.directory)
        .output();
    assert!(answer(&by_environment.expect("status")).contains("demo-2"));
    let nobody = podgres().args(["status", "--url", "http://127.0.0.9:9"]).output();
    assert_eq!(nobody.expect("status").status.code(), Some(69));
}

#[test]
fn status_watch_shows_it_again_until_it_is_ended() {
    let demo = shared();
    let mut watch = podgres()
        .args(["status", "--watch", "--dir"])
        .arg(&demo.directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("status");
    let lines = BufReader::new(watch.stdout.take().expect("stdout")).lines();
    let headings = lines
        .map_while(Result::ok)
        .filter(|line| line.starts_with("cluster demo"));
    assert_eq!(headings.take(3).count(), 3);
    crate::kit::signal(watch.id(), rustix::process::Signal::INT);
    assert_eq!(watch.wait().expect("wait").code(), Some(0));
}

#[test]
fn replay_decides_what_was_decided() {
    let demo = shared();
    demo.wait_streaming(2);
    let folder = crate::kit::open_folder();
    let file = folder.path().join("decisions.json");
    let replay = |text: &str| {
        std::fs::write(&file, text).expect("write");
        podgres().arg("replay").arg(&file).output().expect("replay")
    };
    for pod in ["demo-0", "demo-1", "demo-2"] {
        let recorded = http_get(&demo.address(pod, "http_port"), "/debug/decisions");
        let lines = answer(&replay(&recorded));
        let decisions: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert!(decisions.len() > 2, "{lines}");
        assert!(
            decisions.iter().all(|one| one["same_as_recorded"] == true),
            "{lines}"
        );
        // One entry alone, of another pod in every respect but its ordinal.
        let entries: Vec<Value> = serde_json::from_str(&recorded).expect("JSON");
        let mut entry = entries.last().expect("an entry").clone();
        assert_eq!(
            count(&answer(&replay(&entry.to_string())), "\"same_as_recorded\":true"),
            1
        );
        entry["observation"]["supervisor"] = Value::Null;
        let line = answer(&replay(&entry.to_string()));
        assert!(line.contains("\"same_as_recorded\":false"), "{line}");
        assert!(line.contains("supervisor_unreachable"), "{line}");
    }
    assert_eq!(replay("{}").status.code(), Some(64));
    assert_eq!(replay("nonsense").status.code(), Some(64));
    let missing = podgres().args(["replay", "/nowhere"]).output().expect("replay");
    assert_eq!(missing.status.code(), Some(64));
}
