//! kubectl as a user runs it, with a limit on its time.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const LIMIT_SECONDS: &str = "120";

/// `KUBECTL`, or kubectl on PATH.
pub(crate) fn program() -> String {
    std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned())
}

pub(crate) fn kubectl() -> Command {
    let mut command = Command::new("timeout");
    command.arg(LIMIT_SECONDS).arg(program()).stdin(Stdio::null());
    command
}

/// The kubeconfig file as kubectl puts it together, of however many.
pub(crate) fn kubeconfig() -> tempfile::NamedTempFile {
    let whole = text(kubectl().args(["config", "view", "--raw", "--flatten"]));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), whole).expect("written");
    file
}

/// Runs a page's commands in a folder, their `kubectl` in a namespace; what they wrote, or a panic.
pub(crate) fn script(namespace: &str, script: &str, folder: &Path) -> String {
    /// Longer than any page's command takes here.
    const LIMIT_SECONDS: u32 = 300;
    let program = program();
    let kubectl = format!("kubectl() {{ timeout {LIMIT_SECONDS} {program} -n {namespace} \"$@\"; }}\n");
    let mut shell = Command::new("sh");
    shell
        .args(["-euc", &format!("{kubectl}{script}")])
        .current_dir(folder);
    text(&mut shell)
}

/// What it wrote, or a panic with what it complained about.
pub(crate) fn text(command: &mut Command) -> String {
    let output = command.output().expect("kubectl runs");
    assert!(output.status.success(), "{command:?}: {}", complaint(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Gives it something to read.
pub(crate) fn text_with_input(command: &mut Command, input: &str) -> String {
    try_with_input(command, input).unwrap_or_else(|complaint| panic!("{command:?}: {complaint}"))
}

/// As [`text_with_input`]; `Err` with what it complained about.
pub(crate) fn try_with_input(command: &mut Command, input: &str) -> Result<String, String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("kubectl reads");
    drop(stdin);
    let output = child.wait_with_output().expect("kubectl ends");
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).expect("UTF-8"))
    } else {
        Err(complaint(&output))
    }
}

pub(crate) fn complaint(output: &Output) -> String {
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    format!(
        "{}\n{}\n{}",
        output.status,
        words(&output.stdout),
        words(&output.stderr)
    )
}
