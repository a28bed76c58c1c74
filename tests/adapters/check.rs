//! `podgres check -f`: manifests from files and pipes, as a user gives them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::kustomize::build;

/// Exit code, and what it printed; `input` is what it may read from standard input.
fn check(files: &[&Path], input: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podgres"));
    command.arg("check");
    for file in files {
        command.arg("-f").arg(file);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("podgres runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // Whoever reads nothing closes it.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output().expect("podgres ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// JSON is YAML.
fn documents(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}

#[test]
fn manifests_are_read_from_files_lists_and_pipes() {
    const WELL: &str = "manifests: nothing found that cannot work\n";
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let mut objects = build("overlays/lease", &["role-label", "events"]);
    let (some, others) = objects.split_at(3);
    std::fs::write(path("some.yaml"), documents(some)).expect("written");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": others});
    std::fs::write(path("others.yaml"), list.to_string()).expect("written");
    let (code, said, _) = check(&[&path("some.yaml"), &path("others.yaml")], "");
    assert_eq!((code, said.as_str()), (Some(0), WELL));
    let (code, said, _) = check(&[Path::new("-")], &documents(&objects));
    assert_eq!((code, said.as_str()), (Some(0), WELL));

    let set = objects.iter_mut().find(|object| object["kind"] == "StatefulSet");
    let set = &mut set.expect("the set")["spec"];
    set["serviceName"] = json!("nowhere");
    set["template"]["spec"]["terminationGracePeriodSeconds"] = json!(5);
    let (code, said, complaint) = check(&[Path::new("-")], &documents(&objects));
    assert_eq!(code, Some(64), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("StatefulSet \"pg\": serviceName \"nowhere\" names no Service")
            && lines[1].starts_with("    hint: ")
            && lines[2].contains("terminationGracePeriodSeconds is 5"),
        "{said}"
    );
    assert!(complaint.contains("2 things cannot work"), "{complaint}");
}

#[test]
fn what_is_no_manifest_is_named() {
    let (code, _, complaint) = check(&[Path::new("-")], "a: [b");
    assert!(
        code == Some(64) && complaint.contains("is not YAML"),
        "{code:?} {complaint}"
    );
    let (code, _, complaint) = check(&[Path::new("/nowhere/at-all.yaml")], "");
    assert!(
        code == Some(64) && complaint.contains("/nowhere/at-all.yaml"),
        "{code:?} {complaint}"
    );
    let (code, said, _) = check(&[Path::new("-")], "kind: ConfigMap\nmetadata: {name: x}\n");
    assert!(
        code == Some(64) && said.contains("no StatefulSet runs podgres"),
        "{code:?} {said}"
    );
}
