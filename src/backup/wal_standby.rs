//! `archive_command` of a standby: a file counts as archived once the primary has archived it.
//!
//! So every member keeps what is not archived yet, and a standby that is promoted archives what the lost primary had no time
//! for. Never sends what the primary is about to send: only what it has passed over.

use std::path::Path;
use std::time::Duration;

use super::BackupError;
use super::wal::{self, Pushed};
use super::wal_batch::Archiver;
use crate::core::backup::wal_file::WalFile;

/// The primary archives a segment within moments, or not for long: then each look is a request that costs.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
const STANDBY_SIGNAL: &str = "standby.signal";

/// Whether the server of a data directory is a standby, for a program that knows no more than its place.
#[must_use]
pub fn is_standby(data_directory: &Path) -> bool {
    data_directory.join(STANDBY_SIGNAL).exists()
}

/// Ends when the file is archived, or when this server is no standby any more: then it is the caller's turn.
///
/// # Errors
/// The store's, or the name is none of a WAL file.
pub async fn confirmed(archiver: &Archiver, source: &Path) -> Result<bool, BackupError> {
    let file: WalFile = source.file_name().unwrap_or_default().to_string_lossy().parse()?;
    let (store, cluster) = (&archiver.store, archiver.system_identifier);
    if wal::is_archived(store, cluster, file).await? {
        return Ok(true);
    }
    if wal::passed_over(store, cluster, file).await? {
        let source = archiver.data_directory.join(source);
        let pushed = archiver.push(&source).await?;
        tracing::info!(file = %file, new = pushed == Pushed::New, "archived what the primary has passed over");
        return Ok(true);
    }
    let mut pause = FIRST_PAUSE;
    while is_standby(&archiver.data_directory) {
        tokio::time::sleep(pause).await;
        pause = LONGEST_PAUSE.min(2 * pause);
        if wal::is_archived(store, cluster, file).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::backup::wal::Writer;
    use crate::core::data_directory::SystemIdentifier;
    use crate::store::{Store, StoreSettings};

    const FILE: &str = "pg_wal/0000000100000000000000A2";

    /// A standby's directory with one segment, and an archive with nothing.
    struct Lab {
        archiver: Archiver,
        _folder: tempfile::TempDir,
    }

    fn lab() -> Lab {
        let folder = tempfile::tempdir().expect("folder");
        let data_directory = folder.path().join("data");
        fs::create_dir_all(data_directory.join("pg_wal")).expect("folder");
        fs::write(data_directory.join(FILE), "wal").expect("file");
        fs::write(data_directory.join(STANDBY_SIGNAL), "").expect("file");
        let destination = folder.path().join("archive");
        fs::create_dir(&destination).expect("folder");
        let settings = StoreSettings::new(destination.to_str().expect("utf-8").parse().expect("valid"));
        let archiver = Archiver {
            store: Store::open(&settings).expect("store"),
            writer: Writer {
                member: "pg-1".to_owned(),
                term: 1,
                key: None,
            },
            system_identifier: SystemIdentifier(7),
            data_directory,
            place: None,
            marks: None,
        };
        Lab {
            archiver,
            _folder: folder,
        }
    }

    impl Lab {
        async fn confirmed(&self) -> Result<bool, BackupError> {
            let asked = confirmed(&self.archiver, Path::new(FILE));
            tokio::time::timeout(Duration::from_secs(20), asked)
                .await
                .expect("it ends")
        }

        /// What the primary does.
        async fn archive(&self) {
            let Archiver {
                store,
                writer,
                system_identifier,
                data_directory,
                ..
            } = &self.archiver;
            let source = data_directory.join(FILE);
            wal::push(store, writer, *system_identifier, &source)
                .await
                .expect("push");
        }

        async fn archived(&self) -> bool {
            let file = Path::new(FILE)
                .file_name()
                .and_then(|name| name.to_str())
                .expect("a name");
            let file = file.parse().expect("a WAL file");
            let (store, cluster) = (&self.archiver.store, self.archiver.system_identifier);
            wal::is_archived(store, cluster, file).await.expect("store")
        }
    }

    #[tokio::test]
    async fn what_the_primary_has_archived_is_confirmed() {
        let lab = lab();
        lab.archive().await;
        assert!(lab.confirmed().await.expect("confirmed"));
    }

    #[tokio::test]
    async fn it_waits_for_the_primary_and_sends_nothing_itself() {
        let lab = lab();
        let later = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            assert!(
                !lab.archived().await,
                "the standby has archived what is the primary's"
            );
            lab.archive().await;
        };
        let (confirmed, ()) = tokio::join!(lab.confirmed(), later);
        assert!(confirmed.expect("confirmed"));
    }

    #[tokio::test]
    async fn once_promoted_it_is_the_callers_turn() {
        let lab = lab();
        let signal = lab.archiver.data_directory.join(STANDBY_SIGNAL);
        let later = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            fs::remove_file(signal).expect("remove");
        };
        let (confirmed, ()) = tokio::join!(lab.confirmed(), later);
        assert!(!confirmed.expect("an answer"));
        assert!(!lab.archived().await);
    }

    #[tokio::test]
    async fn what_many_later_ones_have_passed_over_is_archived_by_the_standby() {
        let lab = lab();
        let folder = lab.archiver.store.folder().expect("a folder").join("wal/7");
        fs::create_dir_all(&folder).expect("folder");
        for number in 0xB0..0xB0 + 65 {
            fs::write(folder.join(format!("0000000100000000{number:08X}.zst")), "").expect("file");
        }
        assert!(lab.confirmed().await.expect("confirmed"));
        assert!(lab.archived().await);
    }
}
