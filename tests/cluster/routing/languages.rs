//! The examples of docs/routing.md, run as they stand there: one per driver.

use std::path::{Path, PathBuf};
use std::process::Command;

use podgres::core::member::Ordinal;

use crate::harness::{Demo, LIMIT, Start, programs, wait_for};

const PAGE: &str = include_str!("../../../docs/routing.md");

/// The drivers; installed with the first call.
fn drivers() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target");
    let folder = target.join("clients");
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = Command::new(top.join("tests/tools/clients"))
        .arg(&folder)
        .status();
    assert!(installed.expect("tests/tools/clients").success());
    folder
}

/// The page's blocks in a language, with the demo's ports.
fn examples(language: &str, demo: &Demo) -> Vec<String> {
    let ports = demo.deployed().ports;
    let start = format!("```{language}\n");
    let blocks = PAGE
        .split(&start)
        .skip(1)
        .map(|rest| rest.split("```").next().expect("a block"));
    let with_ports = blocks.map(|text| {
        let text = text.replace("6432", &ports.read_write.to_string());
        text.replace("6433", &ports.read_only.to_string())
    });
    with_ports.collect()
}

/// What a program printed.
fn run(demo: &Demo, command: &mut Command) -> String {
    let state = demo.deployed();
    let pod = state.pod(Ordinal(0)).expect("a pod");
    let password = std::fs::read_to_string(&state.password_file).expect("password");
    let output = command
        .env("PGHOST", pod.address.to_string())
        .env("PGUSER", &state.superuser)
        .env("PGPASSWORD", password.trim_end())
        .env("PGDATABASE", &state.database)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("a program");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn every_example_of_the_page_reads_its_own_write() {
    let drivers = drivers();
    let demo = Start::new(16).with(&["--replicas", "2"]).run();
    demo.wait_streaming(1);
    demo.sql(&[], "CREATE TABLE orders (n int)");
    // The route has taken up the standby.
    demo.wait_sql(&["--read-only"], "SELECT pg_is_in_recovery()", "t");
    let folder = tempfile::tempdir().expect("folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("example");
        path
    };
    let mut rows = 0;
    let mut count = || {
        rows += 1;
        rows.to_string()
    };

    let path = std::env::var("PATH").expect("PATH");
    let path = format!("{}:{path}", programs(16).display());
    let [psql] = &examples("bash", &demo)[..] else {
        panic!("one psql example");
    };
    // A standby that gets no time for half a second is not fresh, and the primary answers.
    let mut answer = String::new();
    let on_standby = wait_for(LIMIT, || {
        answer = run(&demo, Command::new("bash").args(["-c", psql]).env("PATH", &path));
        answer.lines().any(|line| line.trim() == "t")
    });
    assert!(on_standby, "at most 500 ms old, and idle: {answer}");
    let python = examples("python", &demo);
    assert_eq!(python.len(), 2, "psycopg and asyncpg");
    for text in python {
        let script = write("example.py", &text);
        let answer = run(&demo, Command::new(drivers.join("python/bin/python")).arg(script));
        assert_eq!(answer, count(), "{text}");
    }
    for text in examples("javascript", &demo) {
        let script = write("example.js", &text);
        let modules = drivers.join("node_modules");
        let answer = run(&demo, Command::new("node").arg(script).env("NODE_PATH", modules));
        assert_eq!(answer, count(), "{text}");
    }
    for text in examples("java", &demo) {
        let source = write("Example.java", &text);
        let mut java = Command::new("java");
        java.args(["-cp", "/usr/share/java/postgresql.jar"]).arg(source);
        assert_eq!(run(&demo, &mut java), count(), "{text}");
    }
    assert_eq!(rows, 4, "four drivers");
}
