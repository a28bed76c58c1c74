//! Writers of numbered rows, each number once, that remember who acknowledged which and when.

use std::path::PathBuf;
use std::time::Duration;

use super::Stop;
use super::ledger::{Acknowledged, Ledger, OFFICE, Office};
use super::session::{RETRY, Session, Way};

pub(super) const WRITERS: i32 = 4;
/// Between two rows of a session.
const PAUSE: Duration = Duration::from_millis(15);

pub(super) const TABLE: &str = "CREATE TABLE chaos (writer int, number bigint, server inet DEFAULT inet_server_addr(), \
     started timestamptz DEFAULT pg_postmaster_start_time(), PRIMARY KEY (writer, number))";

pub(super) async fn write(writer: i32, directory: PathBuf, ledger: &Ledger, stop: &Stop) {
    let who = format!("writer {writer}");
    // Most go past the routes, which would cut sessions of a former primary: the servers must hold by themselves.
    let way = if writer == 0 { Way::Route } else { Way::Direct };
    let mut attempt = usize::try_from(writer).expect("small");
    while !stop.asked() {
        let Some(session) = Session::open(&directory, way, attempt, &who, ledger).await else {
            attempt += 1;
            tokio::time::sleep(RETRY).await;
            continue;
        };
        while !stop.asked() {
            let number = ledger.number();
            let sql = format!("INSERT INTO chaos VALUES ({writer}, {number}) RETURNING {OFFICE}");
            let begun_us = ledger.now_us();
            let Ok(office) = session.ask(&sql, &who, ledger).await else {
                break;
            };
            let told_us = ledger.now_us();
            ledger.book().rows.push(Acknowledged {
                writer,
                number,
                begun_us,
                told_us,
                office: Office::parse(&office),
            });
            tokio::time::sleep(PAUSE).await;
        }
        attempt += 1;
        tokio::time::sleep(RETRY).await;
    }
}
