//! What tables held when a backup was made, for a verification to compare.
//!
//! A dump has one moment, so all that was read then counts. A physical backup's moment lies between its begin and its
//! end: only tables that nobody wrote to in between are recorded.

use std::collections::BTreeMap;

use super::{BackupError, Server};
use crate::core::backup::TableFacts;
use crate::postgres::session::{Session, SessionError};
use crate::postgres::table_facts::{self, Copied, Look};

pub(super) const APPLICATION_NAME: &str = "podgres_backup";

/// Every database, until the budget is used up; the smallest tables of each first.
pub(super) async fn before(server: &Server, budget_bytes: u64) -> Result<Vec<Look>, BackupError> {
    let failed = |source| session_error(server, source);
    let session = server
        .session("postgres", APPLICATION_NAME)
        .await
        .map_err(failed)?;
    let mut budget_bytes = budget_bytes;
    let mut looks = Vec::new();
    for database in table_facts::databases(&session).await.map_err(failed)? {
        let session = server
            .session(&database, APPLICATION_NAME)
            .await
            .map_err(failed)?;
        looks.extend(
            table_facts::look(&session, &database, Copied::Files, &mut budget_bytes)
                .await
                .map_err(failed)?,
        );
    }
    Ok(looks)
}

/// Those of the tables that are still as they were.
pub(super) async fn unchanged(server: &Server, before: Vec<Look>) -> Result<Vec<TableFacts>, BackupError> {
    let failed = |source| session_error(server, source);
    let mut facts = Vec::new();
    for (database, looks) in by_database(before) {
        let session = server
            .session(&database, APPLICATION_NAME)
            .await
            .map_err(failed)?;
        let tables = looks.iter().map(|look| &look.facts.table);
        let again = table_facts::look_again(&session, &database, tables)
            .await
            .map_err(failed)?;
        facts.extend(
            looks
                .into_iter()
                .filter(|look| again.contains(look))
                .map(|look| look.facts),
        );
    }
    Ok(facts)
}

fn by_database(looks: Vec<Look>) -> BTreeMap<String, Vec<Look>> {
    let mut found: BTreeMap<String, Vec<Look>> = BTreeMap::new();
    for look in looks {
        found.entry(look.facts.database.clone()).or_default().push(look);
    }
    found
}

/// How a restored server differs from what was recorded, one sentence each.
pub(super) async fn differences<F>(recorded: &[TableFacts], connect: F) -> Result<Vec<String>, SessionError>
where
    F: AsyncFn(&str) -> Result<Session, SessionError>,
{
    let mut found = Vec::new();
    let mut databases: BTreeMap<&str, Vec<&TableFacts>> = BTreeMap::new();
    for facts in recorded {
        databases.entry(&facts.database).or_default().push(facts);
    }
    for (database, tables) in databases {
        let session = connect(database).await?;
        let names = tables.iter().map(|facts| &facts.table);
        let looks = table_facts::look_again(&session, database, names).await?;
        let restored: BTreeMap<&String, &TableFacts> = looks
            .iter()
            .map(|look| (&look.facts.table, &look.facts))
            .collect();
        found.extend(
            tables
                .into_iter()
                .filter_map(|expected| difference(expected, restored.get(&expected.table).copied())),
        );
    }
    Ok(found)
}

fn difference(expected: &TableFacts, found: Option<&TableFacts>) -> Option<String> {
    let TableFacts {
        database,
        table,
        rows,
        checksum,
    } = expected;
    let what = format!("table {table} of database \"{database}\"");
    match found {
        None => Some(format!("{what} is missing")),
        Some(found) if found.rows != *rows => {
            Some(format!("{what} has {} rows, expected {rows}", found.rows))
        }
        Some(found) if found.checksum != *checksum => {
            Some(format!("{what} has other content in its {rows} rows"))
        }
        Some(_) => None,
    }
}

pub(super) fn session_error(server: &Server, source: SessionError) -> BackupError {
    BackupError::Session {
        server: server.name.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_apart() {
        let facts = |rows, checksum: &str| TableFacts {
            database: "app".to_owned(),
            table: "public.t".to_owned(),
            rows,
            checksum: checksum.to_owned(),
        };
        let of = |found: Option<&TableFacts>| difference(&facts(2, "7"), found).unwrap_or_default();
        assert_eq!(of(Some(&facts(2, "7"))), "");
        assert_eq!(of(None), "table public.t of database \"app\" is missing");
        assert_eq!(
            of(Some(&facts(1, "7"))),
            "table public.t of database \"app\" has 1 rows, expected 2"
        );
        assert_eq!(
            of(Some(&facts(2, "8"))),
            "table public.t of database \"app\" has other content in its 2 rows"
        );
    }
}
