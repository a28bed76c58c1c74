//! The superuser's password: drawn once, kept in files that only the pods' user can read.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use super::DemoError;
use super::dsn::without_line_ends;
use super::layout::Layout;
use crate::files::{Making, replace};
use crate::postgres::passfile;
use crate::postgres::user::ServerUser;

/// Letters that need no quoting anywhere; 64 of them, so that a random byte picks without bias.
const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
const LENGTH: usize = 24;

/// Makes the password file if there is none, and libpq's form of whatever password it holds.
///
/// # Errors
/// The files cannot be read or written.
pub(super) fn ensure_password(
    layout: &Layout,
    user: Option<&ServerUser>,
    superuser: &str,
) -> Result<(), DemoError> {
    let path = layout.password_file();
    let password = match fs::read(&path) {
        Ok(password) => password,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let password = draw().map_err(DemoError::file("read", Path::new("/dev/urandom")))?;
            write(&path, &password, user).map_err(DemoError::file("write", &path))?;
            password
        }
        Err(error) => return Err(DemoError::file("read", &path)(error)),
    };
    let passfile = layout.passfile();
    let line = passfile::line(superuser, without_line_ends(&password));
    write(&passfile, &line, user).map_err(DemoError::file("write", &passfile))
}

fn draw() -> io::Result<Vec<u8>> {
    let mut random = [0; LENGTH];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random
        .iter()
        .map(|byte| LETTERS[usize::from(byte % 64)])
        .collect())
}

/// For the pods' user alone.
fn write(path: &Path, content: &[u8], user: Option<&ServerUser>) -> io::Result<()> {
    let making = Making {
        mode: 0o400,
        owner: user.map(|user| (user.uid, user.gid)),
        durable: false,
    };
    replace(path, content, making).map_err(|error| error.source)
}
