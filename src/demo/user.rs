//! What the pods' user can reach.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::DemoError;
use crate::postgres::user::ServerUser;

/// Whether a user may enter a directory with all its parents.
///
/// # Errors
/// The first directory that it may not enter, or that is not there.
pub(super) fn check_enters(user: Option<&ServerUser>, directory: &Path) -> Result<(), DemoError> {
    let Some(user) = user else {
        return Ok(());
    };
    let mut line: Vec<&Path> = directory.ancestors().collect();
    line.reverse();
    for parent in line {
        let found = std::fs::metadata(parent).map_err(DemoError::file("find", parent))?;
        let bit = if found.uid() == user.uid {
            0o100
        } else if found.gid() == user.gid {
            0o010
        } else {
            0o001
        };
        if found.mode() & bit == 0 {
            return Err(DemoError::NotEntered {
                user: user.name.clone(),
                directory: parent.to_owned(),
            });
        }
    }
    Ok(())
}
