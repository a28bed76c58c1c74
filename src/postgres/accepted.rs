//! Remembers what configuration PostgreSQL itself has accepted, so that a change of role need not wait for its check.
//!
//! Everything counts but the lines that say whom to follow and whom to wait for: those are podgres' own.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ring::digest::{Context, SHA256};

use super::{ServerSettings, conf};
use crate::files::{FileContext as _, FileError};

/// Of one configuration; equal if PostgreSQL would judge equally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest([u8; 32]);

/// A process has one server.
static ACCEPTED: Mutex<Option<Digest>> = Mutex::new(None);

/// Of `neutral`, the generated file for no particular role, and of all that it includes. `None` if that cannot be told,
/// since one of the files includes others. Blocks.
///
/// # Errors
/// One of them cannot be read.
pub(super) fn digest(settings: &ServerSettings, neutral: &str) -> Result<Option<Digest>, FileError> {
    let mut digest = Context::new(&SHA256);
    let mut add = |piece: &[u8]| {
        digest.update(&piece.len().to_le_bytes());
        digest.update(piece);
    };
    add(settings.program_directory.as_os_str().as_encoded_bytes());
    add(neutral.as_bytes());
    let own = ["postgresql.conf", "postgresql.auto.conf"];
    let mut files: Vec<_> = own.map(|name| settings.data_directory.join(name)).into();
    if let Some(folder) = &settings.user_configuration {
        files.extend(conf::user_files(folder)?);
    }
    for file in files {
        let content = read(&file)?;
        if includes_more(&content) {
            return Ok(None);
        }
        add(&content);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.finish().as_ref());
    Ok(Some(Digest(bytes)))
}

/// Whether PostgreSQL accepted just this last.
pub(super) fn is_known(digest: Option<Digest>) -> bool {
    digest.is_some() && *ACCEPTED.lock().unwrap_or_else(PoisonError::into_inner) == digest
}

pub(super) fn remember(digest: Option<Digest>) {
    *ACCEPTED.lock().unwrap_or_else(PoisonError::into_inner) = digest;
}

fn read(file: &Path) -> Result<Vec<u8>, FileError> {
    match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        content => content.file("read file", file),
    }
}

/// `include`, `include_if_exists`, `include_dir`: their letters at the beginning of a line.
pub(super) fn includes_more(content: &[u8]) -> bool {
    content.split(|byte| *byte == b'\n').any(|line| {
        let line = line.trim_ascii_start();
        line.get(..7)
            .is_some_and(|word| word.eq_ignore_ascii_case(b"include"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_are_seen_and_comments_are_not() {
        for text in [
            "include 'x'",
            "a = 1\n  INCLUDE_DIR='d'\n",
            "\tinclude_if_exists x",
        ] {
            assert!(includes_more(text.as_bytes()), "{text}");
        }
        for text in ["#include 'x'", "# include", "", "includ", "x = 'include'"] {
            assert!(!includes_more(text.as_bytes()), "{text}");
        }
    }
}
