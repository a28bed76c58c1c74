//! Runs one program to its end, reads what it says, and leaves nothing of it behind.
//!
//! Dropping a [`Program`] ends its whole process group.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

use super::error::ProgramError;
use super::lines::Lines;

/// Lines of output that an error message repeats.
const TAIL_LINES: usize = 12;
/// Lines of standard output that are kept: more than any program here prints.
const STDOUT_LINES: usize = 1000;
/// How long output may still come after the program has ended, e.g. from its own children.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// One line that a program printed.
#[derive(Debug)]
pub(super) enum Line {
    Out(String),
    Err(String),
}

/// A running program.
pub(super) struct Program {
    name: String,
    child: Child,
    group: Option<Pid>,
    at_drop: Signal,
    stdout: Lines<ChildStdout>,
    stderr: Lines<ChildStderr>,
    tail: VecDeque<String>,
}

impl Program {
    pub(super) fn spawn(command: Command) -> Result<Self, ProgramError> {
        Self::spawn_with(command, Stdio::piped(), Signal::KILL)
    }

    /// As [`Program::spawn`], with the standard output going somewhere else.
    pub(super) fn spawn_into(command: Command, stdout: Stdio) -> Result<Self, ProgramError> {
        Self::spawn_with(command, stdout, Signal::KILL)
    }

    /// A postmaster: dropped, it shuts down at once but in order, so that its shared memory goes with it.
    pub(super) fn spawn_server(command: Command) -> Result<Self, ProgramError> {
        Self::spawn_with(command, Stdio::piped(), Signal::QUIT)
    }

    fn spawn_with(mut command: Command, stdout: Stdio, at_drop: Signal) -> Result<Self, ProgramError> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        let spawned = command
            .stdout(stdout)
            .stderr(Stdio::piped())
            .kill_on_drop(at_drop == Signal::KILL)
            .spawn();
        let mut child = spawned.map_err(|source| ProgramError::Spawn {
            program: name.clone(),
            source,
        })?;
        Ok(Self {
            name,
            group: group_of(&child),
            at_drop,
            stdout: Lines::new(child.stdout.take()),
            stderr: Lines::new(child.stderr.take()),
            tail: VecDeque::new(),
            child,
        })
    }

    /// The standard output for the caller to read, as bytes.
    pub(super) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// For the program itself, without what it has started.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(program) = group_of(&self.child) {
            // ESRCH: it has ended, which is seen next.
            kill_process(program, signal).ok();
        }
    }

    /// Waits for the end and judges it.
    pub(super) async fn end(&mut self) -> Result<(), ProgramError> {
        loop {
            if let Event::Ended(status) = self.next().await? {
                self.drain().await;
                return self.judge(status);
            }
        }
    }

    /// The next line of output, or how the program ended.
    pub(super) async fn next(&mut self) -> Result<Event, ProgramError> {
        let line = tokio::select! {
            biased;
            Some(text) = self.stderr.next() => Line::Err(text),
            Some(text) = self.stdout.next() => Line::Out(text),
            status = self.child.wait() => return self.ended(status).map(Event::Ended),
        };
        self.remember(&line);
        Ok(Event::Line(line))
    }

    /// The rest of the output after the end, as far as it comes within a second.
    pub(super) async fn drain(&mut self) -> Vec<Line> {
        let mut rest = Vec::new();
        let all = async {
            while let Some(text) = self.stderr.next().await {
                rest.push(Line::Err(text));
            }
            while let Some(text) = self.stdout.next().await {
                rest.push(Line::Out(text));
            }
        };
        // Whoever still holds the pipe after that does not belong to the program any more.
        timeout(DRAIN_LIMIT, all).await.ok();
        for line in &rest {
            self.remember(line);
        }
        rest
    }

    /// `Ok` if the program exited with 0, else what it said last.
    pub(super) fn judge(&self, status: ExitStatus) -> Result<(), ProgramError> {
        if status.success() {
            return Ok(());
        }
        Err(ProgramError::Failed {
            program: self.name.clone(),
            outcome: outcome(status),
            output: self.tail(),
        })
    }

    /// The last lines of output in one.
    pub(super) fn tail(&self) -> String {
        self.tail
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("; ")
    }

    fn remember(&mut self, line: &Line) {
        let (Line::Out(text) | Line::Err(text)) = line;
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        if !text.trim().is_empty() {
            self.tail.push_back(text.trim().to_owned());
        }
    }

    fn ended(&mut self, status: std::io::Result<ExitStatus>) -> Result<ExitStatus, ProgramError> {
        // What the program started itself ends with it.
        signal_group(self.group.take(), Signal::KILL);
        status.map_err(|source| ProgramError::Output {
            program: self.name.clone(),
            detail: source.to_string(),
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        signal_group(self.group.take(), self.at_drop);
    }
}

/// What [`Program::next`] saw.
#[derive(Debug)]
pub(super) enum Event {
    Line(Line),
    Ended(ExitStatus),
}

/// Runs `command` and gives its standard output, one string a line.
///
/// # Errors
/// It cannot be started, does not end within `limit` (then it is killed) or fails.
pub(super) async fn run(command: Command, limit: Duration) -> Result<Vec<String>, ProgramError> {
    run_watched(command, Some(limit), |_| {}).await
}

/// As [`run`], and shows every line to `watch` as it comes. Without a limit the caller's own end is the limit.
pub(super) async fn run_watched(
    command: Command,
    limit: Option<Duration>,
    mut watch: impl FnMut(&Line),
) -> Result<Vec<String>, ProgramError> {
    let mut program = Program::spawn(command)?;
    let mut stdout = Vec::new();
    let mut take = |line: Line| {
        watch(&line);
        if let Line::Out(text) = line
            && stdout.len() < STDOUT_LINES
        {
            stdout.push(text);
        }
    };
    let all = async {
        let status = loop {
            match program.next().await? {
                Event::Line(line) => take(line),
                Event::Ended(status) => break status,
            }
        };
        program.drain().await.into_iter().for_each(&mut take);
        program.judge(status)
    };
    match limit {
        None => all.await?,
        Some(limit) => {
            let result = timeout(limit, all).await;
            result.map_err(|_| ProgramError::Timeout {
                program: program.name.clone(),
                limit_s: limit.as_secs(),
            })??;
        }
    }
    Ok(stdout)
}

/// "exited with code 1" or "was killed by signal 9".
pub(super) fn outcome(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn group_of(child: &Child) -> Option<Pid> {
    child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
}

fn signal_group(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // ESRCH: nothing of it is left, which is what is wanted.
        kill_process_group(group, signal).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let path = std::path::Path::new("/bin/sh");
        let mut command =
            super::super::process::command(path, super::super::process::Locale::C, Signal::KILL);
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn output_and_failure_are_told() {
        let limit = Duration::from_secs(10);
        let lines = run(shell("printf 'a\\rb\\n'; echo c"), limit).await.expect("run");
        assert_eq!(lines, ["a", "b", "c"]);
        let error = run(shell("echo broken >&2; exit 3"), limit)
            .await
            .expect_err("fails");
        assert_eq!(error.to_string(), "\"sh\" exited with code 3: broken");
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed_with_its_children() {
        let begun = std::time::Instant::now();
        let error = run(shell("sleep 60 & sleep 60"), Duration::from_millis(300))
            .await
            .expect_err("too long");
        assert!(matches!(error, ProgramError::Timeout { .. }), "{error}");
        // The background child holds the pipe open, which must not hold us up.
        run(shell("sleep 60 &"), Duration::from_secs(20))
            .await
            .expect("run");
        assert!(begun.elapsed() < Duration::from_secs(15));
    }
}
