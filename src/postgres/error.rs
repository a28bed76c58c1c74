//! The errors that the file and program adapters share, and how a chain of them is shown.
//!
//! `Display` of each error shows itself only; the causes follow with [`describe`], once, where the
//! error is logged or handed to somebody else.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use super::replication::UpstreamError;
use super::tls::TlsError;
use crate::core::causes::causes;
use crate::core::supervision::FailureKind;
use crate::files::FileError;

/// A program that did not do what it was started for.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("could not execute \"{program}\"")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    /// `outcome` is "exited with code 1" or "was killed by signal 9"; `output` its last lines, which
    /// hold no secret since none is ever given to a program.
    #[error("\"{program}\" {outcome}{}{output}", if output.is_empty() { "" } else { ": " })]
    Failed {
        program: String,
        outcome: String,
        output: String,
    },
    #[error("\"{program}\" did not end within {limit_s} s")]
    Timeout { program: String, limit_s: u64 },
    #[error("could not read the output of \"{program}\": {detail}")]
    Output { program: String, detail: String },
}

impl ProgramError {
    /// Whether the program was ended by somebody else, so that its end says nothing about its work.
    #[must_use]
    pub fn killed(&self) -> bool {
        matches!(self, Self::Failed { outcome, .. } if outcome.starts_with("was killed"))
    }

    /// Whether this program ended by itself, with this exit code.
    #[must_use]
    pub fn exited(&self, name: &str, code: i32) -> bool {
        matches!(self, Self::Failed { program, outcome, .. }
            if program == name && *outcome == format!("exited with code {code}"))
    }

    /// What it said last; nothing if it never ran.
    #[must_use]
    pub fn output(&self) -> &str {
        match self {
            Self::Failed { output, .. } => output,
            Self::Spawn { .. } | Self::Timeout { .. } | Self::Output { .. } => "",
        }
    }
}

/// Why a data directory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    #[error("data directory \"{}\" is not empty: {found}", path.display())]
    NotEmpty { path: PathBuf, found: String },
    #[error(
        "cannot rename a new data directory to \"{0}\", since it is a mount point (set PGDATA to a \
         sub-directory of the volume, for example \"{0}/pgdata\")", path.display()
    )]
    MountPoint { path: PathBuf },
    #[error(
        "cannot rename a new data directory to \"{}\", since it is a symbolic link (set PGDATA to the \
         directory that it points to)", path.display()
    )]
    SymbolicLink { path: PathBuf },
    #[error("data directory \"{}\" is in use by process {pid}", path.display())]
    InUse { path: PathBuf, pid: u32 },
    #[error("not enough space for a copy of {needed_bytes} bytes: \"{}\" has {free_bytes} bytes free", path.display())]
    NoSpace {
        path: PathBuf,
        needed_bytes: u64,
        free_bytes: u64,
    },
    #[error("no space left on the volume of \"{}\": {output}", path.display())]
    DiskFull { path: PathBuf, output: String },
    #[error("upstream \"{upstream}\" has system identifier {found}, but this cluster has {expected}")]
    ForeignUpstream {
        upstream: String,
        expected: String,
        found: String,
    },
    #[error(
        "cannot clone upstream \"{upstream}\", since its tablespaces would be copied outside of PGDATA: {names} \
         (move what they hold to \"pg_default\" and drop them)"
    )]
    Tablespaces { upstream: String, names: String },
    #[error("could not ask upstream \"{upstream}\" for its tablespaces")]
    Upstream {
        upstream: String,
        #[source]
        source: UpstreamError,
    },
    #[error("could not {what} upstream \"{upstream}\"")]
    Source {
        what: &'static str,
        upstream: String,
        #[source]
        source: UpstreamError,
    },
    #[error("cannot rewind data directory \"{}\": {detail}", path.display())]
    NotRewindable { path: PathBuf, detail: String },
    #[error("could not rewind data directory \"{}\", which is as it was: {detail}", path.display())]
    RewindInterrupted { path: PathBuf, detail: String },
    #[error(
        "data directory \"{}\" is half rewound, so it is never started again (clone it anew): {detail}", path.display()
    )]
    HalfRewound { path: PathBuf, detail: String },
    #[error(
        "data directory \"{}\" has system identifier {found}, but this cluster has {expected}", path.display()
    )]
    ForeignDirectory {
        path: PathBuf,
        expected: String,
        found: String,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the copy of upstream \"{upstream}\" cannot be used: {detail}")]
    UnusableCopy { upstream: String, detail: String },
    #[error("the copy of upstream \"{upstream}\" made no progress for {limit_s} s")]
    Stalled { upstream: String, limit_s: u64 },
    #[error("initdb argument \"{argument}\" is not supported: {detail}")]
    InitdbArgument { argument: String, detail: &'static str },
    /// initdb pastes the name into SQL, and `CREATE EXTENSION` does not take such an owner.
    #[error("superuser name \"{name}\" cannot contain a quote, a dollar sign, a backslash or a line break")]
    SuperuserName { name: String },
    #[error("cannot run \"{}\": {detail}", script.display())]
    Script { script: PathBuf, detail: &'static str },
    #[error("could not prepare the new cluster: {what}")]
    Sql {
        what: &'static str,
        #[source]
        source: Box<tokio_postgres::Error>,
    },
}

impl JobError {
    /// What must change before trying again can help.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::MountPoint { .. }
            | Self::SymbolicLink { .. }
            | Self::InitdbArgument { .. }
            | Self::SuperuserName { .. }
            | Self::Script { .. } => FailureKind::Settings,
            Self::NotEmpty { .. }
            | Self::NoSpace { .. }
            | Self::DiskFull { .. }
            | Self::ForeignUpstream { .. }
            | Self::ForeignDirectory { .. }
            | Self::NotRewindable { .. }
            | Self::HalfRewound { .. }
            | Self::Tablespaces { .. } => FailureKind::Data,
            Self::Configuration(error) => error.kind(),
            Self::File(error) => match error.source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    FailureKind::Permission
                }
                io::ErrorKind::StorageFull => FailureKind::Data,
                _ => FailureKind::Passing,
            },
            Self::Program(_)
            | Self::InUse { .. }
            | Self::UnusableCopy { .. }
            | Self::Upstream { .. }
            | Self::Source { .. }
            | Self::RewindInterrupted { .. }
            | Self::Tls(_)
            | Self::Stalled { .. }
            | Self::Sql { .. } => FailureKind::Passing,
        }
    }

    /// Whether trying again cannot help before somebody changes a setting, the volume or the data.
    #[must_use]
    pub fn refused(&self) -> bool {
        self.kind() != FailureKind::Passing
    }
}

/// Why the configuration of a server could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("could not check the configuration")]
    Check(#[source] ProgramError),
    /// PostgreSQL itself does not take the files.
    #[error("PostgreSQL does not accept the configuration: {output}")]
    Rejected { output: String },
    #[error("setting \"{name}\" cannot be \"{value}\": {detail}")]
    Setting {
        name: &'static str,
        value: String,
        detail: &'static str,
    },
    #[error(
        "data directory \"{}\" holds \"standby.signal\", so it cannot be started as a primary", path.display()
    )]
    StandbySignal { path: PathBuf },
    #[error("{what} contains a line break")]
    LineBreak { what: &'static str },
}

impl ConfigurationError {
    /// See [`JobError::kind`].
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::File(_) | Self::Check(_) => FailureKind::Passing,
            Self::StandbySignal { .. } => FailureKind::Data,
            Self::Rejected { .. } | Self::Setting { .. } | Self::LineBreak { .. } => FailureKind::Settings,
        }
    }

    /// See [`JobError::refused`].
    #[must_use]
    pub fn refused(&self) -> bool {
        self.kind() != FailureKind::Passing
    }
}

/// The error and its causes in one line: `could not read file "x": permission denied`.
#[must_use]
pub fn describe(error: &dyn Error) -> String {
    causes(error).fold(error.to_string(), |text, cause| {
        // A cause that is already part of the text (a transparent error) is not said twice.
        let said = cause.to_string();
        if text.ends_with(&said) {
            text
        } else {
            format!("{text}: {said}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_shown_once_and_in_order() {
        let file = FileError {
            verb: "read file",
            path: PathBuf::from("/x"),
            source: io::Error::other("worn out"),
        };
        assert_eq!(
            describe(&JobError::File(file)),
            "could not read file \"/x\": worn out"
        );
    }

    #[test]
    fn a_full_disk_is_refused_and_a_lost_connection_is_not() {
        let full = JobError::File(FileError {
            verb: "write file",
            path: PathBuf::from("/x"),
            source: io::Error::from(io::ErrorKind::StorageFull),
        });
        assert!(full.refused());
        let lost = JobError::Program(ProgramError::Failed {
            program: "pg_basebackup".into(),
            outcome: "exited with code 1".into(),
            output: "connection refused".into(),
        });
        assert!(!lost.refused());
        assert_eq!(
            lost.to_string(),
            "\"pg_basebackup\" exited with code 1: connection refused"
        );
    }
}
