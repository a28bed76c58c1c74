//! A logical backup: `pg_dump` of every database, each as of one snapshot, and the globals. By several jobs if asked for, see
//! [`super::spool`].
//!
//! On a standby replay would cancel a long dump when the primary removes rows that it still reads. So a session on the
//! primary holds an older snapshot meanwhile, without reading anything, and the standby's is taken once it has replayed
//! the WAL up to there: then no row that the dump can see is removed. It ends with the dump.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use super::facts::{APPLICATION_NAME, session_error};
use super::pipeline::{ObjectWriter, Shape};
use super::spool::{self, Closed, Spool};
use super::{BackupError, Server};
use crate::core::backup::{Content, DumpFormat, StoredObject, TableFacts};
use crate::core::wal::Lsn;
use crate::postgres::dump::{Client, Dump};
use crate::postgres::session::Session;
use crate::postgres::table_facts::{self, Copied};
use crate::store::Store;

const HORIZON_NAME: &str = "podgres_backup_horizon";
/// For a standby that streams and has nothing in the way of its replay.
const CATCH_UP_LIMIT: Duration = Duration::from_mins(2);
const READ_BYTES: usize = 64 << 10;

/// What is dumped, and how.
pub(super) struct Wish<'a> {
    /// All if empty.
    pub databases: &'a [String],
    /// Where the older snapshot is held; `None` if the dump reads the primary itself.
    pub primary: Option<&'a Server>,
    pub program_directory: &'a Path,
    /// Holds the superuser's password; `None` where none is asked.
    pub passfile: Option<PathBuf>,
    /// How much of the tables is read for what verification compares.
    pub facts_bytes: u64,
    pub format: DumpFormat,
    /// That write a dump in directory format.
    pub jobs: u32,
    /// Where such a dump's files stand until they are sent.
    pub scratch_directory: &'a Path,
}

pub(super) struct Dumped {
    pub objects: Vec<StoredObject>,
    pub tables: Vec<TableFacts>,
    /// What the oldest snapshot had reached.
    pub position: Lsn,
}

/// Dumps into `folder` of the destination.
pub(super) async fn dump(
    server: &Server,
    store: &Store,
    folder: &str,
    shape: &Shape,
    wish: &Wish<'_>,
) -> Result<Dumped, BackupError> {
    let failed = |source| session_error(server, source);
    let session = server
        .session("postgres", APPLICATION_NAME)
        .await
        .map_err(failed)?;
    let horizon = match wish.primary {
        Some(primary) => Some(hold_horizon(primary, &session, server).await?),
        None => None,
    };
    let run = Run {
        server,
        wish,
        client: client(server, wish),
        spool: match wish.format {
            DumpFormat::Directory => Some(Spool::create(wish.scratch_directory)?),
            DumpFormat::Custom | DumpFormat::Tar => None,
        },
        begin: &|path, content| ObjectWriter::begin(store, folder, path, content, shape),
    };
    let mut dumped = Dumped {
        position: session.position().await.map_err(failed)?,
        objects: vec![run.globals().await?],
        tables: Vec::new(),
    };
    let all = table_facts::databases(&session).await.map_err(failed)?;
    let wanted = if wish.databases.is_empty() {
        &all
    } else {
        wish.databases
    };
    let mut budget_bytes = wish.facts_bytes;
    for (number, database) in wanted.iter().enumerate() {
        let (object, tables) = run.database(number + 1, database, &mut budget_bytes).await?;
        dumped.objects.push(object);
        dumped.tables.extend(tables);
    }
    drop(horizon);
    Ok(dumped)
}

/// What the dumps of one backup share.
struct Run<'a> {
    server: &'a Server,
    wish: &'a Wish<'a>,
    client: Client,
    /// For directory format.
    spool: Option<Spool>,
    /// Begins an object of the backup.
    begin: &'a (dyn Fn(String, Content) -> ObjectWriter + Sync),
}

impl Run<'_> {
    async fn globals(&self) -> Result<StoredObject, BackupError> {
        let writer = (self.begin)("globals.sql.zst".to_owned(), Content::Globals);
        store_dump(self.client.dump_globals()?, writer).await
    }

    /// The dump, and what its tables held at its moment.
    async fn database(
        &self,
        number: usize,
        database: &str,
        budget_bytes: &mut u64,
    ) -> Result<(StoredObject, Vec<TableFacts>), BackupError> {
        let (server, format) = (self.server, self.wish.format);
        let failed = |source| session_error(server, source);
        let session = server.session(database, APPLICATION_NAME).await.map_err(failed)?;
        let snapshot = session.export_snapshot().await.map_err(failed)?;
        tracing::info!(source = server.name, role = server.role, database, "dump begins");
        let content = Content::Dump {
            database: database.to_owned(),
            format,
        };
        let name = format!("{number:03}-{}", file_name(database));
        let writer = (self.begin)(format!("{name}.{}", format.suffix()), content);
        let object = match &self.spool {
            None => store_dump(self.client.dump(database, &snapshot, format)?, writer).await?,
            Some(spool) => {
                let files = spool.folder(&name)?;
                let closed = Closed::watch(&files)?;
                let jobs = self.wish.jobs;
                let dump = self.client.dump_files(database, &snapshot, &files, jobs)?;
                spool::pack(dump, closed, &files, writer).await?
            }
        };
        let looks = table_facts::look(&session, database, Copied::Dump, budget_bytes).await;
        let looks = looks.map_err(failed)?;
        Ok((object, looks.into_iter().map(|look| look.facts).collect()))
    }
}

async fn hold_horizon(primary: &Server, standby: &Session, server: &Server) -> Result<Session, BackupError> {
    let failed = |source| session_error(primary, source);
    let session = primary.session("postgres", HORIZON_NAME).await.map_err(failed)?;
    session.export_snapshot().await.map_err(failed)?;
    let position = session.position().await.map_err(failed)?;
    standby
        .wait_for(position, CATCH_UP_LIMIT)
        .await
        .map_err(|source| session_error(server, source))?;
    Ok(session)
}

async fn store_dump(mut dump: Dump, mut writer: ObjectWriter) -> Result<StoredObject, BackupError> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        match dump.output.read_buf(&mut buffer).await {
            Ok(bytes) if bytes > 0 => writer.write(buffer.split().freeze()).await?,
            _ => break,
        }
    }
    // Only a program that ended well has written all of it.
    dump.end().await?;
    writer.finish().await
}

fn client(server: &Server, wish: &Wish<'_>) -> Client {
    Client {
        program_directory: wish.program_directory.to_owned(),
        address: server.address(),
        user: server.superuser.user.clone(),
        passfile: wish.passfile.clone(),
        authority: server.authority.clone(),
        application_name: APPLICATION_NAME.to_owned(),
    }
}

/// A database's name as far as it is good for a file's; the record has the whole.
fn file_name(database: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
            c
        } else {
            '_'
        }
    };
    database.chars().map(plain).take(63).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_out_of_the_folder() {
        assert_eq!(file_name("../a b/é"), "___a_b__");
        assert_eq!(file_name("app-1"), "app-1");
    }
}
