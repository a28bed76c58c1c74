//! List-append transactions as Jepsen's Elle has them: every value is appended once, every list is read whole.

use std::path::PathBuf;
use std::time::Duration;

use super::Stop;
use super::anomalies::{Operation, Outcome, Transaction};
use super::ledger::{Ledger, OFFICE, Office};
use super::session::{Ended, RETRY, Session, Way};

pub(super) const CLIENTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(25);
/// Lists that are in use at the same time.
const KEYS: i64 = 4;
/// After so many numbers other lists are used, so that none grows long.
const LIST_NUMBERS: i64 = 800;

pub(super) const TABLE: &str = "CREATE TABLE lists (key int PRIMARY KEY, items bigint[] NOT NULL)";

pub(super) async fn transact(client: usize, directory: PathBuf, ledger: &Ledger, stop: &Stop) {
    let who = format!("list client {client}");
    let way = if client == 0 { Way::Route } else { Way::Direct };
    let mut attempt = client;
    while !stop.asked() {
        let Some(session) = Session::open(&directory, way, attempt, &who, ledger).await else {
            attempt += 1;
            tokio::time::sleep(RETRY).await;
            continue;
        };
        while !stop.asked() {
            let begun_us = ledger.now_us();
            let mut transaction = Transaction {
                begun_us,
                told_us: begun_us,
                outcome: Outcome::Unknown,
                operations: Vec::new(),
                office: None,
            };
            let usable = attempt_one(&session, &mut transaction, &who, ledger).await;
            transaction.told_us = ledger.now_us();
            if !transaction.operations.is_empty() {
                ledger.book().transactions.push(transaction);
            }
            if !usable {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        attempt += 1;
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether the session is good for another one.
async fn attempt_one(session: &Session, transaction: &mut Transaction, who: &str, ledger: &Ledger) -> bool {
    let begin = format!("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT {OFFICE}");
    let Ok(office) = session.ask(&begin, who, ledger).await else {
        return false;
    };
    transaction.office = Some(Office::parse(&office));
    // At least one append: what only reads is told of commits that are not acknowledged yet.
    let appends = fastrand::usize(0..4);
    for step in 0..4 {
        let result = if step == appends || fastrand::u8(..) < 80 {
            append(session, transaction, who, ledger).await
        } else {
            read(session, transaction, who, ledger).await
        };
        if let Err(ended) = result {
            // Without a COMMIT nothing can have been committed.
            transaction.outcome = Outcome::Aborted;
            return match ended {
                Ended::Refused(_) => session.ask("ROLLBACK", who, ledger).await.is_ok(),
                Ended::Unknown => false,
            };
        }
    }
    match session.ask("COMMIT", who, ledger).await {
        Ok(_) => {
            transaction.outcome = Outcome::Committed;
            true
        }
        Err(Ended::Refused(error)) => {
            let retry = error.code() == Some(&tokio_postgres::error::SqlState::T_R_SERIALIZATION_FAILURE);
            if retry {
                transaction.outcome = Outcome::Aborted;
            }
            retry
        }
        Err(Ended::Unknown) => false,
    }
}

fn key(number: i64) -> i64 {
    number / LIST_NUMBERS * KEYS + fastrand::i64(0..KEYS)
}

async fn append(
    session: &Session,
    transaction: &mut Transaction,
    who: &str,
    ledger: &Ledger,
) -> Result<(), Ended> {
    let value = ledger.number();
    let key = key(value);
    let sql = format!(
        "INSERT INTO lists VALUES ({key}, ARRAY[{value}]) ON CONFLICT (key) DO UPDATE SET items = lists.items || {value}::bigint"
    );
    transaction.operations.push(Operation::Append { key, value });
    session.ask(&sql, who, ledger).await.map(drop)
}

async fn read(
    session: &Session,
    transaction: &mut Transaction,
    who: &str,
    ledger: &Ledger,
) -> Result<(), Ended> {
    let key = key(ledger.number());
    let sql = format!("SELECT array_to_string(items, ',') FROM lists WHERE key = {key}");
    let text = session.ask(&sql, who, ledger).await?;
    let items = items(&text);
    transaction.operations.push(Operation::Read { key, items });
    Ok(())
}

/// A list as `array_to_string(items, ',')` gives it.
pub(super) fn items(text: &str) -> Vec<i64> {
    let items = text.split(',').filter(|item| !item.is_empty());
    items.map(|item| item.parse().expect("a number")).collect()
}
