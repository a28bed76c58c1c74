//! Names beside PGDATA that a kill may leave, and what becomes of them.

use std::fs;
use std::path::{Path, PathBuf};

use podgres::postgres::{initdb, staging};

use super::lab::{Lab, absent_or_complete, as_postgres, names};

fn beside(data_directory: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", data_directory.display()))
}

#[test]
fn every_left_over_name_leads_back_to_one_directory() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let settings = lab.settings(0);
        let pgdata = &settings.data_directory;
        let volume = pgdata.parent().expect("parent");
        initdb::run(&settings).await.expect("initdb");
        let discarded = beside(pgdata, ".podgres-discarded");

        // Killed between the two renames: the stale standby's data come back.
        fs::rename(pgdata, &discarded).expect("rename");
        fs::create_dir(beside(pgdata, ".podgres-staging")).expect("mkdir");
        staging::recover(&settings).await.expect("recover");
        assert!(absent_or_complete(&settings).await);
        assert_eq!(names(volume), ["data"]);

        // The same with an empty directory that somebody made.
        fs::rename(pgdata, &discarded).expect("rename");
        fs::create_dir(pgdata).expect("mkdir");
        staging::recover(&settings).await.expect("recover");
        assert!(absent_or_complete(&settings).await);
        assert_eq!(names(volume), ["data"]);

        // Killed after both renames, and while the old one was being deleted.
        fs::create_dir_all(discarded.join("global")).expect("mkdir");
        fs::create_dir_all(beside(pgdata, ".podgres-deleting/base")).expect("mkdir");
        staging::recover(&settings).await.expect("recover");
        assert!(absent_or_complete(&settings).await);
        assert_eq!(names(volume), ["data"]);

        // Something else at PGDATA: neither is touched.
        fs::rename(pgdata, &discarded).expect("rename");
        fs::create_dir(pgdata).expect("mkdir");
        fs::write(pgdata.join("strange"), "").expect("write");
        staging::recover(&settings).await.expect("recover");
        assert_eq!(names(volume), ["data", "data.podgres-discarded"]);
        assert_eq!(names(pgdata), ["strange"]);
    });
}

#[test]
fn nothing_at_all_is_fine() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let mut settings = lab.settings(0);
        staging::recover(&settings).await.expect("recover");
        settings.data_directory = lab.folder.path().join("no/such/parent/data");
        staging::recover(&settings).await.expect("recover");
        assert!(!lab.folder.path().join("no").exists(), "recovering makes nothing");
        assert!(staging::free_bytes(&settings.data_directory).expect("free") > 0);
    });
}
