//! Inserts a number every 20 ms on each of a few connections, and knows which were acknowledged: shows what a fault costs, to whichever
//! of them it costs most, and whether anything was lost. `GET /` says how it went, `POST /reset` begins anew to look for gaps, `GET /verify` reads everything back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::database::Database;

const PAUSE: Duration = Duration::from_millis(20);
/// A longer time without an acknowledgement on a connection is listed.
const NOTABLE_GAP: Duration = Duration::from_millis(200);
const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS steady (writer bigint, number bigint, PRIMARY KEY (writer, number))";

#[derive(Default)]
struct Book {
    acknowledged: BTreeSet<(i64, i64)>,
    errors: u64,
    last_error: String,
    /// Of each connection.
    last: BTreeMap<i64, Instant>,
    gaps_ms: Vec<u128>,
}

struct Writer {
    book: Mutex<Book>,
    reader: Database,
}

pub(crate) fn router() -> anyhow::Result<Router> {
    let connections: i64 = std::env::var("WRITERS")
        .ok()
        .map_or(Ok(1), |text| text.parse())
        .context("WRITERS")?;
    let writer = Arc::new(Writer {
        book: Mutex::default(),
        reader: Database::from_environment("DATABASE_HOST")?,
    });
    for index in 0..connections {
        tokio::spawn(write(
            Arc::clone(&writer),
            index,
            Database::from_environment("DATABASE_HOST")?,
        ));
    }
    Ok(Router::new()
        .route("/", get(report))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/reset", post(reset))
        .route("/verify", get(verify))
        .with_state(writer))
}

async fn write(writer: Arc<Writer>, index: i64, database: Database) {
    let mut number = first_number(&writer, index, &database).await;
    loop {
        let written = database.with(async |client: &Client| {
            client
                .execute("INSERT INTO steady VALUES ($1, $2)", &[&index, &number])
                .await
        });
        match written.await {
            Ok(_) => writer.book().acknowledged(index, number),
            Err(error) => writer.book().failed(&error),
        }
        // Never the same again: it may have arrived though nobody said so.
        number += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Makes the table; goes on after what an earlier run of this writer has left.
async fn first_number(writer: &Writer, index: i64, database: &Database) -> i64 {
    const NEXT: &str = "SELECT coalesce(max(number), 0) + 1 FROM steady WHERE writer = $1";
    loop {
        let found = database.with(async |client: &Client| {
            // Two that make one table at the same time trip over each other.
            client
                .batch_execute(&format!(
                    "BEGIN; SELECT pg_advisory_xact_lock(1); {TABLE}; COMMIT"
                ))
                .await?;
            Ok(client.query_one(NEXT, &[&index]).await?.get(0))
        });
        match found.await {
            Ok(number) => return number,
            Err(error) => writer.book().failed(&error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Writer {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn acknowledged(&mut self, writer: i64, number: i64) {
        self.acknowledged.insert((writer, number));
        let last = self.last.insert(writer, Instant::now());
        if let Some(gap) = last.map(|last| last.elapsed()).filter(|gap| *gap > NOTABLE_GAP) {
            self.gaps_ms.push(gap.as_millis());
        }
    }

    /// For how long the one that was not heard for longest has been silent.
    fn silence(&self) -> Option<Duration> {
        self.last.values().map(Instant::elapsed).max()
    }

    fn failed(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.last_error = format!("{error:#}");
    }
}

async fn report(State(writer): State<Arc<Writer>>) -> Json<Value> {
    let book = writer.book();
    Json(json!({
        "acknowledged": book.acknowledged.len(),
        "errors": book.errors,
        "last_error": book.last_error,
        "silent_ms": book.silence().map(|silence| silence.as_millis()),
        "gaps_ms": book.gaps_ms,
        "longest_gap_ms": book.gaps_ms.iter().max(),
    }))
}

async fn reset(State(writer): State<Arc<Writer>>) -> &'static str {
    let mut book = writer.book();
    book.gaps_ms.clear();
    book.errors = 0;
    "ok\n"
}

/// Which acknowledged rows are not there; none, or something is very wrong.
async fn verify(State(writer): State<Arc<Writer>>) -> Result<Json<Value>, (StatusCode, String)> {
    let acknowledged = writer.book().acknowledged.clone();
    let read = writer
        .reader
        .with(async |client: &Client| client.query("SELECT writer, number FROM steady", &[]).await);
    let rows = read
        .await
        .map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")))?;
    let found: BTreeSet<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let missing: Vec<_> = acknowledged.difference(&found).collect();
    Ok(Json(
        json!({"acknowledged": acknowledged.len(), "rows": found.len(), "missing": missing}),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_connection_was_hidden_by_the_others() {
        let mut book = Book::default();
        book.acknowledged(0, 1);
        book.acknowledged(1, 1);
        std::thread::sleep(NOTABLE_GAP / 2);
        book.acknowledged(1, 2);
        std::thread::sleep(NOTABLE_GAP * 3 / 4);
        book.acknowledged(1, 3);
        assert!(book.gaps_ms.is_empty());
        assert!(book.silence() > Some(NOTABLE_GAP));
        book.acknowledged(0, 2);
        assert_eq!(book.gaps_ms.len(), 1);
    }
}
