//! A dump in many files, as `pg_dump --format=directory` writes it by several jobs, sent on as one tar archive.
//!
//! A file leaves, and is deleted, as soon as `pg_dump` has closed it: what stands in the folder is what is being written and
//! what the destination has not taken yet, never a copy of the whole unless the destination is that slow.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use tokio::io::AsyncReadExt as _;
use tokio::io::unix::AsyncFd;

use super::BackupError;
use super::error::FileContext as _;
use super::own_folder::OwnFolder;
use super::pipeline::ObjectWriter;
use crate::core::backup::StoredObject;
use crate::core::backup::tar::{ARCHIVE_END, Member, MemberKind};
use crate::files::{create_private_directory, remove_file};
use crate::postgres::dump::Dump;

const READ_BYTES: usize = 64 << 10;
/// Some dozens of events with their names.
const EVENT_BYTES: usize = 8 << 10;
const PREFIX: &str = "podgres-dump-";

/// Where the dumps of a run are written to.
pub(super) struct Spool(OwnFolder);

impl Spool {
    /// Makes it in `scratch`, and removes what killed runs have left there.
    pub(super) fn create(scratch: &Path) -> Result<Self, BackupError> {
        OwnFolder::create(scratch, PREFIX).map(Self)
    }

    /// A new folder for one dump.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf, BackupError> {
        let folder = self.0.path().join(name);
        create_private_directory(&folder)?;
        Ok(folder)
    }
}

/// The files of a folder as they are closed.
pub(super) struct Closed {
    events: AsyncFd<OwnedFd>,
    names: Vec<String>,
}

impl Closed {
    /// Watches from now on.
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types whose descriptor may change; OwnedFd's cannot"
    )]
    pub(super) fn watch(folder: &Path) -> Result<Self, BackupError> {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let events = inotify::init(flags).file("watch directory", folder)?;
        inotify::add_watch(&events, folder, inotify::WatchFlags::CLOSE_WRITE)
            .file("watch directory", folder)?;
        Ok(Self {
            events: AsyncFd::new(events).file("watch directory", folder)?,
            names: Vec::new(),
        })
    }

    /// The next one. Nothing is lost if this is given up and called again.
    async fn next(&mut self) -> io::Result<String> {
        while self.names.is_empty() {
            let mut ready = self.events.readable().await?;
            if let Ok(found) = ready.try_io(|events| names(events.get_ref())) {
                self.names = found?;
            }
        }
        Ok(self.names.remove(0))
    }
}

fn names(events: &OwnedFd) -> io::Result<Vec<String>> {
    let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
    let mut reader = inotify::Reader::new(events, &mut buffer);
    let mut names = Vec::new();
    loop {
        let event = reader.next()?;
        let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
        names.extend(name);
        if reader.is_buffer_empty() {
            return Ok(names);
        }
    }
}

/// Sends everything that a program writes into `folder`, which was watched before it began.
pub(super) async fn pack(
    dump: Dump,
    mut closed: Closed,
    folder: &Path,
    mut writer: ObjectWriter,
) -> Result<StoredObject, BackupError> {
    let mut end = std::pin::pin!(dump.end());
    loop {
        tokio::select! {
            name = closed.next() => {
                let name = name.file("watch directory", folder)?;
                send(&mut writer, folder, &name).await?;
            }
            ended = &mut end => break ended?,
        }
    }
    // In the order of their names: the same dump makes the same archive's end.
    let mut rest: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder).file("read directory", folder)? {
        let entry = entry.file("read directory", folder)?;
        rest.push(entry.file_name().to_string_lossy().into_owned());
    }
    rest.sort();
    for name in rest {
        send(&mut writer, folder, &name).await?;
    }
    writer.write(Bytes::from_static(&ARCHIVE_END)).await?;
    fs::remove_dir(folder).file("remove directory", folder)?;
    writer.finish().await
}

/// Sends one file as a member, and deletes it.
async fn send(writer: &mut ObjectWriter, folder: &Path, name: &str) -> Result<(), BackupError> {
    let path = folder.join(name);
    let file = tokio::fs::File::open(&path).await.file("open file", &path)?;
    let bytes = file.metadata().await.file("stat file", &path)?.len();
    let member = Member {
        path: name.to_owned(),
        mode: 0o600,
        kind: MemberKind::File { bytes },
    };
    let header = member.header()?;
    writer.write(Bytes::copy_from_slice(&header)).await?;
    let mut file = file.take(bytes);
    let (mut buffer, mut sent) = (BytesMut::new(), 0);
    while sent < bytes {
        buffer.reserve(READ_BYTES);
        let read = file.read_buf(&mut buffer).await.file("read file", &path)?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).file("read file", &path);
        }
        sent += read as u64;
        writer.write(buffer.split().freeze()).await?;
    }
    let padding = usize::try_from(member.padded_bytes() - bytes).unwrap_or(0);
    writer.write(Bytes::from(vec![0; padding])).await?;
    Ok(remove_file(&path)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use std::fs::File;

    use rustix::fs::FlockOperation;

    use super::*;

    #[tokio::test]
    async fn a_file_is_told_when_it_is_closed_and_not_before() {
        let folder = tempfile::tempdir().expect("folder");
        let mut closed = Closed::watch(folder.path()).expect("watch");
        let mut first = File::create(folder.path().join("1.dat")).expect("file");
        first.write_all(b"half").expect("write");
        fs::write(folder.path().join("2.dat"), b"whole").expect("write");
        assert_eq!(closed.next().await.expect("a name"), "2.dat");
        let early = tokio::time::timeout(Duration::from_millis(50), closed.next()).await;
        assert!(early.is_err(), "a file that is being written was told");
        drop(first);
        assert_eq!(closed.next().await.expect("a name"), "1.dat");
    }

    #[test]
    fn what_a_killed_run_left_goes_and_what_a_living_one_has_stays() {
        let scratch = tempfile::tempdir().expect("folder");
        let (dead, living) = (
            scratch.path().join("podgres-dump-1"),
            scratch.path().join("podgres-dump-2"),
        );
        for folder in [&dead, &living] {
            fs::create_dir(folder).expect("folder");
            fs::write(folder.join("toc.dat"), b"x").expect("file");
        }
        let held = File::open(&living).expect("open");
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).expect("lock");
        let spool = Spool::create(scratch.path()).expect("spool");
        assert!(!dead.exists() && living.exists());
        let own = spool.0.path().to_owned();
        spool.folder("001-app").expect("folder");
        drop(spool);
        assert!(!own.exists() && living.exists());
    }
}
