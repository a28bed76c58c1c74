//! `podgres check`: manifests from files and pipes, as a user gives them, and where live objects are looked for.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
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
    let documents = objects.iter().map(|object| format!("---\n{object}\n"));
    documents.collect::<Vec<_>>().concat()
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

/// Says of any list that nothing is in it; where it is asked.
fn empty_cluster() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut asked = [0; 4096];
            drop(stream.read(&mut asked));
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{\"items\":[]}";
            stream.write_all(answer.as_bytes()).expect("an answer");
        }
    });
    address
}

#[test]
fn live_objects_were_looked_for_in_default_whatever_the_context_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = folder.path().join("config");
    let context = |name: &str, more: &str| {
        format!("  - name: {name}\n    context: {{cluster: here, user: me{more}}}\n")
    };
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: shop\nclusters:\n  - {{name: here, cluster: {{server: \"http://{}\"}}}}\nusers:\n  - {{name: me, user: {{}}}}\ncontexts:\n{}{}",
        empty_cluster(),
        context("shop", ", namespace: shop"),
        context("plain", ""),
    );
    std::fs::write(&kubeconfig, text).expect("written");
    for (more, namespace) in [
        (&[][..], "shop"),
        (&["-n", "other"], "other"),
        (&["--context", "plain"], "default"),
    ] {
        let mut check = Command::new(env!("CARGO_BIN_EXE_podgres"));
        check
            .args(["check", "--live", "pg", "--kubeconfig"])
            .arg(&kubeconfig)
            .args(more);
        check.env_remove("POD_NAMESPACE");
        let output = check.output().expect("podgres runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let wanted = format!("there is no StatefulSet \"pg\" in namespace \"{namespace}\"");
        assert!(said.contains(&wanted), "{more:?}: {said}");
    }
}
