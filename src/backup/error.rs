//! Why a backup, a restore or a verification did not come about.

use std::io;
use std::path::{Path, PathBuf};

use crate::core::backup::choose::ChooseError;
use crate::core::backup::parent::NoParent;
use crate::core::backup::tar::InvalidHeader;
use crate::core::wal_file::InvalidWalFile;
use crate::files::{self, FileError};
use crate::postgres::error::{JobError, ProgramError};
use crate::postgres::find::FindError;
use crate::postgres::replication::UpstreamError;
use crate::postgres::scratch::StartError;
use crate::postgres::session::SessionError;
use crate::store::{LockError, StoreError};

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the lock of the destination was lost")]
    LockLost,
    #[error("could not stream a base backup from \"{server}\"")]
    Upstream { server: String, source: UpstreamError },
    #[error("could not ask server \"{server}\"")]
    Session { server: String, source: SessionError },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Job(#[from] JobError),
    /// A scratch server ended while it replayed the backup's WAL, or the archive's.
    #[error(transparent)]
    Scratch(#[from] StartError),
    #[error("backup \"{name}\" is of PostgreSQL {expected}, but \"{}\" holds programs of {found}", directory.display())]
    Programs {
        name: String,
        expected: u32,
        found: u32,
        directory: PathBuf,
    },
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Choose(#[from] ChooseError),
    #[error(transparent)]
    NoParent(#[from] NoParent),
    #[error(transparent)]
    WalFile(#[from] InvalidWalFile),
    #[error(transparent)]
    Tar(#[from] InvalidHeader),
    /// An object is not what was written.
    #[error("object \"{path}\" is damaged: {detail}")]
    Damaged { path: String, detail: String },
    #[error("backup record \"{path}\" cannot be read: {detail}")]
    Record { path: String, detail: String },
    #[error("destination \"{destination}\" holds backups of system identifier {found}, not of {expected}")]
    ForeignDestination {
        destination: String,
        found: String,
        expected: String,
    },
    #[error("backup \"{name}\" is encrypted with key {expected}{}", found.as_ref().map_or(String::new(), |found| format!(", not with key {found}")))]
    Key {
        name: String,
        expected: String,
        found: Option<String>,
    },
    #[error("data directory \"{}\" is not empty: {found}", path.display())]
    NotEmpty { path: PathBuf, found: String },
    #[error(
        "data directory \"{}\" was primary in term {term} of the Lease, and what is restored would be taken for it",
        path.display()
    )]
    Served { path: PathBuf, term: u64 },
    #[error("another restore into \"{}\" is under way", path.display())]
    Restoring { path: PathBuf },
    #[error("restored directory has system identifier {found}, but the backup {expected}")]
    ForeignDirectory { found: String, expected: String },
    #[error(
        "WAL file \"{file}\" is already archived with other content, written by \"{writer}\" in term {term}"
    )]
    OtherContent { file: String, writer: String, term: u64 },
    #[error("WAL file \"{file}\" of system identifier {found} cannot be archived for {expected}")]
    ForeignWal {
        file: String,
        found: String,
        expected: String,
    },
    #[error("archive \"{}\" is not the one that WAL was archived to: \"{}\" is not there", folder.display(), mark.display())]
    NoArchive { folder: PathBuf, mark: PathBuf },
    /// A bug: a task panicked or was dropped.
    #[error("a part of the work ended unexpectedly")]
    Broken,
}

impl BackupError {
    /// Another try on another member may succeed.
    #[must_use]
    pub fn retriable(&self) -> bool {
        match self {
            Self::Upstream { .. } => true,
            Self::Session { source, .. } => {
                source.conflict() || matches!(source, SessionError::Connect { .. })
            }
            Self::Program(ProgramError::Failed { program, output, .. }) => {
                program == "pg_dump"
                    && [
                        "conflict with recovery",
                        "terminating connection",
                        "connection to server",
                    ]
                    .iter()
                    .any(|part| output.contains(part))
            }
            _ => false,
        }
    }

    /// Going on would endanger data, or hide that something is wrong.
    #[must_use]
    pub fn refused(&self) -> bool {
        matches!(
            self,
            Self::Lock(LockError::Held { .. })
                | Self::Damaged { .. }
                | Self::Record { .. }
                | Self::ForeignDestination { .. }
                | Self::Key { .. }
                | Self::NotEmpty { .. }
                | Self::Served { .. }
                | Self::Restoring { .. }
                | Self::ForeignDirectory { .. }
                | Self::OtherContent { .. }
                | Self::ForeignWal { .. }
                | Self::Choose(_)
                | Self::NoParent(_)
        )
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Lock(LockError::Held { .. }) | Self::Restoring { .. } => {
                "Wait until it has ended; a run that died lets go by itself."
            }
            Self::ForeignDestination { .. } => "Give every cluster a destination of its own.",
            Self::Programs { .. } => {
                "Use PostgreSQL's programs of that version: --program-dir, or its image."
            }
            Self::Key { .. } => "Give --key-file the key that the backup was made with.",
            Self::NotEmpty { .. } => "Restore into a new directory, or move this one away first.",
            Self::Served { .. } => {
                "Restore to a new volume, or move the file with .podgres behind its name to where the old directory is."
            }
            Self::OtherContent { .. } => {
                "Two servers have written the same part of one timeline: one of them is not this cluster's primary, \
                 or a restored copy archives to the original's destination."
            }
            Self::NoArchive { .. } => {
                "Mount it again. If the archive is to begin anew, create that file, and make a backup at once."
            }
            Self::Choose(ChooseError::TooEarly { .. }) => "Look at `podgres backups` for what is there.",
            Self::Choose(ChooseError::Chain(_)) => {
                "Restore another one, or verify the parent again if it was put right."
            }
            // Its record's clock and the server's differ.
            Self::Scratch(StartError::Replaying(error))
                if error.output().contains("before consistent recovery point") =>
            {
                "By the server's clock the backup ended after that moment: name an older one by --backup."
            }
            Self::NoParent(reason) => return reason.hint(),
            Self::Upstream { source, .. } => return source.hint(),
            _ => return None,
        })
    }
}

/// Says which file an [`io::Error`] is about.
pub(super) trait FileContext<T> {
    fn file(self, verb: &'static str, path: &Path) -> Result<T, BackupError>;
}

impl<T, E: Into<io::Error>> FileContext<T> for Result<T, E> {
    fn file(self, verb: &'static str, path: &Path) -> Result<T, BackupError> {
        files::FileContext::file(self, verb, path).map_err(BackupError::File)
    }
}
