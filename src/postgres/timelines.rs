//! Keeps PostgreSQL from the number of a timeline that another member has begun, or may have.
//!
//! At its promotion PostgreSQL takes the first number after its own timeline's of which `pg_wal` has no history file
//! (`findNewestTimeLine`). So each number to be passed over gets one that holds a comment and nothing else: no timeline has that one for
//! an ancestor, and standbys fetch it as they fetch every other. Such a file at the end of the row would keep a standby
//! from starting, since none is its descendant: those are taken away before.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::core::supervision::NextTimeline;
use crate::core::wal::TimelineId;
use crate::core::wal_file::WalFile;
use crate::files::{FileContext as _, FileError, exists, sync_directory, write_private};

const PASSED_OVER: &str = "# passed over by podgres: another member may have begun this timeline\n";
/// A row longer than this is no row of failed promotions.
const LIMIT: u32 = 1_000;

/// Makes the running standby in `data_directory` begin `next.next`, or a later timeline, when it is promoted. Blocks.
///
/// # Errors
/// The volume does not take it, or more than a thousand numbers would be passed over.
pub fn pass_over(data_directory: &Path, next: NextTimeline) -> Result<(), FileError> {
    let wal = data_directory.join("pg_wal");
    let numbers = next.own.0 + 1..next.next.0;
    if numbers.len() > LIMIT as usize {
        let many = format!("{} timelines would be passed over", numbers.len());
        return Err(io::Error::other(many)).file("create history files in", &wal);
    }
    for number in numbers.clone() {
        let path = history(&wal, TimelineId(number));
        if !exists(&path)? {
            write_private(&path, PASSED_OVER.as_bytes())?;
        }
    }
    if numbers.is_empty() {
        Ok(())
    } else {
        sync_directory(&wal)
    }
}

/// Before a start as a standby: takes away what a promotion that did not come to pass has left. Blocks.
///
/// # Errors
/// The volume cannot be read or changed.
pub fn clear(data_directory: &Path) -> Result<(), FileError> {
    let wal = data_directory.join("pg_wal");
    let mut passed_over = Vec::new();
    let mut begun = TimelineId(0);
    for entry in fs::read_dir(&wal).file("read directory", &wal)? {
        let path = entry.file("read directory", &wal)?.path();
        let Some(timeline) = timeline_of(&path) else {
            continue;
        };
        if fs::read(&path).file("read file", &path)? == PASSED_OVER.as_bytes() {
            passed_over.push((timeline, path));
        } else {
            begun = begun.max(timeline);
        }
    }
    passed_over.retain(|(timeline, _)| *timeline > begun);
    for (_, path) in &passed_over {
        fs::remove_file(path).file("remove file", path)?;
    }
    if passed_over.is_empty() {
        Ok(())
    } else {
        sync_directory(&wal)
    }
}

fn history(wal: &Path, timeline: TimelineId) -> PathBuf {
    wal.join(WalFile::History { timeline }.to_string())
}

fn timeline_of(path: &Path) -> Option<TimelineId> {
    let file: WalFile = path.file_name()?.to_str()?.parse().ok()?;
    file.is_history().then(|| file.timeline())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("pg_wal")).unwrap();
        directory
    }

    fn histories(directory: &Path) -> Vec<u32> {
        let entries = fs::read_dir(directory.join("pg_wal")).unwrap();
        let mut found: Vec<u32> = entries
            .filter_map(|entry| Some(timeline_of(&entry.unwrap().path())?.0))
            .collect();
        found.sort_unstable();
        found
    }

    fn next(own: u32, next: u32) -> NextTimeline {
        NextTimeline {
            own: TimelineId(own),
            next: TimelineId(next),
        }
    }

    #[test]
    fn the_numbers_between_are_passed_over_and_no_file_is_replaced() {
        let directory = directory();
        let real = history(&directory.path().join("pg_wal"), TimelineId(3));
        fs::write(&real, "1\t0/3000000\tno recovery target specified\n").unwrap();
        pass_over(directory.path(), next(1, 5)).unwrap();
        assert_eq!(histories(directory.path()), [2, 3, 4]);
        assert!(fs::read_to_string(&real).unwrap().starts_with("1\t"));
        for nothing in [next(4, 5), next(5, 5), next(7, 0)] {
            pass_over(directory.path(), nothing).unwrap();
        }
        assert_eq!(histories(directory.path()), [2, 3, 4]);
    }

    #[test]
    fn a_garbled_number_does_not_fill_the_volume() {
        let directory = directory();
        let error = pass_over(directory.path(), next(1, u32::MAX)).unwrap_err();
        assert!(
            error.to_string().contains("could not create history files in"),
            "{error}"
        );
        assert_eq!(histories(directory.path()), [0_u32; 0]);
    }

    #[test]
    fn only_what_leads_nowhere_is_taken_away() {
        let directory = directory();
        pass_over(directory.path(), next(1, 4)).unwrap();
        let real = history(&directory.path().join("pg_wal"), TimelineId(4));
        fs::write(real, "1\t0/3000000\tno recovery target specified\n").unwrap();
        pass_over(directory.path(), next(4, 7)).unwrap();
        clear(directory.path()).unwrap();
        assert_eq!(histories(directory.path()), [2, 3, 4]);
        clear(directory.path()).unwrap();
        assert_eq!(histories(directory.path()), [2, 3, 4]);
    }
}
