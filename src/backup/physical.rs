//! A physical backup: what `BASE_BACKUP` streams, cut between files into pieces, each compressed and sent on as it comes.
//!
//! No second copy on a disk. Pieces are tar archives of their own, so that a restore can take several at once and go on
//! after an interruption.

use bytes::Bytes;

use super::incremental::{self, Parent};
use super::pipeline::{ObjectWriter, Shape};
use super::{BackupError, CONNECT_LIMIT, Server};
use crate::core::backup::tar::Cutter;
use crate::core::backup::{Content, StoredObject};
use crate::core::data_directory::SystemIdentifier;
use crate::core::wal::WalPosition;
use crate::postgres::error::describe;
use crate::postgres::replication::base_backup::{BaseBackup, BaseBackupRequest, Piece};
use crate::postgres::replication::{ReplicationClient, UpstreamAccess, UpstreamError};
use crate::store::Store;

const REPORT_BYTES: u64 = 1 << 30;

/// What was stored and what the server said of it.
pub(super) struct Streamed {
    pub start: WalPosition,
    pub stop: WalPosition,
    /// What it adds to.
    pub parent: Option<String>,
    pub objects: Vec<StoredObject>,
}

/// What the server is, asked before anything is written.
pub(super) struct Identity {
    pub system_identifier: SystemIdentifier,
    pub position: WalPosition,
    pub server_version: String,
    pub wal_segment_bytes: u64,
}

pub(super) async fn connect(server: &Server) -> Result<ReplicationClient, UpstreamError> {
    let upstream = server.upstream();
    let access = UpstreamAccess {
        upstream: &upstream,
        login: &server.replication,
        application_name: super::facts::APPLICATION_NAME,
        tls: server.tls.as_deref(),
    };
    ReplicationClient::connect(&access, CONNECT_LIMIT).await
}

pub(super) async fn identify(server: &Server) -> Result<Identity, BackupError> {
    let asked = async {
        let mut client = connect(server).await?;
        let identity = client.identify_system().await?;
        let wal_segment_bytes = client.wal_segment_size_bytes().await?;
        let server_version = client.server_version().unwrap_or("unknown").to_owned();
        client.close().await;
        let (system_identifier, position) = (identity.system_identifier, identity.position);
        Ok(Identity {
            system_identifier,
            position,
            server_version,
            wal_segment_bytes,
        })
    };
    asked.await.map_err(|source| upstream_error(server, source))
}

/// Streams the server into `folder` of the destination.
pub(super) async fn stream(
    server: &Server,
    store: &Store,
    folder: &str,
    label: &str,
    shape: &Shape,
    parent: Option<&Parent>,
) -> Result<Streamed, BackupError> {
    let failed = |source| upstream_error(server, source);
    let (mut backup, parent) = begin(server, store, label, parent).await?;
    tracing::info!(
        source = server.name,
        role = server.role,
        bytes = backup.estimate_bytes,
        parent,
        "base backup begins"
    );
    let mut objects = Objects::new(store, folder, shape, backup.estimate_bytes);
    let stop = loop {
        match backup.next().await.map_err(failed)? {
            Piece::Archive(None) => objects.begin(Content::Base).await?,
            Piece::Archive(Some((oid, location))) => {
                objects.begin(Content::Tablespace { oid, location }).await?;
            }
            Piece::Manifest => objects.begin(Content::Manifest).await?,
            Piece::Data(data) => objects.write(data).await?,
            Piece::End(stop) => break stop,
        }
    };
    objects.end().await?;
    Ok(Streamed {
        start: backup.start,
        stop,
        parent,
        objects: objects.done,
    })
}

/// The backup, and what it adds to.
async fn begin(
    server: &Server,
    store: &Store,
    label: &str,
    parent: Option<&Parent>,
) -> Result<(BaseBackup, Option<String>), BackupError> {
    let Some(parent) = parent else {
        return Ok((request(server, label, None).await?, None));
    };
    match request(server, label, Some((store, parent))).await {
        Ok(backup) => Ok((backup, Some(parent.record.name.clone()))),
        Err(error) if parent.or_full && speaks_against(&error) => {
            let reason = describe(&error);
            tracing::warn!(reason, parent = parent.record.name, "making a full backup");
            Ok((request(server, label, None).await?, None))
        }
        Err(error) => Err(error),
    }
}

/// Not the network and not the destination: this server cannot add to this parent.
fn speaks_against(error: &BackupError) -> bool {
    matches!(
        error,
        BackupError::Damaged { .. }
            | BackupError::Upstream {
                source: UpstreamError::Server { .. },
                ..
            }
    )
}

async fn request(
    server: &Server,
    label: &str,
    parent: Option<(&Store, &Parent)>,
) -> Result<BaseBackup, BackupError> {
    let failed = |source| upstream_error(server, source);
    let mut client = connect(server).await.map_err(failed)?;
    if let Some((store, parent)) = parent {
        incremental::upload(&mut client, server, store, parent).await?;
    }
    let request = BaseBackupRequest {
        label: label.to_owned(),
        slot: format!("base_backup_{:08x}", fastrand::u32(..)),
        incremental: parent.is_some(),
    };
    client.base_backup(&request).await.map_err(failed)
}

/// The objects of one backup, one after the other.
struct Objects<'a> {
    store: &'a Store,
    folder: &'a str,
    shape: &'a Shape,
    current: Option<ObjectWriter>,
    content: Content,
    /// `None` for what is no archive.
    cutter: Option<Cutter>,
    number: u32,
    done: Vec<StoredObject>,
    bytes: u64,
    estimate_bytes: u64,
}

impl<'a> Objects<'a> {
    fn new(store: &'a Store, folder: &'a str, shape: &'a Shape, estimate_bytes: u64) -> Self {
        Self {
            store,
            folder,
            shape,
            current: None,
            content: Content::Base,
            cutter: None,
            number: 0,
            done: Vec::new(),
            bytes: 0,
            estimate_bytes,
        }
    }

    async fn begin(&mut self, content: Content) -> Result<(), BackupError> {
        self.end().await?;
        self.cutter = (content != Content::Manifest).then(|| Cutter::new(self.shape.piece_bytes));
        self.number = 0;
        self.content = content;
        self.next_piece().await
    }

    async fn next_piece(&mut self) -> Result<(), BackupError> {
        self.end().await?;
        self.number += 1;
        let number = self.number;
        let path = match &self.content {
            Content::Tablespace { oid, .. } => format!("tablespace-{oid}.{number:05}.tar.zst"),
            Content::Manifest => "backup_manifest.zst".to_owned(),
            Content::Base | Content::Globals | Content::Dump { .. } => format!("base.{number:05}.tar.zst"),
        };
        self.current = Some(ObjectWriter::begin(
            self.store,
            self.folder,
            path,
            self.content.clone(),
            self.shape,
        ));
        Ok(())
    }

    async fn write(&mut self, mut data: Bytes) -> Result<(), BackupError> {
        while let Some(cutter) = &mut self.cutter
            && let Some(at) = cutter.cut(&data)?
        {
            self.pour(data.split_to(at)).await?;
            self.next_piece().await?;
        }
        self.pour(data).await
    }

    async fn pour(&mut self, data: Bytes) -> Result<(), BackupError> {
        let before = self.bytes;
        self.bytes += data.len() as u64;
        if before / REPORT_BYTES != self.bytes / REPORT_BYTES {
            tracing::info!(
                bytes = self.bytes,
                estimate_bytes = self.estimate_bytes,
                "base backup goes on"
            );
        }
        match &mut self.current {
            Some(writer) => writer.write(data).await,
            None => Err(BackupError::Broken),
        }
    }

    async fn end(&mut self) -> Result<(), BackupError> {
        if let Some(writer) = self.current.take() {
            self.done.push(writer.finish().await?);
        }
        Ok(())
    }
}

pub(super) fn upstream_error(server: &Server, source: UpstreamError) -> BackupError {
    BackupError::Upstream {
        server: server.name.clone(),
        source,
    }
}
