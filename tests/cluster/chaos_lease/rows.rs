//! Writers of numbered rows, each number once, that remember who acknowledged which and when.

use std::path::PathBuf;
use std::time::Duration;

use super::Stop;
use super::ledger::{Acknowledged, Ledger, OFFICE, Office};
use super::session::{Ended, PATIENCE, RETRY, Session, Way};

/// One through the routes, two that look for the primary, and one for each member that never goes elsewhere.
pub(super) const WRITERS: i32 = 3 + STUBBORN;
const STUBBORN: i32 = 3;
/// Between two rows of a session.
const PAUSE: Duration = Duration::from_millis(15);
/// Longer than a pod stays frozen: such a session is still open when its former primary thaws.
const STUBBORN_PATIENCE: Duration = Duration::from_secs(30);
/// Between two rows that were refused.
const REFUSED: Duration = Duration::from_millis(60);

pub(super) const TABLE: &str = "CREATE TABLE chaos (writer int, number bigint, server inet DEFAULT inet_server_addr(), \
     started timestamptz DEFAULT pg_postmaster_start_time(), PRIMARY KEY (writer, number))";

pub(super) async fn write(writer: i32, directory: PathBuf, ledger: &Ledger, stop: &Stop) {
    let who = format!("writer {writer}");
    let stubborn = writer < STUBBORN;
    // Most go past the routes, which would cut sessions of a former primary: the servers must hold by themselves.
    let way = if writer == STUBBORN {
        Way::Route
    } else {
        Way::Direct
    };
    let mut attempt = usize::try_from(writer).expect("small");
    while !stop.asked() {
        if let Some(session) = Session::open(&directory, way, attempt, &who, ledger).await {
            let patience = if stubborn { STUBBORN_PATIENCE } else { PATIENCE };
            let session = session.patient(patience);
            while !stop.asked() {
                match insert(&session, writer, &who, ledger).await {
                    Ok(()) => tokio::time::sleep(PAUSE).await,
                    Err(Ended::Refused(_)) if stubborn => tokio::time::sleep(REFUSED).await,
                    Err(_) => break,
                }
            }
        }
        attempt += usize::from(!stubborn);
        tokio::time::sleep(RETRY).await;
    }
}

async fn insert(session: &Session, writer: i32, who: &str, ledger: &Ledger) -> Result<(), Ended> {
    let number = ledger.number();
    let sql = format!("INSERT INTO chaos VALUES ({writer}, {number}) RETURNING {OFFICE}");
    let begun_us = ledger.now_us();
    let office = session.ask(&sql, who, ledger).await?;
    let told_us = ledger.now_us();
    ledger.book().rows.push(Acknowledged {
        writer,
        number,
        begun_us,
        told_us,
        office: Office::parse(&office),
    });
    Ok(())
}
