//! What the tables of a database hold: rows and a checksum that does not depend on their order.
//!
//! Reads tables that restores bring back: ordinary ones and materialised views, not temporary or unlogged ones, not
//! those of extensions.

use super::session::{Session, SessionError};
use crate::core::backup::TableFacts;

const TABLES: &str = "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), pg_table_size(c.oid) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND c.relispopulated \
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
                      AND d.deptype = 'e') \
    ORDER BY 2, 1";

const DATABASES: &str = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1";

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

/// Looks at the tables of a database, the smallest first, as long as their sizes come to no more than `*budget_bytes`,
/// which is reduced by them.
pub async fn look(
    session: &Session,
    database: &str,
    budget_bytes: &mut u64,
) -> Result<Vec<Look>, SessionError> {
    let mut looks = Vec::new();
    for row in session.rows("list the tables", TABLES, &[]).await? {
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
