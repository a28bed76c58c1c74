//! `archive_command` of a standby: a file counts as archived once the primary has archived it.
//!
//! So every member keeps what is not archived yet, and a standby that is promoted archives what the lost primary had no time
//! for. Never sends what the primary is about to send: only what it has passed over.
//!
//! The last segment of a timeline that ended is never archived under its name: the promoted server calls its own `.partial`,
//! and the others' WAL receivers mark theirs as ready all the same (`WalReceiverMain`).

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::BackupError;
use super::error::FileContext as _;
use super::wal::{self, Pushed};
use super::wal_batch::Archiver;
use crate::core::backup::archive::continued_in;
use crate::core::wal::TimelineHistory;
use crate::core::wal_file::WalFile;

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
    let path = archiver.data_directory.join(source);
    if is_archived(archiver, file, &path).await? {
        return Ok(true);
    }
    if wal::passed_over(store, cluster, file).await? {
        let pushed = archiver.push(&path).await?;
        tracing::info!(file = %file, new = pushed == Pushed::New, "archived what the primary has passed over");
        return Ok(true);
    }
    let mut pause = FIRST_PAUSE;
    while is_standby(&archiver.data_directory) {
        tokio::time::sleep(pause).await;
        pause = LONGEST_PAUSE.min(2 * pause);
        if is_archived(archiver, file, &path).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Under its name; or what it has is the beginning of the next timeline's.
async fn is_archived(archiver: &Archiver, file: WalFile, path: &Path) -> Result<bool, BackupError> {
    let (store, cluster) = (&archiver.store, archiver.system_identifier);
    if wal::is_archived(store, cluster, file).await? {
        return Ok(true);
    }
    let Some(next) = next_timelines(file, path)? else {
        return Ok(false);
    };
    let archived = wal::is_archived(store, cluster, next).await?;
    if archived {
        tracing::info!(file = %file, next = %next, "its timeline ended in it; the next one's is archived");
    }
    Ok(archived)
}

/// By the history that this server has received itself: one that is only in the archive may be another server's way.
fn next_timelines(file: WalFile, path: &Path) -> Result<Option<WalFile>, BackupError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut newest = None;
    for entry in fs::read_dir(folder).file("read directory", folder)? {
        let name = entry.file("read directory", folder)?.file_name();
        if let Ok(WalFile::History { timeline }) = name.to_string_lossy().parse() {
            newest = newest.max(Some(timeline));
        }
    }
    let Some(timeline) = newest.filter(|newest| *newest > file.timeline()) else {
        return Ok(None);
    };
    let history = folder.join(WalFile::History { timeline }.to_string());
    let text = fs::read_to_string(&history).file("read file", &history)?;
    let Ok(history) = TimelineHistory::parse(timeline, &text) else {
        return Ok(None);
    };
    let segment_bytes = fs::metadata(path).file("stat file", path)?.len();
    Ok(continued_in(file, &history, segment_bytes))
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
    async fn the_last_segment_of_a_timeline_that_ended_was_waited_for_for_ever() {
        let lab = lab();
        let data = &lab.archiver.data_directory;
        let segment = fs::File::create(data.join(FILE)).expect("file");
        segment.set_len(16 << 20).expect("a segment's size");
        let history = data.join("pg_wal/00000002.history");
        fs::write(history, "1\t0/A2000100\tno recovery target specified\n").expect("file");
        let next = data.join("pg_wal/0000000200000000000000A2");
        fs::write(&next, "wal").expect("file");
        let waited = tokio::time::timeout(Duration::from_millis(700), lab.confirmed()).await;
        assert!(waited.is_err(), "nothing is archived yet");
        lab.archiver.push(&next).await.expect("push");
        assert!(lab.confirmed().await.expect("confirmed"));
        assert!(!lab.archived().await, "it is the primary's to archive");
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
