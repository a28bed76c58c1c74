//! Parse, start the log, run the verb, end with its exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use podgres::cmd::{CommandLine, Failure, run};
use podgres::{config, telemetry};

/// musl's own allocator asks the kernel for pages at almost every turn of the loop; see docs/decisions.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    config::end_with_parent();
    let command = match CommandLine::try_parse() {
        Ok(command) => command,
        Err(error) => {
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    telemetry::start(command.log_format, command.log_level);
    match run(command.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            show(&failure);
            failure.status.into()
        }
    }
}

/// As PostgreSQL's programs do it: message, detail, hint, each on its line of stderr.
fn show(failure: &Failure) {
    // What is expected needs no words, e.g. the end of an archive.
    if failure.message.is_empty() {
        return;
    }
    let mut stderr = std::io::stderr().lock();
    drop(writeln!(stderr, "podgres: error: {}", failure.message));
    for (name, text) in [("detail", &failure.detail), ("hint", &failure.hint)] {
        if let Some(text) = text {
            drop(writeln!(stderr, "podgres: {name}: {text}"));
        }
    }
}
