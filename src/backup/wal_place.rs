//! Whether a folder is the archive that a data directory archives to, or the place where it should be mounted.
//!
//! A folder that is gone, or empty since nothing is mounted there, would be made anew by whoever writes to it: WAL would
//! count as archived and lie on another disk. So an archive in a folder has a mark, made once, and a data directory
//! remembers where it has archived to; there the mark must be. Buckets need none: nobody makes one by writing to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::BackupError;
use super::error::FileContext as _;
use crate::core::data_directory::SystemIdentifier;
use crate::files::write_private;
use crate::store::{Destination, Store, StoreSettings};

/// In the data directory, so that clones have it: the archives that were used, a path a line.
pub(super) const MEMORY: &str = "podgres.archives";
/// At the archive, followed by the system identifier.
const MARK: &str = ".podgres-archive-";
const MARK_TEXT: &[u8] =
    b"podgres archives WAL here as long as this file is there: so it knows that the folder is mounted.\n";

/// The archive in a folder, as a data directory sees it.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
    mark: PathBuf,
    memory: PathBuf,
}

impl Place {
    /// `None` if the destination is no folder.
    #[must_use]
    pub fn of(settings: &StoreSettings, cluster: SystemIdentifier, data_directory: &Path) -> Option<Self> {
        let Destination::Folder(folder) = &settings.destination else {
            return None;
        };
        Some(Self {
            folder: folder.clone(),
            mark: folder.join(format!("{MARK}{cluster}")),
            memory: data_directory.join(MEMORY),
        })
    }

    /// Opens the archive. `make`: one that was never used from here is made and marked.
    ///
    /// # Errors
    /// [`BackupError::NoArchive`]: it was used before, and is not there now. Or the folder cannot be used.
    pub fn open(&self, settings: &StoreSettings, make: bool) -> Result<Store, BackupError> {
        if self.remembered()? {
            self.check()?;
            return Ok(Store::open(settings)?);
        }
        if !make {
            return Ok(Store::open(settings)?);
        }
        let store = Store::create(settings)?;
        if !self.mark.exists() {
            write_private(&self.mark, MARK_TEXT)?;
        }
        Ok(store)
    }

    /// Whether the mark is there, so that what was just written is too.
    ///
    /// # Errors
    /// [`BackupError::NoArchive`].
    pub fn check(&self) -> Result<(), BackupError> {
        if self.mark.exists() {
            return Ok(());
        }
        Err(BackupError::NoArchive {
            folder: self.folder.clone(),
            mark: self.mark.clone(),
        })
    }

    /// Something is archived there: from now on the mark is required.
    ///
    /// # Errors
    /// The data directory cannot be written to.
    pub fn remember(&self) -> Result<(), BackupError> {
        if self.remembered()? || !self.mark.exists() {
            return Ok(());
        }
        let text = format!("{}{}\n", self.known()?, self.folder.display());
        Ok(write_private(&self.memory, text.as_bytes())?)
    }

    fn remembered(&self) -> Result<bool, BackupError> {
        let folder = self.folder.display().to_string();
        Ok(self.known()?.lines().any(|line| line == folder))
    }

    fn known(&self) -> Result<String, BackupError> {
        match fs::read_to_string(&self.memory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read.file("read file", &self.memory),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: SystemIdentifier = SystemIdentifier(7);

    struct Lab {
        folder: tempfile::TempDir,
        settings: StoreSettings,
        place: Place,
    }

    fn lab() -> Lab {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("data")).expect("folder");
        let archive = folder.path().join("archive");
        let settings = StoreSettings::new(archive.to_str().expect("utf-8").parse().expect("valid"));
        let place = Place::of(&settings, CLUSTER, &folder.path().join("data")).expect("a folder");
        Lab {
            folder,
            settings,
            place,
        }
    }

    impl Lab {
        fn opens(&self) -> bool {
            match self.place.open(&self.settings, true) {
                Ok(_) => true,
                Err(BackupError::NoArchive { .. }) => false,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn an_archive_that_is_not_mounted_was_made_anew() {
        let lab = lab();
        assert!(lab.opens(), "a new one is made");
        assert!(lab.opens(), "nothing is archived yet");
        lab.place.remember().expect("remembered");
        assert!(lab.opens());
        let (archive, away) = (lab.folder.path().join("archive"), lab.folder.path().join("away"));
        fs::rename(&archive, &away).expect("rename");
        assert!(!lab.opens(), "gone");
        assert!(!archive.exists());
        fs::create_dir(&archive).expect("folder");
        assert!(!lab.opens(), "an empty folder, as an unmounted volume leaves it");
        lab.place
            .check()
            .expect_err("the volume went while something was written");
        fs::remove_dir(&archive).expect("remove");
        fs::rename(&away, &archive).expect("rename");
        assert!(lab.opens(), "mounted again");
    }

    #[test]
    fn another_archive_and_another_members_are_no_vanished_ones() {
        let lab = lab();
        assert!(lab.opens());
        lab.place.remember().expect("remembered");
        let other = lab.folder.path().join("other");
        let settings = StoreSettings::new(other.to_str().expect("utf-8").parse().expect("valid"));
        let place = Place::of(&settings, CLUSTER, &lab.folder.path().join("data")).expect("a folder");
        place.open(&settings, true).expect("a new destination");
        place.remember().expect("remembered");
        assert!(lab.opens(), "both are known");
        let fresh = Place {
            memory: lab.folder.path().join("elsewhere"),
            ..lab.place.clone()
        };
        fresh
            .open(&lab.settings, true)
            .expect("the mark of another member is as good");
    }

    #[test]
    fn who_only_looks_makes_nothing() {
        let lab = lab();
        lab.place.open(&lab.settings, false).expect_err("not there");
        fs::create_dir(lab.folder.path().join("archive")).expect("folder");
        lab.place.open(&lab.settings, false).expect("there");
        lab.place.remember().expect("nothing to remember");
        assert!(!lab.folder.path().join("data").join(MEMORY).exists());
    }
}
