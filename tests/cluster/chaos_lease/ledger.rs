//! What the clients were told and when, and which faults happened meanwhile. All times are one process' own,
//! in microseconds since the run began.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::anomalies::Transaction;

/// One server as the primary of one timeline: what acknowledges.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Office {
    pub(crate) timeline: u32,
    pub(crate) server: String,
    /// When its postmaster started, by its own clock.
    pub(super) started: String,
}

/// An expression that gives an office as one text; it fails on a standby.
pub(crate) const OFFICE: &str = "substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) || ' ' || \
     host(inet_server_addr()) || ' ' || to_char(pg_postmaster_start_time(), 'HH24:MI:SS.US')";

impl Office {
    pub(crate) fn parse(text: &str) -> Self {
        let mut words = text.split(' ').map(str::to_owned);
        let mut word = || words.next().expect("an office");
        let timeline = word();
        Self {
            timeline: u32::from_str_radix(&timeline, 16).expect("a timeline"),
            server: word(),
            started: word(),
        }
    }
}

/// A commit that a client was told of.
#[derive(Clone, Debug)]
pub(super) struct Acknowledged {
    pub(super) writer: i32,
    pub(super) number: i64,
    pub(super) begun_us: u64,
    pub(super) told_us: u64,
    pub(super) office: Office,
}

#[derive(Clone, Debug)]
pub(super) struct Happened {
    pub(super) at_us: u64,
    /// With everything that was drawn.
    pub(super) fault: String,
    /// What a table counts together.
    pub(super) kind: String,
    /// On whom it fell.
    pub(super) what: String,
}

#[derive(Default)]
pub(super) struct Book {
    pub(super) rows: Vec<Acknowledged>,
    pub(super) transactions: Vec<Transaction>,
    pub(super) faults: Vec<Happened>,
    /// When clients were asked to rest.
    pub(super) rests: Vec<u64>,
    /// What must not happen.
    pub(super) wrong: Vec<String>,
    /// Errors that the clients met, by their SQLSTATE.
    pub(super) errors: BTreeMap<String, usize>,
}

pub(super) struct Ledger {
    /// Nothing that was acknowledged may be lost.
    pub(super) durable: bool,
    start: Instant,
    book: Mutex<Book>,
    number: AtomicI64,
}

/// What PostgreSQL calls an internal error (XX000) and is none: the disk is full.
const INNOCENT: [&str; 1] = ["could not write init file"];

impl Ledger {
    pub(super) fn new(durable: bool) -> Self {
        Self {
            durable,
            start: Instant::now(),
            book: Mutex::default(),
            number: AtomicI64::new(1),
        }
    }

    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).expect("a short run")
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("lock")
    }

    /// Each is given out once.
    pub(super) fn number(&self) -> i64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn fault_begins(&self, at_us: u64, fault: String, kind: String, what: &str) {
        let what = what.to_owned();
        self.book().faults.push(Happened {
            at_us,
            fault,
            kind,
            what,
        });
    }

    /// A session may be cut or refused in many ways; corruption and a row that is there already are wrong.
    pub(super) fn met(&self, who: &str, error: &tokio_postgres::Error) {
        let code = error.code().map_or("connection", |code| code.code()).to_owned();
        let mut book = self.book();
        let cause = error.as_db_error().map_or("", |error| error.message());
        if !INNOCENT.contains(&cause) && ["XX", "23", "22"].iter().any(|class| code.starts_with(class)) {
            book.wrong.push(format!("{who}: {error:?}"));
        }
        *book.errors.entry(code).or_default() += 1;
    }

    pub(super) fn met_silence(&self) {
        *self.book().errors.entry("silence".to_owned()).or_default() += 1;
    }

    pub(super) fn summary(&self) -> String {
        let book = self.book();
        let committed = book.transactions.iter().filter(|t| t.committed()).count();
        let mut offices: Vec<&Office> = book.rows.iter().map(|row| &row.office).collect();
        offices.sort();
        offices.dedup();
        format!(
            "{} faults, {} rows and {committed} of {} list transactions acknowledged in {} offices, met {:?}",
            book.faults.len(),
            book.rows.len(),
            book.transactions.len(),
            offices.len(),
            book.errors
        )
    }
}
