//! The files of a physical backup in a directory, put together with those that it builds on.
//!
//! Every link of a chain is extracted beside the directory, each resumable as a full backup is; then `pg_combinebackup` of
//! the backup's version makes the directory, and the links go. A kill in between begins the combination anew.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::FileContext as _;
use super::files::blocking;
use super::restore::{Options, check_key};
use super::{BackupError, extract};
use crate::core::backup::Record;
use crate::core::backup::parent::major;
use crate::files::{create_private_directory, remove_tree, with_suffix};
use crate::postgres::combine::{Combination, combine_backups};
use crate::postgres::verify::verify_backup;
use crate::store::Store;

/// As PostgreSQL calls it, inside a backup.
pub(super) const MANIFEST: &str = "backup_manifest";
/// The first version whose `pg_combinebackup` can take files over instead of copying them.
const LINKS_SINCE: u32 = 18;

/// What a directory is made of, the full backup first.
pub(super) struct Assembly<'a> {
    pub store: &'a Store,
    pub chain: &'a [Record],
    pub options: &'a Options,
    /// Compare every file with PostgreSQL's manifests.
    pub prove: bool,
}

impl Assembly<'_> {
    /// Fills `directory`.
    ///
    /// # Errors
    /// An object is damaged, a file differs, the disk is full; what is there stays for the next try.
    pub(super) async fn fill(&self, directory: &Path) -> Result<(), BackupError> {
        for record in self.chain {
            check_key(record, self.options.key.as_ref())?;
        }
        let folder = with_suffix(directory, extract::CHAIN);
        if let [full] = self.chain {
            remove_tree(&folder)?;
            return self.extract(full, directory).await;
        }
        create_private_directory(&folder)?;
        let mut links = Vec::new();
        for record in self.chain {
            let link = folder.join(format!("{:06}", record.sequence));
            self.extract(record, &link).await?;
            let manifest = link.join(MANIFEST);
            fs::copy(with_suffix(&link, extract::MANIFEST), &manifest).file("copy file", &manifest)?;
            links.push(link);
        }
        self.combine(&links, directory).await?;
        blocking(move || Ok(remove_tree(&folder)?)).await
    }

    async fn extract(&self, record: &Record, directory: &Path) -> Result<(), BackupError> {
        extract::physical(self.store, record, self.options.key.as_ref(), directory).await?;
        self.prove(directory, &with_suffix(directory, extract::MANIFEST))
            .await
    }

    async fn combine(&self, links: &[PathBuf], directory: &Path) -> Result<(), BackupError> {
        let gone = directory.to_owned();
        blocking(move || {
            extract::forget(&gone)?;
            Ok(remove_tree(&gone)?)
        })
        .await?;
        let version = self
            .chain
            .last()
            .map_or(0, |record| major(&record.postgres_version));
        let combination = Combination {
            links,
            output: directory,
            consume: version >= LINKS_SINCE,
            manifest: self.prove,
        };
        tracing::info!(backups = links.len(), directory = %directory.display(), "putting backups together");
        combine_backups(&self.options.program_directory, &combination).await?;
        self.prove(directory, &directory.join(MANIFEST)).await
    }

    async fn prove(&self, directory: &Path, manifest: &Path) -> Result<(), BackupError> {
        if self.prove {
            verify_backup(&self.options.program_directory, directory, manifest).await?;
        }
        Ok(())
    }
}
