//! One object on its way to the destination: compressed, encrypted and hashed by a thread, sent by the runtime.
//!
//! Bounded everywhere, so that the slowest part sets the pace and memory does not grow. A writer that is dropped leaves no
//! object behind.

use std::fmt::Write as _;
use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use ring::digest::{Context, SHA256};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::BackupError;
use crate::core::backup::{Content, StoredObject};
use crate::store::seal::{SealKey, Sealer};
use crate::store::{Store, StoreError};

const CHUNK_BYTES: usize = 1 << 20;
/// Pieces of input that wait for the thread; they come in some 32 KiB each.
const WAITING_INPUTS: usize = 64;
const WAITING_CHUNKS: usize = 2;
/// What one of zstd's threads takes at a time: its own choice, four windows, costs more memory than all the rest.
const JOB_BYTES: u32 = 1 << 20;

/// How objects are made.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub key: Option<SealKey>,
    /// Of zstd.
    pub level: i32,
    /// Threads that compress.
    pub threads: u32,
    /// Bytes a second to the destination.
    pub max_rate_bytes: Option<u64>,
    /// A piece of a physical backup ends with the first file that makes it this long.
    pub piece_bytes: u64,
}

/// An object that is being written.
pub(super) struct ObjectWriter {
    path: String,
    content: Content,
    input: mpsc::Sender<Step<Bytes>>,
    thread: JoinHandle<io::Result<Sums>>,
    upload: JoinHandle<Result<(), StoreError>>,
}

enum Step<T> {
    More(T),
    End,
}

struct Sums {
    bytes: u64,
    stored_bytes: u64,
    sha256: String,
}

impl ObjectWriter {
    /// `path` is below `folder`, which is below the destination.
    pub(super) fn begin(store: &Store, folder: &str, path: String, content: Content, shape: &Shape) -> Self {
        let (input, inputs) = mpsc::channel(WAITING_INPUTS);
        let (chunk_sender, chunks) = mpsc::channel(WAITING_CHUNKS);
        let compressed = content.to_be_compressed();
        let for_thread = shape.clone();
        let thread =
            tokio::task::spawn_blocking(move || transform(inputs, chunk_sender, compressed, &for_thread));
        let writer = store.writer(&format!("{folder}/{path}"));
        let upload = tokio::spawn(upload(
            writer,
            chunks,
            format!("{folder}/{path}"),
            shape.max_rate_bytes,
        ));
        Self {
            path,
            content,
            input,
            thread,
            upload,
        }
    }

    pub(super) async fn write(&mut self, data: Bytes) -> Result<(), BackupError> {
        if self.input.send(Step::More(data)).await.is_ok() {
            return Ok(());
        }
        // The thread has ended, because it or the upload failed.
        Err(self.failure().await)
    }

    /// The object is there, whole and durable, when this returns.
    pub(super) async fn finish(mut self) -> Result<StoredObject, BackupError> {
        if self.input.send(Step::End).await.is_err() {
            return Err(self.failure().await);
        }
        (&mut self.upload).await.map_err(|_| BackupError::Broken)??;
        let sums = (&mut self.thread).await.map_err(|_| BackupError::Broken)?;
        let sums = sums.map_err(|error| self.damaged(&error))?;
        Ok(StoredObject {
            path: self.path,
            content: self.content,
            bytes: sums.bytes,
            stored_bytes: sums.stored_bytes,
            sha256: sums.sha256,
        })
    }

    async fn failure(&mut self) -> BackupError {
        match (&mut self.upload).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) => match (&mut self.thread).await {
                Ok(Err(error)) => self.damaged(&error),
                _ => BackupError::Broken,
            },
            Err(_) => BackupError::Broken,
        }
    }

    fn damaged(&self, error: &io::Error) -> BackupError {
        BackupError::Damaged {
            path: self.path.clone(),
            detail: error.to_string(),
        }
    }
}

async fn upload(
    mut writer: object_store::buffered::BufWriter,
    mut chunks: mpsc::Receiver<Step<Bytes>>,
    path: String,
    max_rate_bytes: Option<u64>,
) -> Result<(), StoreError> {
    let failed = |source| StoreError::written(&path, source);
    let begun = tokio::time::Instant::now();
    let mut sent = 0_u64;
    loop {
        match chunks.recv().await {
            Some(Step::More(chunk)) => {
                sent += chunk.len() as u64;
                if let Err(error) = writer.put(chunk).await {
                    // The parts that are there already are of no use.
                    writer.abort().await.ok();
                    return Err(failed(error));
                }
                if let Some(due) = max_rate_bytes.and_then(|rate| (sent * 1_000).checked_div(rate)) {
                    tokio::time::sleep_until(begun + std::time::Duration::from_millis(due)).await;
                }
            }
            Some(Step::End) => {
                let ended = writer.shutdown().await;
                return ended.map_err(|error| {
                    failed(object_store::Error::Generic {
                        store: "destination",
                        source: error.into(),
                    })
                });
            }
            None => {
                writer.abort().await.ok();
                return Ok(());
            }
        }
    }
}

/// The thread's work.
fn transform(
    mut inputs: mpsc::Receiver<Step<Bytes>>,
    chunks: mpsc::Sender<Step<Bytes>>,
    compressed: bool,
    shape: &Shape,
) -> io::Result<Sums> {
    let chunker = Chunker {
        chunks,
        buffer: BytesMut::new(),
        digest: Context::new(&SHA256),
        stored_bytes: 0,
    };
    let sealed = match &shape.key {
        Some(key) => Sealed::Yes(Box::new(Sealer::new(chunker, key)?)),
        None => Sealed::No(Box::new(chunker)),
    };
    let mut bytes = 0;
    let mut pour = |into: &mut dyn Write| loop {
        match inputs.blocking_recv() {
            Some(Step::More(data)) => {
                bytes += data.len() as u64;
                into.write_all(&data)?;
            }
            Some(Step::End) => return Ok(()),
            None => return Err(io::Error::from(io::ErrorKind::Interrupted)),
        }
    };
    let sealed = if compressed {
        let mut encoder = zstd::Encoder::new(sealed, shape.level)?;
        encoder.multithread(shape.threads)?;
        encoder.set_parameter(zstd::zstd_safe::CParameter::JobSize(JOB_BYTES))?;
        encoder.include_checksum(true)?;
        pour(&mut encoder)?;
        encoder.finish()?
    } else {
        let mut sealed = sealed;
        pour(&mut sealed)?;
        sealed
    };
    let mut chunker = match sealed {
        Sealed::Yes(sealer) => sealer.finish()?,
        Sealed::No(chunker) => *chunker,
    };
    chunker.send_buffer()?;
    let Chunker {
        chunks,
        digest,
        stored_bytes,
        ..
    } = chunker;
    chunks
        .blocking_send(Step::End)
        .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    Ok(Sums {
        bytes,
        stored_bytes,
        sha256: hex(digest.finish().as_ref()),
    })
}

enum Sealed {
    Yes(Box<Sealer<Chunker>>),
    No(Box<Chunker>),
}

impl Write for Sealed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Yes(sealer) => sealer.write(data),
            Self::No(chunker) => chunker.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes, and hands on in chunks.
struct Chunker {
    chunks: mpsc::Sender<Step<Bytes>>,
    buffer: BytesMut,
    digest: Context,
    stored_bytes: u64,
}

impl Chunker {
    fn send_buffer(&mut self) -> io::Result<()> {
        let chunk = self.buffer.split().freeze();
        if chunk.is_empty() {
            return Ok(());
        }
        self.chunks
            .blocking_send(Step::More(chunk))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for Chunker {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.digest.update(data);
        self.stored_bytes += data.len() as u64;
        self.buffer.reserve(CHUNK_BYTES);
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= CHUNK_BYTES {
            self.send_buffer()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}
