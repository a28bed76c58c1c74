//! The unprivileged user that a demo of root's runs its pods as, and what that user can reach.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::DemoError;
use super::state::PodUser;

/// In this order, whichever exists.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

/// The user for the pods; `None` if this process is not root, so that they run as its own user.
///
/// # Errors
/// Root on a machine without any of the users: PostgreSQL refuses to run as root.
pub fn pod_user() -> Result<Option<PodUser>, DemoError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let path = Path::new("/etc/passwd");
    let passwd = std::fs::read(path).map_err(DemoError::file("read", path))?;
    let passwd = String::from_utf8_lossy(&passwd);
    CANDIDATES
        .iter()
        .find_map(|name| find(&passwd, name))
        .map(Some)
        .ok_or(DemoError::NoUser)
}

/// Whether a user may enter a directory with all its parents.
///
/// # Errors
/// The first directory that it may not enter, or that is not there.
pub(super) fn check_enters(user: Option<&PodUser>, directory: &Path) -> Result<(), DemoError> {
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

/// passwd(5): `name:password:uid:gid:…`
fn find(passwd: &str, name: &str) -> Option<PodUser> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next().filter(|found| *found == name)?;
        let uid = fields.nth(1)?.parse().ok().filter(|uid| *uid != 0)?;
        let gid = fields.next()?.parse().ok()?;
        Some(PodUser {
            name: found.to_owned(),
            uid,
            gid,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name_and_is_not_root() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres2:x:7:7::/:/bin/sh\n# note\npostgres:x:101:104:A:/var:/bin/sh\n";
        let found = find(passwd, "postgres").expect("a user");
        assert_eq!(
            (found.name.as_str(), found.uid, found.gid),
            ("postgres", 101, 104)
        );
        assert_eq!(find(passwd, "nobody"), None);
        assert_eq!(find(passwd, "root"), None);
        assert_eq!(find("postgres:x:a:b", "postgres"), None);
    }
}
