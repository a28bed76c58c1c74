//! How every PostgreSQL program is started: with a small environment, and never outliving podgres.
//!
//! Secrets reach no argument and no environment of a child. A child is bound to the *thread* that
//! starts it (see `prctl(2)`, `PR_SET_PDEATHSIG`): start it from a runtime worker or the main thread,
//! never from the blocking pool, whose threads end when idle.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use tokio::process::Command;

use super::ServerSettings;

/// Names that children inherit; everything else of our environment stays here. `LD_PRELOAD` and
/// `NSS_WRAPPER_` give a name to a user id that the image does not know, as images are told to do.
const INHERITED: &[&str] = &["PATH", "HOME", "LANG", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD"];
const INHERITED_PREFIXES: &[&str] = &["LC_", "NSS_WRAPPER_", "PG_OOM_ADJUST_"];

/// The language a program speaks and sorts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Locale {
    /// Its output is read by podgres.
    C,
    /// As podgres was started: it decides what a new cluster sorts by.
    Inherited,
}

/// The postmaster of PGDATA with the generated configuration, not yet started.
///
/// Its log goes to our stdout. If podgres dies, the postmaster gets SIGQUIT (immediate shutdown). It leads
/// its own process group, so that a terminal's Ctrl-C reaches podgres alone.
///
/// # Errors
/// Our own stdout cannot be duplicated.
pub fn postmaster_command(settings: &ServerSettings) -> io::Result<Command> {
    let mut config_file = OsString::from("config_file=");
    config_file.push(super::conf::path(settings));
    let mut command = command(&settings.program("postgres"), Locale::Inherited, Signal::QUIT);
    command
        .arg("-D")
        .arg(&settings.data_directory)
        .arg("-c")
        .arg(config_file)
        .stdout(Stdio::inherit())
        .stderr(Stdio::from(io::stdout().as_fd().try_clone_to_owned()?));
    for (name, value) in super::conf::archive(settings) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    Ok(command)
}

/// A program with the small environment and no input, which gets `at_our_end` when podgres dies.
pub(super) fn command(program: &Path, locale: Locale, at_our_end: Signal) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| inherited(name)))
        .stdin(Stdio::null())
        .process_group(0);
    if locale == Locale::C {
        command.env("LC_ALL", "C");
    }
    end_with_parent(&mut command, at_our_end);
    command
}

fn inherited(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        INHERITED.contains(&name) || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

#[expect(
    unsafe_code,
    reason = "only pre_exec can set a child's parent-death signal before it runs"
)]
fn end_with_parent(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let bind = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have died before the call above: then no signal will come.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::Error::from(rustix::io::Errno::CHILD))
        }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: `bind` makes two plain
    // system calls, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(bind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_variables_are_inherited() {
        for name in ["PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "HOME"] {
            assert!(inherited(OsStr::new(name)), "{name}");
        }
        for name in [
            "POSTGRES_PASSWORD",
            "PODGRES_RUN_DIR",
            "PGPASSWORD",
            "PGDATA",
            "PATHX",
            "AWS_SECRET",
        ] {
            assert!(!inherited(OsStr::new(name)), "{name}");
        }
    }
}
