//! Passes on to the endpoints of a process what `core::routing::settling` lets through, when it does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::clock::boottime_ms;
use crate::core::routing::RouteTable;
use crate::core::routing::settling::Settling;
use crate::core::units::milliseconds;
use crate::watched;

/// The tables as the endpoints of a process are to see them. `limit`: after it the old primary's right is over.
pub(super) fn settled(
    tables: watch::Receiver<Arc<RouteTable>>,
    limit: Duration,
) -> watch::Receiver<Arc<RouteTable>> {
    let (sender, receiver) = watch::channel(Arc::clone(&tables.borrow()));
    tokio::spawn(pass_on(tables, limit, sender));
    receiver
}

async fn pass_on(
    mut tables: watch::Receiver<Arc<RouteTable>>,
    limit: Duration,
    sender: watch::Sender<Arc<RouteTable>>,
) {
    let limit_ms = milliseconds(limit);
    let mut settling = Settling::default();
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        let now_ms = boottime_ms();
        let (next, until_ms) = settling.next(&table, now_ms, limit_ms);
        watched::set(&sender, next);
        let rest = Duration::from_millis(until_ms.unwrap_or_default().saturating_sub(now_ms));
        tokio::select! {
            changed = tables.changed() => if changed.is_err() { return },
            () = sleep(rest), if until_ms.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::core::routing::settling::tests::of_term;

    const LIMIT: Duration = Duration::from_millis(300);

    async fn primaries(tables: &mut watch::Receiver<Arc<RouteTable>>) -> usize {
        tables.changed().await.expect("told");
        let table = tables.borrow_and_update();
        assert_eq!(table.servers.is_empty(), table.unclear.contains_key("pg-1"));
        table.servers.len()
    }

    #[tokio::test]
    async fn who_never_says_so_is_waited_for_until_the_right_is_over() {
        let (sender, raw) = watch::channel(of_term(4, &[]));
        let mut tables = settled(raw, LIMIT);
        tokio::task::yield_now().await;
        let began = Instant::now();
        sender.send_replace(of_term(5, &["pg-0"]));
        assert_eq!(primaries(&mut tables).await, 0);
        assert_eq!(primaries(&mut tables).await, 1);
        assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn what_is_let_through_comes_at_once_and_once() {
        let long = LIMIT * 1000;
        let (sender, raw) = watch::channel(of_term(4, &[]));
        let mut tables = settled(raw, long);
        tokio::task::yield_now().await;
        sender.send_replace(of_term(5, &["pg-0"]));
        assert_eq!(primaries(&mut tables).await, 0);
        sender.send_replace(of_term(5, &[]));
        assert_eq!(
            primaries(&mut tables).await,
            1,
            "everybody has left, long before the limit"
        );
        sender.send_replace(of_term(5, &[]));
        sender.send_replace(of_term(6, &["pg-0"]));
        assert_eq!(
            primaries(&mut tables).await,
            0,
            "the same table is not told again"
        );
        drop(sender);
        assert!(tables.changed().await.is_err(), "nobody is left to tell");
    }
}
