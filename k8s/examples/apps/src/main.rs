//! Small clients of a database that podgres looks after: `todo`, `ping-pong`, `steady-writer`.
//!
//! Ordinary PostgreSQL clients: they know two addresses (`DATABASE_HOST` for everything, `DATABASE_READ_HOST` for reads while there is
//! no primary), a password from a file, and nothing of podgres. Each serves HTTP on port 8080.

mod database;
mod page;
mod ping_pong;
mod steady_writer;
mod todo;

use anyhow::{Context as _, bail};
use axum::Router;

const PORT: u16 = 8080;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let router = match std::env::args().nth(1).as_deref() {
        Some("todo") => todo::router(),
        Some("ping-pong") => ping_pong::router(),
        Some("steady-writer") => steady_writer::router(),
        _ => bail!("usage: podgres-examples todo|ping-pong|steady-writer"),
    };
    serve(router?).await
}

/// Until TERM: as process 1 it would not end by itself.
async fn serve(router: Router) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", PORT))
        .await
        .with_context(|| format!("could not listen on port {PORT}"))?;
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let ended = async move {
        term.recv().await;
    };
    tokio::select! {
        served = axum::serve(listener, router) => served.context("the HTTP server ended"),
        () = ended => Ok(()),
    }
}
