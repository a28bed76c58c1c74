//! Bulk data, which goes past the relay's buffers (splice): every byte of it, in order, both ways, and for a reader that is slow.

use std::time::{Duration, Instant};

use podgres::proxy::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use super::cluster::{cluster, member};
use super::routes::{PATIENCE, Route, answer};

/// About a thousand bytes each, no two alike.
const ROWS: usize = 32 * 1024;
const WIDTH: usize = 1_000;
const CHUNK_ROWS: usize = 1024;

/// Rows from `first` on, as COPY writes them.
fn rows(first: usize, count: usize) -> Vec<u8> {
    let (filler, mut text) = (vec![b'.'; WIDTH], Vec::with_capacity(count * (WIDTH + 8)));
    for n in (first..first + count).map(|n| n.to_string()) {
        let parts = [n.as_bytes(), b"\t", &filler[n.len()..], n.as_bytes(), b"\n"];
        text.extend(parts.concat());
    }
    text
}

/// What the server sends, taken in by somebody who stops to think; compared byte by byte.
async fn out_of(route: &Route, options: &str) {
    let sql = format!(
        "COPY (SELECT n, lpad(n::text, {WIDTH}, '.') FROM generate_series(0, {}) n) TO STDOUT",
        ROWS - 1
    );
    let mut psql = route.spawn_psql(options, &sql);
    let mut said = psql.stdout.take().expect("a pipe");
    let mut got = Vec::new();
    for first in (0..ROWS).step_by(CHUNK_ROWS) {
        let expected = rows(first, CHUNK_ROWS);
        got.resize(expected.len(), 0);
        said.read_exact(&mut got).await.expect("all rows");
        assert!(got == expected, "{options}: behind row {first}");
        let pause = if first == ROWS / 2 { 300 } else { 2 };
        sleep(Duration::from_millis(pause)).await;
    }
    assert_eq!(said.read(&mut [0]).await.expect("an end"), 0);
    assert!(psql.wait().await.expect("psql").success());
}

/// What a client sends; the server compares.
async fn into(route: &Route, options: &str) {
    let same = format!("SELECT count(*), sum(n), bool_and(line = lpad(n::text, {WIDTH}, '.')) FROM bulk");
    let copy = [
        "CREATE TEMP TABLE bulk (n int, line text)",
        "COPY bulk FROM STDIN",
        &same,
    ];
    let mut psql = route.psql_command(options, &copy);
    let mut psql = psql.stdin(std::process::Stdio::piped()).spawn().expect("psql");
    let mut hears = psql.stdin.take().expect("a pipe");
    for first in (0..ROWS).step_by(CHUNK_ROWS) {
        hears.write_all(&rows(first, CHUNK_ROWS)).await.expect("taken");
    }
    drop(hears);
    let output = psql.wait_with_output().await.expect("psql");
    assert_eq!(
        answer(&output),
        format!("{ROWS}|{}|t", ROWS * (ROWS - 1) / 2),
        "{options}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_bulk_data_arrives_in_its_place() {
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let began = Instant::now();
    for options in ["sslmode=disable", "sslmode=require"] {
        let both = async {
            tokio::join!(out_of(&write, options), into(&write, options));
        };
        timeout(2 * PATIENCE, both).await.expect("in time");
    }
    println!(
        "{ROWS} rows each way, plain and encrypted, in {:?}",
        began.elapsed()
    );
    let moved = [
        &write.stats.bytes_to_server_total,
        &write.stats.bytes_to_client_total,
    ];
    let moved = moved.map(|bytes| bytes.load(std::sync::atomic::Ordering::Relaxed));
    let least = u64::try_from(2 * ROWS * WIDTH).expect("bytes");
    assert!(moved.iter().all(|bytes| *bytes > least), "{moved:?} were counted");
}
