//! One object on its way back: received by the runtime, hashed, decrypted and decompressed by a thread.
//!
//! Bounded like its way there. Nothing counts as read before it is known to be what was written.

use std::io::{self, Read};

use bytes::Bytes;
use futures_util::StreamExt as _;
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc;

use super::BackupError;
use super::pipeline::hex;
use crate::core::backup::StoredObject;
use crate::store::Store;
use crate::store::seal::{Opener, SealKey};

const WAITING_PIECES: usize = 4;

/// Reads an object through `consume`, which runs on a thread of its own, and checks that it is what was written.
///
/// # Errors
/// The store's, the consumer's, or [`BackupError::Damaged`].
pub(super) async fn read_object<T, F>(
    store: &Store,
    folder: &str,
    object: &StoredObject,
    key: Option<&SealKey>,
    consume: F,
) -> Result<T, BackupError>
where
    T: Send + 'static,
    F: FnOnce(&mut dyn Read) -> Result<T, BackupError> + Send + 'static,
{
    let path = format!("{folder}/{}", object.path);
    let damaged = |detail: String| BackupError::Damaged {
        path: path.clone(),
        detail,
    };
    let mut pieces = store.read(&path).await.map_err(|error| {
        if error.missing() {
            damaged("it is gone".to_owned())
        } else {
            error.into()
        }
    })?;
    let (sender, receiver) = mpsc::channel::<Bytes>(WAITING_PIECES);
    let (compressed, key) = (object.content.to_be_compressed(), key.cloned());
    let thread =
        tokio::task::spawn_blocking(move || unpack(Pieces::new(receiver), compressed, key.as_ref(), consume));
    let mut failure = None;
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => {
                // The consumer has failed, and says why below.
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    drop(sender);
    let (result, sha256, bytes) = thread.await.map_err(|_| BackupError::Broken)?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    match result {
        // What is not as it was written explains whatever the consumer says.
        _ if sha256 != object.sha256 => Err(damaged(format!(
            "{bytes} bytes with SHA-256 {sha256}, expected {} with {}",
            object.stored_bytes, object.sha256
        ))),
        Ok(result) => Ok(result),
        Err(Unpacked::Consumer(error)) => Err(error),
        Err(Unpacked::Input(error)) => Err(damaged(error.to_string())),
    }
}

enum Unpacked {
    Input(io::Error),
    Consumer(BackupError),
}

fn unpack<T>(
    mut pieces: Pieces,
    compressed: bool,
    key: Option<&SealKey>,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, BackupError>,
) -> (Result<T, Unpacked>, String, u64) {
    let result = open(&mut pieces, compressed, key, consume);
    // To the end, for the sum.
    io::copy(&mut pieces, &mut io::sink()).ok();
    (result, hex(pieces.digest.finish().as_ref()), pieces.bytes)
}

fn open<T>(
    pieces: &mut Pieces,
    compressed: bool,
    key: Option<&SealKey>,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, BackupError>,
) -> Result<T, Unpacked> {
    let mut opened: Box<dyn Read + '_> = match key {
        Some(key) => Box::new(Opener::new(pieces, key).map_err(Unpacked::Input)?),
        None => Box::new(pieces),
    };
    if compressed {
        let mut decoder = zstd::Decoder::new(opened).map_err(Unpacked::Input)?;
        let result = consume(&mut decoder).map_err(Unpacked::Consumer)?;
        // The frame's end holds its checksum.
        io::copy(&mut decoder, &mut io::sink()).map_err(Unpacked::Input)?;
        return Ok(result);
    }
    consume(&mut opened).map_err(Unpacked::Consumer)
}

/// What comes from the store, as a stream of bytes for a thread.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
    digest: Context,
    bytes: u64,
}

impl Pieces {
    fn new(receiver: mpsc::Receiver<Bytes>) -> Self {
        Self {
            receiver,
            current: Bytes::new(),
            digest: Context::new(&SHA256),
            bytes: 0,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => {
                    self.digest.update(&piece);
                    self.bytes += piece.len() as u64;
                    self.current = piece;
                }
                None => return Ok(0),
            }
        }
        let taken = into.len().min(self.current.len());
        into[..taken].copy_from_slice(&self.current.split_to(taken));
        Ok(taken)
    }
}
