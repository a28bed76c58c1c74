//! A list of things to do: a page with a form. While nothing can be written it says so, and goes on listing.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Form, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::database::Database;
use crate::page::{Item, page};

struct Todo {
    /// Leads to the primary, or, while podgres' read-only switch is on, to a standby.
    all: Database,
    /// Leads to a standby.
    reads: Database,
}

#[derive(Deserialize)]
struct NewItem {
    text: String,
}

pub(crate) fn router() -> anyhow::Result<Router> {
    let todo = Todo {
        all: Database::from_environment("DATABASE_HOST")?,
        reads: Database::from_environment("DATABASE_READ_HOST")?,
    };
    Ok(Router::new()
        .route("/", get(list).post(add))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(Arc::new(todo)))
}

async fn list(State(todo): State<Arc<Todo>>) -> Response {
    match todo.items().await {
        Ok((items, closed)) => Html(page(&items, closed)).into_response(),
        Err(error) => failed(&error),
    }
}

async fn add(State(todo): State<Arc<Todo>>, Form(item): Form<NewItem>) -> Response {
    let added = todo
        .all
        .with(async |client: &Client| {
            client.batch_execute(TABLE).await?;
            client
                .execute("INSERT INTO todo (text) VALUES ($1)", &[&item.text])
                .await
        })
        .await;
    match added {
        Ok(_) => Redirect::to("/").into_response(),
        // Told as what it is, and not as a crash.
        Err(error) => match todo.items().await {
            Ok((items, closed)) => {
                let reason = closed.unwrap_or(if read_only(&error) { SWITCHED } else { NO_PRIMARY });
                (StatusCode::SERVICE_UNAVAILABLE, Html(page(&items, Some(reason)))).into_response()
            }
            Err(error) => failed(&error),
        },
    }
}

const TABLE: &str = "CREATE TABLE IF NOT EXISTS todo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)";
const SWITCHED: &str = "the database takes no changes. Your list is safe.";
const NO_PRIMARY: &str = "the database that takes changes cannot be reached. Your list is safe.";

impl Todo {
    /// The list, and why it cannot be added to.
    async fn items(&self) -> anyhow::Result<(Vec<Item>, Option<&'static str>)> {
        match self.all.with(items).await {
            Ok((items, read_only)) => Ok((items, read_only.then_some(SWITCHED))),
            Err(_) => Ok((self.reads.with(items).await?.0, Some(NO_PRIMARY))),
        }
    }
}

async fn items(client: &Client) -> Result<(Vec<Item>, bool), tokio_postgres::Error> {
    let setting = client
        .query_one("SELECT current_setting('transaction_read_only') = 'on'", &[])
        .await?;
    let made = client
        .query_one("SELECT to_regclass('todo') IS NOT NULL", &[])
        .await?;
    let rows = if made.get(0) {
        client.query("SELECT id, text FROM todo ORDER BY id", &[]).await?
    } else {
        Vec::new()
    };
    let items = rows.iter().map(|row| Item {
        id: row.get(0),
        text: row.get(1),
    });
    Ok((items.collect(), setting.get(0)))
}

fn read_only(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<tokio_postgres::Error>();
    error.and_then(tokio_postgres::Error::code) == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}

fn failed(error: &anyhow::Error) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")).into_response()
}
