//! What a backup is, as plain data: its record, which ones are kept, which one a restore begins with.
//!
//! Never reads a clock or a store: whoever calls hands in the catalogue and the time.

pub mod archive;
pub mod catalogue;
pub mod chain;
pub mod choose;
pub mod moments;
pub mod name;
pub mod parent;
pub mod retention;
pub mod source;
pub mod tar;

use serde::{Deserialize, Serialize};

use super::data_directory::SystemIdentifier;
use super::wal::{Lsn, TimelineId};

/// The only form of [`Record`] so far.
pub const FORMAT: u32 = 1;

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The files of the whole server, with the WAL that makes them consistent.
    Physical,
    /// Dumps of databases, with the roles and tablespaces.
    Logical,
}

impl Kind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Physical => "physical",
            Self::Logical => "logical",
        }
    }
}

/// `backup.json`, written last: where it is, the backup is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// See [`name`].
    pub name: String,
    /// One more than that of any earlier backup at the destination: the order, whatever clocks say.
    pub sequence: u64,
    pub kind: Kind,
    pub system_identifier: SystemIdentifier,
    pub cluster: String,
    /// The Lease's term; 0 with a fixed primary.
    pub term: u64,
    pub timeline: TimelineId,
    /// Where replay begins; for a logical backup the position that the snapshot had at least reached.
    pub start_lsn: Lsn,
    /// Replay up to here makes the files consistent; as `start_lsn` for a logical one.
    pub stop_lsn: Lsn,
    /// Seconds since 1970, of the machine that made the backup.
    pub started_at: u64,
    pub finished_at: u64,
    /// The member that was read.
    pub source: String,
    /// `primary` or `standby`.
    pub source_role: String,
    /// `wal_segment_size`.
    pub wal_segment_bytes: u64,
    /// `server_version`, e.g. `16.14`.
    pub postgres_version: String,
    pub podgres_version: String,
    /// The backup that an incremental one adds to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The key's fingerprint, if the objects are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub objects: Vec<StoredObject>,
    /// What verification compares; none of tables that changed meanwhile.
    pub tables: Vec<TableFacts>,
}

impl Record {
    /// Bytes at the destination.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.stored_bytes).sum()
    }

    /// Bytes before compression.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.bytes).sum()
    }
}

/// One object of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Below the backup's own folder.
    pub path: String,
    pub content: Content,
    /// Before compression and encryption.
    pub bytes: u64,
    pub stored_bytes: u64,
    /// Of what is stored, hexadecimal.
    pub sha256: String,
}

/// What an object is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// A run of whole members of the data directory's tar archive, compressed.
    Base,
    /// The same of a tablespace.
    Tablespace { oid: u32, location: String },
    /// PostgreSQL's `backup_manifest`, compressed.
    Manifest,
    /// `pg_dumpall --globals-only`, compressed.
    Globals,
    /// `pg_dump` of a database.
    Dump {
        database: String,
        #[serde(default)]
        format: DumpFormat,
    },
}

impl Content {
    /// Whether podgres compresses it; else it is compressed already.
    #[must_use]
    pub fn to_be_compressed(&self) -> bool {
        match self {
            Self::Dump { format, .. } => *format == DumpFormat::Tar,
            Self::Base | Self::Tablespace { .. } | Self::Manifest | Self::Globals => true,
        }
    }
}

/// How `pg_dump` writes a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DumpFormat {
    /// One file, which `pg_restore` takes as it is.
    #[default]
    Custom,
    /// A file for each table, written by several jobs; stored as a tar archive of the folder.
    Directory,
    /// `pg_dump`'s own tar archive, compressed.
    Tar,
}

impl DumpFormat {
    /// As `pg_dump --format` takes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Directory => "directory",
            Self::Tar => "tar",
        }
    }

    /// How a dump's object is called.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Custom => "dump",
            Self::Directory => "dir.tar",
            Self::Tar => "tar.zst",
        }
    }

    /// Whether `pg_restore --jobs` can read it.
    #[must_use]
    pub fn parallel_restore(self) -> bool {
        self != Self::Tar
    }
}

/// What a table held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableFacts {
    pub database: String,
    /// Schema and name, quoted as SQL wants them.
    pub table: String,
    pub rows: u64,
    /// Sum of a hash of every row's text form.
    pub checksum: String,
}

/// `verified.json` beside the record: the last verification and what it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Seconds since 1970.
    pub at: u64,
    /// What differs; empty if nothing does.
    pub differences: Vec<String>,
    /// What was done, one line each.
    pub checks: Vec<String>,
}

/// A complete backup and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub record: Record,
    pub verification: Option<Verification>,
}

impl Entry {
    /// Not known to be bad.
    #[must_use]
    pub fn good(&self) -> bool {
        self.verification
            .as_ref()
            .is_none_or(|verification| verification.differences.is_empty())
    }

    #[must_use]
    pub fn verified(&self) -> bool {
        self.verification.is_some() && self.good()
    }

    /// What the last verification found first, if anything.
    #[must_use]
    pub fn first_difference(&self) -> Option<&str> {
        self.verification
            .as_ref()?
            .differences
            .first()
            .map(String::as_str)
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    /// A physical backup of timeline 1, finished at `finished_at`.
    pub(crate) fn entry(sequence: u64, finished_at: u64) -> Entry {
        Entry {
            record: Record {
                format: FORMAT,
                name: name::name(sequence, finished_at, Kind::Physical),
                sequence,
                kind: Kind::Physical,
                system_identifier: SystemIdentifier(7),
                cluster: "pg".to_owned(),
                term: 1,
                timeline: TimelineId(1),
                start_lsn: Lsn(sequence << 24),
                stop_lsn: Lsn((sequence << 24) + 0x1000),
                started_at: finished_at.saturating_sub(10),
                finished_at,
                source: "pg-1".to_owned(),
                source_role: "standby".to_owned(),
                wal_segment_bytes: 16 << 20,
                postgres_version: "16.14".to_owned(),
                podgres_version: "0.1.0".to_owned(),
                parent: None,
                key: None,
                objects: Vec::new(),
                tables: Vec::new(),
            },
            verification: None,
        }
    }

    /// One that adds to `parent`.
    pub(crate) fn child(sequence: u64, finished_at: u64, parent: &Entry) -> Entry {
        let mut child = entry(sequence, finished_at);
        child.record.parent = Some(parent.record.name.clone());
        child
            .record
            .postgres_version
            .clone_from(&parent.record.postgres_version);
        child
    }

    pub(crate) fn failed(mut entry: Entry) -> Entry {
        entry.verification = Some(Verification {
            at: entry.record.finished_at,
            differences: vec!["a file differs".to_owned()],
            checks: Vec::new(),
        });
        entry
    }
}
