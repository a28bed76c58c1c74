//! A data directory's own name, in a file inside it: `<member> <random>`.
//!
//! The random part is drawn for each directory that initdb, a clone or a rewind makes. A copy of another member's
//! file, which every clone brings along, names that member and counts for nothing.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::core::lease::Incarnation;
use crate::files::{FileContext as _, FileError, sync_directory, write_private};

/// In the data directory.
pub const FILE: &str = "podgres.member";
const BYTES: usize = 16;

/// What the directory is called, if that is known and its own; `None` otherwise. Blocks.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read(directory: &Path, member: &str) -> Result<Option<Incarnation>, FileError> {
    let path = directory.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).file("read file", &path),
    };
    let name = text.trim_end().split_once(' ');
    let own = name.filter(|(owner, random)| *owner == member && is_random(random));
    Ok(own.map(|(_, random)| Incarnation(random.into())))
}

/// As [`read`]; draws a name for a directory that has none. Blocks.
///
/// # Errors
/// The file cannot be read or written.
pub fn ensure(directory: &Path, member: &str) -> Result<Incarnation, FileError> {
    match read(directory, member)? {
        Some(known) => Ok(known),
        None => renew(directory, member),
    }
}

/// Gives the directory a new name, durably. Blocks.
///
/// # Errors
/// There is no randomness, or the file cannot be written.
pub(super) fn renew(directory: &Path, member: &str) -> Result<Incarnation, FileError> {
    let path = directory.join(FILE);
    let mut bytes = [0; BYTES];
    let drawn = SystemRandom::new().fill(&mut bytes);
    drawn
        .map_err(|_| io::Error::other("the system has no random numbers"))
        .file("write file", &path)?;
    let random = bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    });
    write_private(&path, format!("{member} {random}\n").as_bytes())?;
    sync_directory(directory)?;
    Ok(Incarnation(random.into()))
}

fn is_random(text: &str) -> bool {
    text.len() == 2 * BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_another_incarnation() {
        let folder = tempfile::tempdir().expect("folder");
        let directory = folder.path();
        assert_eq!(read(directory, "pg-0").expect("read"), None);
        let first = ensure(directory, "pg-0").expect("drawn");
        assert_eq!(ensure(directory, "pg-0").expect("kept"), first);
        assert_eq!(read(directory, "pg-1").expect("read"), None, "somebody else's");
        let second = ensure(directory, "pg-1").expect("drawn");
        assert_ne!(first, second);
        assert_ne!(renew(directory, "pg-1").expect("drawn"), second);
        for garbled in ["", "pg-1", "pg-1 12", "pg-1 \u{fc}", "pg-1  0"] {
            fs::write(directory.join(FILE), garbled).expect("write");
            assert_eq!(read(directory, "pg-1").expect("read"), None, "{garbled:?}");
        }
    }
}
