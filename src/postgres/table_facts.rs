//! What the tables of a database hold: rows and a checksum that does not depend on their order.
//!
//! Reads tables that restores bring back: ordinary ones and materialised views, not temporary or unlogged ones, not
//! those of extensions. A dump brings back a materialised view as it should be, not as it was, and may put the columns of a
//! table that inherits into another order: those tell nothing about a dump.

use super::session::{Session, SessionError};
use crate::core::backup::TableFacts;

const TABLES: &str = "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), pg_table_size(c.oid) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND c.relispopulated \
      AND ($1 OR c.relkind = 'r' AND (c.relispartition \
        OR NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid) \
        OR (SELECT count(*) = 1 AND bool_and(starts_with(own.columns, above.columns) \
              AND NOT EXISTS (SELECT FROM pg_inherits g WHERE g.inhrelid = i.inhparent)) \
            FROM pg_inherits i, \
              LATERAL (SELECT coalesce(string_agg(quote_ident(attname) || ',', '' ORDER BY attnum), '') columns \
                FROM pg_attribute WHERE attrelid = i.inhrelid AND attnum > 0 AND NOT attisdropped) own, \
              LATERAL (SELECT coalesce(string_agg(quote_ident(attname) || ',', '' ORDER BY attnum), '') columns \
                FROM pg_attribute WHERE attrelid = i.inhparent AND attnum > 0 AND NOT attisdropped) above \
            WHERE i.inhrelid = c.oid))) \
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
                      AND d.deptype = 'e') \
    ORDER BY 2, 1";

const DATABASES: &str = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1";

/// Collations that indexes of this database use and that are not the ones they were built with.
const OTHER_COLLATIONS: &str = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = current_database() \
      AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)) \
    OR EXISTS (SELECT FROM pg_collation c WHERE c.collprovider <> 'd' \
      AND c.collversion IS DISTINCT FROM pg_collation_actual_version(c.oid) \
      AND EXISTS (SELECT FROM pg_index i WHERE c.oid = ANY (i.indcollation)))";

/// A table and what tells whether anything in it was written since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    pub facts: TableFacts,
    /// Of the rows' places and transactions.
    pub version: String,
}

/// The databases that a client may connect to, `template1` and its kin aside.
pub async fn databases(session: &Session) -> Result<Vec<String>, SessionError> {
    let rows = session.rows("list the databases", DATABASES, &[]).await?;
    rows.iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()
        .map_err(unreadable)
}

/// How the tables come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// By the server's files.
    Files,
    /// By a dump.
    Dump,
}

/// Whether the machine has another order of text than the one that the database's indexes were built with.
pub async fn sorts_otherwise(session: &Session) -> Result<bool, SessionError> {
    let rows = session
        .rows("compare the collations", OTHER_COLLATIONS, &[])
        .await?;
    let found = rows.first().map(|row| row.try_get(0)).transpose();
    found.map(|found| found.unwrap_or(false)).map_err(unreadable)
}

/// Looks at the tables of a database, the smallest first, as long as their sizes come to no more than `*budget_bytes`,
/// which is reduced by them.
pub async fn look(
    session: &Session,
    database: &str,
    copied: Copied,
    budget_bytes: &mut u64,
) -> Result<Vec<Look>, SessionError> {
    let mut looks = Vec::new();
    for row in session
        .rows("list the tables", TABLES, &[&(copied == Copied::Files)])
        .await?
    {
        let table: String = row.try_get(0).map_err(unreadable)?;
        let bytes: i64 = row.try_get(1).map_err(unreadable)?;
        let Some(left) = budget_bytes.checked_sub(u64::try_from(bytes).unwrap_or(0)) else {
            break;
        };
        // A table that was dropped meanwhile tells nothing.
        if let Some(look) = look_at(session, database, table).await? {
            *budget_bytes = left;
            looks.push(look);
        }
    }
    Ok(looks)
}

/// The same of tables by name; one that is gone is left out.
pub async fn look_again(
    session: &Session,
    database: &str,
    tables: impl Iterator<Item = &String>,
) -> Result<Vec<Look>, SessionError> {
    let mut looks = Vec::new();
    for table in tables {
        looks.extend(look_at(session, database, table.clone()).await?);
    }
    Ok(looks)
}

async fn look_at(session: &Session, database: &str, table: String) -> Result<Option<Look>, SessionError> {
    // Composite types and the like have no hash of their own, but every row has a text.
    let sql = format!(
        "SELECT count(*), coalesce(sum(hashtextextended(podgres_row::text COLLATE \"C\", 0)::numeric), 0)::text, \
         coalesce(sum(hashtextextended((podgres_row.ctid::text || ' ' || podgres_row.xmin::text) COLLATE \"C\", 0)\
         ::numeric), 0)::text FROM ONLY {table} AS podgres_row"
    );
    let rows = match session.rows("read a table", &sql, &[]).await {
        Err(SessionError::Query { source, .. }) if gone(&source) => return Ok(None),
        rows => rows?,
    };
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let rows: i64 = row.try_get(0).map_err(unreadable)?;
    Ok(Some(Look {
        facts: TableFacts {
            database: database.to_owned(),
            table,
            rows: u64::try_from(rows).unwrap_or(0),
            checksum: row.try_get(1).map_err(unreadable)?,
        },
        version: row.try_get(2).map_err(unreadable)?,
    }))
}

fn gone(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|error| matches!(error.code().code(), "42P01" | "3F000" | "XX000"))
}

fn unreadable(source: tokio_postgres::Error) -> SessionError {
    SessionError::Query {
        action: "read the server's answer",
        source,
    }
}
