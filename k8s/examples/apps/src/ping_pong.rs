//! Counts the requests it has ever answered, in the database: `pong 0`, `pong 1`, …

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio_postgres::Client;

use crate::database::Database;

pub(crate) fn router() -> anyhow::Result<Router> {
    let database = Arc::new(Database::from_environment("DATABASE_HOST")?);
    Ok(Router::new()
        .route("/", get(pong))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(database))
}

async fn pong(State(database): State<Arc<Database>>) -> Result<String, (StatusCode, String)> {
    let counted = database.with(async |client: &Client| {
        client.batch_execute("CREATE TABLE IF NOT EXISTS pong (one bool PRIMARY KEY CHECK (one), count bigint NOT NULL)").await?;
        let count = "INSERT INTO pong VALUES (true, 0) ON CONFLICT (one) DO UPDATE SET count = pong.count + 1 RETURNING count";
        Ok(client.query_one(count, &[]).await?.get::<_, i64>(0))
    });
    match counted.await {
        Ok(count) => Ok(format!("pong {count}\n")),
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n"))),
    }
}
