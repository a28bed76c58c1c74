//! The objects of a backup as files: pieces of a data directory, several at once, each once.
//!
//! What is done stands beside the directory, so that an interrupted restore goes on with the pieces that are missing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::BackupError;
use super::error::FileContext as _;
use super::files::{self, blocking};
use super::object_reader::read_object;
use super::repository::folder;
use crate::core::backup::tar::{BLOCK_BYTES, Member, MemberKind};
use crate::core::backup::{Content, DumpFormat, Record, StoredObject};
use crate::core::data_directory::SystemIdentifier;
use crate::files::{create_private_directory, remove_file, remove_tree, with_suffix, write_private};
use crate::store::Store;
use crate::store::seal::SealKey;

const AT_ONCE: usize = 2;
const STATE: &str = ".state.json";
pub(super) const MANIFEST: &str = ".manifest";
/// Where the links of a chain are put together from.
pub(super) const CHAIN: &str = ".chain";

/// Which pieces of which backup are there.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    name: String,
    /// Two clusters can have a backup of one name.
    system_identifier: SystemIdentifier,
    done: BTreeSet<String>,
}

/// Fills `directory` with the files of a physical backup, and puts its manifest beside it.
///
/// # Errors
/// An object is damaged, or the disk is full: what is there stays for the next try.
pub(super) async fn physical(
    store: &Store,
    record: &Record,
    key: Option<&SealKey>,
    directory: &Path,
) -> Result<(), BackupError> {
    let mut state = begin(record, directory)?;
    let left = record
        .objects
        .iter()
        .filter(|object| !state.done.contains(&object.path));
    let mut left: Vec<&StoredObject> = left.collect();
    left.reverse();
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_ONCE
            && let Some(object) = left.pop()
        {
            let work = piece(
                store.clone(),
                folder(&record.name),
                object.clone(),
                key.cloned(),
                directory.to_owned(),
            );
            running.spawn(work);
        }
        let Some(ended) = running.join_next().await else {
            return Ok(());
        };
        let path = ended.map_err(|_| BackupError::Broken)??;
        state.done.insert(path);
        write_state(&state, directory).await?;
    }
}

/// Goes on where the same restore stopped, else begins afresh.
fn begin(record: &Record, directory: &Path) -> Result<State, BackupError> {
    let known: Option<State> = fs::read(with_suffix(directory, STATE))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    match known {
        Some(state)
            if state.name == record.name
                && state.system_identifier == record.system_identifier
                && directory.is_dir() =>
        {
            tracing::info!(
                pieces = state.done.len(),
                of = record.objects.len(),
                "going on with an interrupted restore"
            );
            Ok(state)
        }
        _ => {
            clear(directory)?;
            create_private_directory(directory)?;
            Ok(State {
                name: record.name.clone(),
                system_identifier: record.system_identifier,
                done: BTreeSet::new(),
            })
        }
    }
}

/// Removes a directory that was extracted, and what stands beside it.
pub(super) fn clear(directory: &Path) -> Result<(), BackupError> {
    forget(directory)?;
    remove_tree(&with_suffix(directory, CHAIN))?;
    Ok(remove_tree(directory)?)
}

/// From now on the directory is no longer what was extracted.
pub(super) fn forget(directory: &Path) -> Result<(), BackupError> {
    remove_file(&with_suffix(directory, STATE))?;
    Ok(remove_file(&with_suffix(directory, MANIFEST))?)
}

async fn write_state(state: &State, directory: &Path) -> Result<(), BackupError> {
    // Plain data: this cannot fail.
    let text = serde_json::to_vec(state).unwrap_or_default();
    let directory = directory.to_owned();
    blocking(move || {
        files::sync_tree(&directory)?;
        Ok(write_private(&with_suffix(&directory, STATE), &text)?)
    })
    .await
}

async fn piece(
    store: Store,
    folder: String,
    object: StoredObject,
    key: Option<SealKey>,
    directory: PathBuf,
) -> Result<String, BackupError> {
    let content = object.content.clone();
    let consume = move |reader: &mut dyn Read| match content {
        Content::Base => unpack(reader, &directory),
        Content::Tablespace { oid, .. } => {
            let place = directory.join("pg_tblspc").join(oid.to_string());
            create_private_directory(&place)?;
            unpack(reader, &place)
        }
        Content::Manifest => copy(reader, &with_suffix(&directory, MANIFEST)),
        Content::Globals | Content::Dump { .. } => Ok(()),
    };
    read_object(&store, &folder, &object, key.as_ref(), consume).await?;
    Ok(object.path)
}

/// Writes one object as a file, or what an archive holds as files of a folder.
pub(super) async fn file(
    store: &Store,
    record: &Record,
    object: &StoredObject,
    key: Option<&SealKey>,
    path: PathBuf,
) -> Result<(), BackupError> {
    let archive = matches!(
        object.content,
        Content::Dump {
            format: DumpFormat::Directory,
            ..
        }
    );
    let consume = move |reader: &mut dyn Read| {
        if !archive {
            return copy(reader, &path);
        }
        create_private_directory(&path)?;
        unpack(reader, &path)
    };
    read_object(store, &folder(&record.name), object, key, consume).await
}

fn copy(reader: &mut dyn Read, path: &Path) -> Result<(), BackupError> {
    let mut file = create_file(path, 0o600)?;
    io::copy(reader, &mut file).file("write file", path).map(drop)
}

fn create_file(path: &Path, mode: u32) -> Result<File, BackupError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(mode);
    options.open(path).file("create file", path)
}

/// Unpacks a tar archive, or a piece of one, into a directory.
fn unpack(reader: &mut dyn Read, directory: &Path) -> Result<(), BackupError> {
    let mut block = [0; BLOCK_BYTES];
    let mut buffer = vec![0; 256 << 10];
    while fill(reader, &mut block).file("read the archive for", directory)? {
        let Some(member) = Member::parse(&block)? else {
            continue;
        };
        let path = directory.join(&member.path);
        match member.kind {
            MemberKind::File { bytes } => unpack_file(reader, &path, &member, bytes, &mut buffer)?,
            // A link is a tablespace: its own archive fills it as a directory inside.
            MemberKind::Directory | MemberKind::Link { .. } => create_private_directory(&path)?,
        }
    }
    Ok(())
}

fn unpack_file(
    reader: &mut dyn Read,
    path: &Path,
    member: &Member,
    bytes: u64,
    buffer: &mut [u8],
) -> Result<(), BackupError> {
    use std::io::Write as _;
    if let Some(parent) = path.parent() {
        create_private_directory(parent)?;
    }
    let mut file = create_file(path, member.mode & 0o700)?;
    let mut left = bytes;
    while left > 0 {
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        reader
            .read_exact(&mut buffer[..wanted])
            .file("read the archive for", path)?;
        file.write_all(&buffer[..wanted]).file("write file", path)?;
        left -= wanted as u64;
    }
    let padding = usize::try_from(member.padded_bytes() - bytes).unwrap_or(0);
    reader
        .read_exact(&mut buffer[..padding])
        .file("read the archive for", path)
}

/// Reads a whole block; false at the end of the stream.
fn fill(reader: &mut dyn Read, block: &mut [u8; BLOCK_BYTES]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < BLOCK_BYTES {
        match reader.read(&mut block[filled..])? {
            0 if filled == 0 => return Ok(false),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => filled += bytes,
        }
    }
    Ok(true)
}
