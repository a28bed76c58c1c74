//! What a primary in office asks of its server besides its status: a mark in the WAL, a checkpoint.

use std::time::Duration;

use tokio_postgres::types::PgLsn;

use super::query::{LocalServer, QueryError};
use crate::core::wal::Lsn;

/// A transaction of our own, which waits for nobody (`synchronous_commit=local`) and leaves a record that standbys
/// have to flush, so that there is something to wait for on an idle server too.
const MARK: &str = "SELECT pg_logical_emit_message(true, 'podgres', 'synchronous set')";
const FLUSHED: &str = "SELECT pg_current_wal_flush_lsn() AS flush_lsn";

impl LocalServer {
    /// Writes a record and says up to where the WAL is flushed then: every commit that was acknowledged before lies before it.
    pub async fn mark(&mut self, limit: Duration) -> Result<Lsn, QueryError> {
        self.run(limit, async |session| {
            session.client.query_one(MARK, &[]).await?;
            let row = session.client.query_one(FLUSHED, &[]).await?;
            let lsn: PgLsn = row.try_get("flush_lsn")?;
            Ok(Lsn(lsn.into()))
        })
        .await
    }

    /// `CHECKPOINT`, for as long as it takes up to `limit`.
    pub async fn checkpoint(&mut self, limit: Duration) -> Result<(), QueryError> {
        self.run(limit, async |session| {
            session
                .client
                .batch_execute("SET statement_timeout = 0; CHECKPOINT")
                .await?;
            Ok(())
        })
        .await
    }
}
