//! What a member has bound itself to under a Lease, written down beside PGDATA on the same volume.
//!
//! One small JSON file, replaced as a whole and durable before anybody is told. Never goes back, and never taken for
//! "nothing yet" when it cannot be read: a forgotten promise would be a second primary.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ServerSettings;
use crate::core::supervision::Terms;
use crate::files::{
    FileContext as _, FileError, create_private_directory, sync_directory, with_suffix, write_private,
};

const SUFFIX: &str = ".podgres";

/// Why the written terms are not known.
#[derive(Debug, thiserror::Error)]
pub enum TermsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "cannot read the promised terms from \"{}\": {detail} (this member may have promised not to follow or to be \
         a primary any more; restore the file, or delete it together with the data directory, so that the member \
         joins anew)",
        path.display()
    )]
    Garbled { path: PathBuf, detail: String },
}

/// Why terms are not written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermRefusal {
    #[error("cannot go back to term {asked}: this member has promised term {promised}")]
    Promised { asked: u64, promised: u64 },
    #[error("cannot go back to term {asked}: this member was primary in term {held}")]
    Held { asked: u64, held: u64 },
}

/// Where they stand: `<PGDATA>.podgres`.
#[must_use]
pub fn path(settings: &ServerSettings) -> PathBuf {
    with_suffix(&settings.data_directory, SUFFIX)
}

/// What was written down last; nothing if there is no file. Blocks.
///
/// # Errors
/// The file cannot be read, or is not what [`write()`] makes.
pub fn read(settings: &ServerSettings) -> Result<Terms, TermsError> {
    let path = path(settings);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Terms::default()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(TermsError::Garbled {
                path,
                detail: "it is no text".to_owned(),
            });
        }
        Err(error) => return Err(error).file("read file", &path).map_err(TermsError::from),
    };
    let terms: Terms = serde_json::from_str(&text).map_err(|error| TermsError::Garbled {
        path: path.clone(),
        detail: error.to_string(),
    })?;
    if terms.held > terms.promised {
        let detail = format!(
            "it holds term {}, but has promised only {}",
            terms.held, terms.promised
        );
        return Err(TermsError::Garbled { path, detail });
    }
    Ok(terms)
}

/// The term in which the server of a data directory is primary, for a program that knows no more than its place; 0 if
/// nothing is written there.
#[must_use]
pub fn held_beside(data_directory: &Path) -> u64 {
    let text = fs::read(with_suffix(data_directory, SUFFIX)).unwrap_or_default();
    serde_json::from_slice::<Terms>(&text).map_or(0, |terms| terms.held)
}

/// Writes them down durably. Blocks.
///
/// # Errors
/// The volume does not take them; what stood there is still there.
pub fn write(settings: &ServerSettings, terms: Terms) -> Result<(), FileError> {
    let path = path(settings);
    let folder = path.parent().unwrap_or(Path::new("/"));
    create_private_directory(folder)?;
    // Two numbers: this cannot fail.
    let text = serde_json::to_string(&terms).unwrap_or_default();
    write_private(&path, text.as_bytes())?;
    sync_directory(folder)
}

/// The terms after a promise to take no WAL from a primary of an earlier term.
///
/// # Errors
/// A later term was promised.
pub fn promise(known: Terms, term: u64) -> Result<Terms, TermRefusal> {
    if term < known.promised {
        return Err(TermRefusal::Promised {
            asked: term,
            promised: known.promised,
        });
    }
    Ok(Terms {
        promised: term,
        ..known
    })
}

/// The terms of a primary of `term`.
///
/// # Errors
/// A later term was promised or held.
pub fn hold(known: Terms, term: u64) -> Result<Terms, TermRefusal> {
    if term < known.held {
        return Err(TermRefusal::Held {
            asked: term,
            held: known.held,
        });
    }
    promise(known, term).map(|known| Terms { held: term, ..known })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Terms = Terms { promised: 7, held: 5 };

    #[test]
    fn terms_never_go_back() {
        assert_eq!(promise(KNOWN, 7), Ok(KNOWN));
        assert_eq!(promise(KNOWN, 9), Ok(Terms { promised: 9, held: 5 }));
        assert_eq!(hold(KNOWN, 8), Ok(Terms { promised: 8, held: 8 }));
        let refusal = promise(KNOWN, 6).expect_err("earlier");
        assert_eq!(
            refusal.to_string(),
            "cannot go back to term 6: this member has promised term 7"
        );
        assert!(hold(KNOWN, 6).is_err(), "promised, though not held");
        assert!(hold(KNOWN, 4).is_err());
    }
}
