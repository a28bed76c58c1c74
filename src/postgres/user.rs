//! The unprivileged user that root's servers run as, since PostgreSQL refuses to run as root.

use std::io;

use serde::{Deserialize, Serialize};

/// In this order, whichever exists.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];
const PASSWD: &str = "/etc/passwd";

/// A user of the operating system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// Why root has nobody to run PostgreSQL as.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("could not read \"{PASSWD}\"")]
    Passwd(#[source] io::Error),
    #[error("cannot run PostgreSQL as root, and there is neither a user \"postgres\" nor \"nobody\"")]
    Missing,
}

/// Whom servers run as; `None` if this process is not root, so that they run as its own user.
///
/// # Errors
/// Root on a machine without any of the users, or with an unreadable `/etc/passwd`.
pub fn server_user() -> Result<Option<ServerUser>, UserError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read(PASSWD).map_err(UserError::Passwd)?;
    let passwd = String::from_utf8_lossy(&passwd);
    CANDIDATES
        .iter()
        .find_map(|name| find(&passwd, name))
        .map(Some)
        .ok_or(UserError::Missing)
}

/// passwd(5): `name:password:uid:gid:…`
fn find(passwd: &str, name: &str) -> Option<ServerUser> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next().filter(|found| *found == name)?;
        let uid = fields.nth(1)?.parse().ok().filter(|uid| *uid != 0)?;
        let gid = fields.next()?.parse().ok()?;
        Some(ServerUser {
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
