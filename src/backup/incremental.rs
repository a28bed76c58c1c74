//! What an incremental backup needs before its first byte: a parent, its manifest at the server, and a start after its end.

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::error::FileContext as _;
use super::facts::{APPLICATION_NAME, session_error};
use super::object_reader::read_object;
use super::physical::{connect, upstream_error};
use super::repository::folder;
use super::run::{Options, Source};
use super::{BackupError, Server};
use crate::core::backup::parent::{Base, FIRST_VERSION, Reader, major, parent};
use crate::core::backup::{Content, Entry, Record};
use crate::core::wal::TimelineHistory;
use crate::postgres::replication::{ReplicationClient, UpstreamError};
use crate::store::Store;
use crate::store::seal::SealKey;

const PIECE_BYTES: usize = 64 << 10;
const WAITING_PIECES: usize = 4;
/// For a standby that streams and has nothing in the way of its replay.
const CATCH_UP_LIMIT: Duration = Duration::from_mins(2);

/// What a backup adds to.
pub(super) struct Parent {
    pub record: Record,
    pub key: Option<SealKey>,
    /// If the server cannot add to it, everything is taken.
    pub or_full: bool,
}

/// Finds the parent, by the pure rules; `None` for a full backup.
pub(super) async fn find(
    entries: &[Entry],
    server: &Server,
    options: &Options,
) -> Result<Option<Parent>, BackupError> {
    if options.base == Base::None {
        return Ok(None);
    }
    let looked = look(server).await;
    let (postgres_version, history, summarizes_wal) =
        looked.map_err(|source| upstream_error(server, source))?;
    let key = options.key.as_ref().map(SealKey::fingerprint);
    let reader = Reader {
        postgres_version: &postgres_version,
        summarizes_wal,
        history: &history,
        key: key.as_deref(),
    };
    let (found, reason) = parent(entries, &options.base, &reader)?;
    if let Some(reason) = reason {
        tracing::info!(%reason, "making a full backup");
    }
    Ok(found.map(|entry| Parent {
        record: entry.record.clone(),
        key: options.key.clone(),
        or_full: options.base == Base::Auto,
    }))
}

async fn look(server: &Server) -> Result<(String, TimelineHistory, Option<bool>), UpstreamError> {
    let mut client = connect(server).await?;
    let version = client.server_version().unwrap_or_default().to_owned();
    let identity = client.identify_system().await?;
    let history = client.timeline_history(identity.position.timeline).await?;
    let summarizes_wal = if major(&version) >= FIRST_VERSION {
        Some(client.summarizes_wal().await?)
    } else {
        None
    };
    client.close().await;
    Ok((version, history, summarizes_wal))
}

/// A standby begins a backup at its last restartpoint. That must lie after the parent's end, and the later it is the less
/// there is to send: so the primary makes a checkpoint, and the standby replays it. A full backup that others add to needs
/// the same: what was written since its begin is sent again with each of them.
pub(super) async fn move_on(source: &Source) -> Result<(), BackupError> {
    let Some(primary) = &source.primary else {
        return Ok(());
    };
    let on_primary = |error| session_error(primary, error);
    let session = primary
        .session("postgres", APPLICATION_NAME)
        .await
        .map_err(on_primary)?;
    session
        .execute("make a checkpoint", "CHECKPOINT")
        .await
        .map_err(on_primary)?;
    let position = session.position().await.map_err(on_primary)?;
    let on_standby = |error| session_error(&source.server, error);
    let standby = source
        .server
        .session("postgres", APPLICATION_NAME)
        .await
        .map_err(on_standby)?;
    standby
        .wait_for(position, CATCH_UP_LIMIT)
        .await
        .map_err(on_standby)
}

/// Sends the parent's manifest from the destination to the server, piece by piece.
pub(super) async fn upload(
    client: &mut ReplicationClient,
    server: &Server,
    store: &Store,
    parent: &Parent,
) -> Result<(), BackupError> {
    let record = &parent.record;
    let manifest = record
        .objects
        .iter()
        .find(|object| object.content == Content::Manifest);
    let manifest = manifest.ok_or_else(|| BackupError::Damaged {
        path: folder(&record.name),
        detail: "it has no manifest".to_owned(),
    })?;
    let (sender, receiver) = mpsc::channel(WAITING_PIECES);
    let place = folder(&record.name);
    let read = read_object(store, &place, manifest, parent.key.as_ref(), move |reader| {
        send_pieces(reader, &sender)
    });
    let (read, uploaded) = tokio::join!(read, client.upload_manifest(receiver));
    // What was cut short is no manifest: why it was explains more than what the server says of it.
    read?;
    uploaded.map_err(|source| upstream_error(server, source))
}

/// Ends early if nobody takes them: then the other side says why.
fn send_pieces(reader: &mut dyn Read, sender: &mpsc::Sender<Bytes>) -> Result<(), BackupError> {
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = reader.take(PIECE_BYTES as u64).read_to_end(&mut piece);
        let bytes = read.file("read", std::path::Path::new("backup_manifest"))?;
        if bytes == 0 || sender.blocking_send(Bytes::from(piece)).is_err() {
            return Ok(());
        }
    }
}
