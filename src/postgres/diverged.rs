//! Keeps what only this member has before it is rewound or replaced: the WAL after the place where the cluster's history
//! went another way, in a folder beside PGDATA, counted for the operator.
//!
//! Changes nothing in PGDATA. What cannot be counted or kept is said in the log and holds up nobody.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::ServerSettings;
use super::error::JobError;
use super::files::blocking;
use super::staging;
use super::waldump::{self, Contents};
use crate::core::data_directory::DataDirectoryFacts;
use crate::core::supervision::DivergedWal;
use crate::core::wal::{Lsn, TimelineHistory, TimelineId, WalPosition};
use crate::core::wal_file::WalFile;
use crate::files::{
    FileContext as _, FileError, create_private_directory, sync_directory, with_suffix, write_private,
};

/// Beside PGDATA.
const FOLDER: &str = "podgres.diverged";
const REPORT: &str = "diverged.json";
const UNFINISHED: &str = ".new";
const KEPT_FOLDERS: usize = 5;

/// How files get into the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// `pg_rewind` overwrites them in place.
    Copy,
    /// The directory is deleted as a whole.
    Link,
}

/// The report of what was kept last; `None` if nothing ever was. Blocks.
#[must_use]
pub fn newest(settings: &ServerSettings) -> Option<DivergedWal> {
    let folder = folder(settings);
    let newest = kept(&folder).pop()?;
    let report = fs::read(folder.join(newest).join(REPORT)).ok()?;
    serde_json::from_slice(&report).ok()
}

/// Where this directory's history leaves that of `upstream`; `None` if it does not, or has nothing in common with it.
///
/// # Errors
/// Its own history cannot be read.
pub(super) async fn branch_point(
    settings: &ServerSettings,
    facts: &DataDirectoryFacts,
    upstream: &TimelineHistory,
) -> Result<Option<(WalPosition, TimelineHistory)>, JobError> {
    let wal = settings.data_directory.join("pg_wal");
    let timeline = facts.timeline;
    let own = blocking(move || own_history(&wal, timeline)).await?;
    let branch = upstream
        .branch_point(&own)
        .filter(|branch| branch.lsn < Lsn(u64::MAX));
    Ok(branch.map(|branch| (branch, own)))
}

/// Keeps the WAL of `own` from `branch` on. Nothing, if all that it holds is what an idle server writes.
///
/// # Errors
/// It could not be counted, or the volume does not take it.
pub(super) async fn keep(
    settings: &ServerSettings,
    facts: &DataDirectoryFacts,
    branch: WalPosition,
    own: &TimelineHistory,
    how: Keep,
) -> Result<Option<DivergedWal>, JobError> {
    let wal = settings.data_directory.join("pg_wal");
    let stretches = stretches(own, branch);
    let mut contents = Contents::default();
    for (from, end) in &stretches {
        contents.add(waldump::count(settings, &wal, *from, *end).await?);
    }
    if contents.records == 0 && !contents.uncounted {
        return Ok(None);
    }
    let to = facts
        .control_lsn
        .max(contents.last_lsn.unwrap_or_default())
        .max(branch.lsn);
    let report = DivergedWal {
        kept_in: String::new(),
        from_lsn: branch.lsn.to_string(),
        to_lsn: to.to_string(),
        commits: contents.commits,
        bytes: to.bytes_since(branch.lsn),
        first_commit: contents.first_commit,
        last_commit: contents.last_commit,
    };
    let timelines: Vec<TimelineId> = stretches.iter().map(|(from, _)| from.timeline).collect();
    let (folder, timeline) = (folder(settings), own.timeline);
    let report = blocking(move || store(&folder, &wal, branch, &timelines, timeline, report, how)).await?;
    tracing::warn!(
        commits = report.commits,
        bytes = report.bytes,
        from = report.from_lsn,
        to = report.to_lsn,
        first_commit = report.first_commit,
        last_commit = report.last_commit,
        kept_in = report.kept_in,
        "this member alone has commits that the cluster does not have; its WAL was kept aside"
    );
    Ok(Some(report))
}

fn folder(settings: &ServerSettings) -> PathBuf {
    let volume = settings.data_directory.parent().unwrap_or(Path::new("/"));
    volume.join(FOLDER)
}

/// From the branch point on, timeline by timeline; the last has no end.
fn stretches(own: &TimelineHistory, branch: WalPosition) -> Vec<(WalPosition, Option<Lsn>)> {
    let mut from = branch.lsn;
    let mut stretches = Vec::new();
    for end in own.ends().filter(|end| end.timeline >= branch.timeline) {
        let start = WalPosition {
            timeline: end.timeline,
            lsn: from,
        };
        stretches.push((start, Some(end.lsn).filter(|lsn| *lsn < Lsn(u64::MAX))));
        from = end.lsn;
    }
    stretches
}

fn own_history(wal: &Path, timeline: TimelineId) -> Result<TimelineHistory, FileError> {
    if timeline <= TimelineId(1) {
        let ancestors = Vec::new();
        return Ok(TimelineHistory { timeline, ancestors });
    }
    let path = wal.join(WalFile::History { timeline }.to_string());
    let text = fs::read_to_string(&path).file("read file", &path)?;
    TimelineHistory::parse(timeline, &text)
        .map_err(io::Error::other)
        .file("read file", &path)
}

/// Fills a folder under another name first; what is there under its own name is whole.
fn store(
    folder: &Path,
    wal: &Path,
    branch: WalPosition,
    timelines: &[TimelineId],
    timeline: TimelineId,
    mut report: DivergedWal,
    how: Keep,
) -> Result<DivergedWal, FileError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let target = folder.join(format!("{}-tl{timeline}", now.as_secs()));
    let staged = with_suffix(&target, UNFINISHED);
    remove_unfinished(folder)?;
    create_private_directory(&staged)?;
    let files = wal_files(wal, branch.lsn, timelines)?;
    let needed: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    if how == Keep::Link || needed <= staging::free_bytes(folder)? / 2 {
        for (file, _) in &files {
            take(file, &staged.join(file.file_name().unwrap_or_default()), how)?;
        }
        report.kept_in = target.display().to_string();
    } else {
        tracing::warn!(
            needed,
            "no room on the volume to keep the WAL that only this member has"
        );
    }
    let text = serde_json::to_vec_pretty(&report).unwrap_or_default();
    write_private(&staged.join(REPORT), &text)?;
    sync_directory(&staged)?;
    fs::rename(&staged, &target).file("rename directory", &staged)?;
    prune(folder);
    sync_directory(folder)?;
    Ok(report)
}

/// What a kill or a full volume has left of earlier tries.
fn remove_unfinished(folder: &Path) -> Result<(), FileError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.file("read directory", folder)?,
    };
    for entry in entries {
        let path = entry.file("read directory", folder)?.path();
        if path
            .as_os_str()
            .as_encoded_bytes()
            .ends_with(UNFINISHED.as_bytes())
        {
            fs::remove_dir_all(&path).file("remove directory", &path)?;
        }
    }
    Ok(())
}

fn take(file: &Path, target: &Path, how: Keep) -> Result<(), FileError> {
    if how == Keep::Link && fs::hard_link(file, target).is_ok() {
        return Ok(());
    }
    fs::copy(file, target).file("copy file", file)?;
    File::open(target)
        .and_then(|copy| copy.sync_all())
        .file("fsync file", target)
}

/// The segments of these timelines from the one with `from` on that hold WAL, and the timelines' history files.
fn wal_files(wal: &Path, from: Lsn, timelines: &[TimelineId]) -> Result<Vec<(PathBuf, u64)>, FileError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(wal).file("read directory", wal)? {
        let path = entry.file("read directory", wal)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Ok(file) = name.parse::<WalFile>() else {
            continue;
        };
        if !timelines.contains(&file.timeline()) {
            continue;
        }
        let bytes = fs::metadata(&path).file("stat file", &path)?.len();
        let holds_wal =
            || start_of(&path, file, bytes).is_some_and(|start| start >= from.segment_start(bytes));
        if file.is_history() || holds_wal() {
            files.push((path, bytes));
        }
    }
    files.sort();
    Ok(files)
}

/// Where a whole segment begins, by its name and by its first page; a recycled one still has another first page.
fn start_of(path: &Path, file: WalFile, bytes: u64) -> Option<Lsn> {
    if !matches!(file, WalFile::Segment { partial: false, .. }) || bytes == 0 {
        return None;
    }
    let start = file.start(bytes)?;
    // `XLogPageHeaderData` (`access/xlog_internal.h`): magic, info, timeline, then the page's address.
    let mut header = [0; 16];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    let address = u64::from_ne_bytes(*header.last_chunk::<8>()?);
    (Lsn(address) == start).then_some(start)
}

/// The folders that hold something, oldest first.
fn kept(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.contains("-tl") && !name.contains(UNFINISHED))
        .collect();
    names.sort();
    names
}

/// What cannot be deleted now is deleted the next time.
fn prune(folder: &Path) {
    let kept = kept(folder);
    for name in kept.iter().take(kept.len().saturating_sub(KEPT_FOLDERS)) {
        if let Err(error) = fs::remove_dir_all(folder.join(name)) {
            tracing::warn!("could not delete \"{}\": {error}", folder.join(name).display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_follow_the_own_history() {
        let own = TimelineHistory::parse(TimelineId(3), "1\t0/4000000\tx\n2\t0/7000000\tx").expect("valid");
        let at = |timeline, lsn| WalPosition {
            timeline: TimelineId(timeline),
            lsn: Lsn(lsn),
        };
        assert_eq!(stretches(&own, at(3, 0x800_0000)), [(at(3, 0x800_0000), None)]);
        assert_eq!(
            stretches(&own, at(2, 0x500_0000)),
            [
                (at(2, 0x500_0000), Some(Lsn(0x700_0000))),
                (at(3, 0x700_0000), None)
            ]
        );
    }

    /// A kill or a full volume left each of them, until the volume was full.
    #[test]
    fn what_an_interrupted_keep_left_stayed_for_ever() {
        let folder = tempfile::tempdir().expect("folder");
        let of = |name: &str| folder.path().join(name);
        for name in ["100-tl3", "200-tl3.new"] {
            fs::create_dir(of(name)).expect("mkdir");
            fs::write(of(name).join("000000030000000000000001"), "wal").expect("write");
        }
        remove_unfinished(folder.path()).expect("removed");
        assert!(of("100-tl3").exists() && !of("200-tl3.new").exists());
        remove_unfinished(&of("absent")).expect("nothing to remove");
    }

    #[test]
    fn only_segments_that_hold_wal_are_taken_and_five_folders_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let wal = folder.path().join("pg_wal");
        fs::create_dir(&wal).expect("mkdir");
        let segment = |name: &str, address: u64| {
            let mut content = vec![0; 1 << 20];
            content[8..16].copy_from_slice(&address.to_ne_bytes());
            fs::write(wal.join(name), content).expect("write");
        };
        segment("000000010000000000000002", 0x20_0000);
        segment("000000010000000000000003", 0x30_0000);
        segment("000000010000000000000004", 0x10_0000);
        segment("000000020000000000000003", 0x30_0000);
        fs::write(wal.join("archive_status"), "").expect("write");
        let branch = WalPosition {
            timeline: TimelineId(1),
            lsn: Lsn(0x31_2345),
        };
        let kept_folder = folder.path().join(FOLDER);
        for second in 0..7 {
            fs::create_dir_all(kept_folder.join(format!("100000000{second}-tl1"))).expect("mkdir");
        }
        let report = store(
            &kept_folder,
            &wal,
            branch,
            &[TimelineId(1)],
            TimelineId(1),
            DivergedWal::default(),
            Keep::Copy,
        )
        .expect("stored");
        let names: Vec<_> = fs::read_dir(&report.kept_in).expect("folder").flatten().collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(
            Path::new(&report.kept_in)
                .join("000000010000000000000003")
                .exists()
        );
        assert_eq!(kept(&kept_folder).len(), KEPT_FOLDERS);
    }
}
