//! The todo list while nothing can be written: it goes on listing, and says why it takes nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::Cluster;
use crate::node::Cordoned;
use crate::wait::until;
use crate::writer::Example;

const CLOSED: &str = "Read-only for the moment";
/// Sessions of clients, but for the one that asks and podgres' own.
const CLIENTS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datid > 0 AND pid <> pg_backend_pid() \
     AND (application_name = 'podgres-examples' OR application_name NOT LIKE 'podgres%')";

/// The example, with an item that its form has taken.
struct List<'a>(Example<'a>);

impl<'a> List<'a> {
    fn open(cluster: &'a Cluster<'a>) -> Self {
        let list = Self(Example::deploy(cluster, "todo"));
        until("the page", || list.page(), |page| is_open(page));
        list.add("buy+bread");
        until(
            "the item is listed",
            || list.page(),
            |page| page.contains("buy bread"),
        );
        list
    }

    fn page(&self) -> String {
        self.0.request("GET", "/").unwrap_or_default()
    }

    /// What a form with this text is answered: the page again.
    fn add(&self, text: &str) {
        let (status, page) = self.0.submit("/", &format!("text={text}"));
        assert_eq!(status, 303, "{page}");
    }

    /// Told as what it is, with the list, and not as a crash.
    fn refuses(&self, text: &str) {
        let (status, page) = self.0.submit("/", &format!("text={text}"));
        assert_eq!(status, 503, "{page}");
        assert!(page.contains(CLOSED) && page.contains("buy bread"), "{page}");
    }

    /// Reads the page all the time while something is done; how often it was read, and what was no list.
    fn read_while(&self, done: impl FnOnce()) -> (usize, Vec<String>) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut reads, mut failed) = (0, Vec::new());
                while !over.load(Ordering::Relaxed) {
                    let page = self.page();
                    reads += 1;
                    if !page.contains("buy bread") {
                        failed.push(page);
                    }
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                (reads, failed)
            });
            // However it ends, the reader does.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(done));
            over.store(true, Ordering::Relaxed);
            let read = reader.join().expect("a reader");
            if let Err(panic) = ended {
                std::panic::resume_unwind(panic);
            }
            read
        })
    }
}

fn is_open(page: &str) -> bool {
    page.contains("<form") && !page.contains(CLOSED)
}

/// Rows 37 to 42 and 78, by podgres' switch.
pub(crate) fn todo(cluster: &Cluster) {
    let list = List::open(cluster);
    let primary = cluster.primary();
    let switch = |position: &str| {
        let command = [
            "exec",
            &primary,
            "-c",
            "sidecar",
            "--",
            "podgres",
            "read-only",
            position,
        ];
        drop(cluster.kubectl(&command));
    };
    let (reads, failed) = list.read_while(|| {
        switch("on");
        let (after, shown) = until("the banner", || list.page(), |page| page.contains(CLOSED));
        println!("    the banner was shown after {after:.1?}");
        assert!(
            shown.contains("buy bread") && shown.contains("<fieldset disabled"),
            "{shown}"
        );
        list.refuses("lost");
        until(
            "the primary has no client session",
            || cluster.sql(&primary, CLIENTS),
            |count| count == "0",
        );
        let standbys = ["pg-0", "pg-1", "pg-2"].into_iter().filter(|pod| *pod != primary);
        let on_standbys: u32 = standbys
            .map(|pod| cluster.sql(pod, CLIENTS).parse::<u32>().expect("a number"))
            .sum();
        assert!(on_standbys > 0, "the list is read from a standby");
        let refused = cluster
            .sql_by("pg-rw", "CREATE TABLE no (one int)")
            .expect_err("read-only");
        assert!(refused.contains("read-only transaction"), "{refused}");
        switch("off");
        until("writes are back", || list.page(), |page| is_open(page));
    });
    println!("    the page was read {reads} times meanwhile");
    assert!(
        failed.is_empty() && reads > 10,
        "{} of {reads}: {failed:?}",
        failed.len()
    );
    list.add("go+on");
    until(
        "the new item alone is listed",
        || list.page(),
        |page| page.contains("go on") && !page.contains("lost"),
    );
    list.0.remove();
}

/// The first member's node takes no pods: its pod waits, and with fixed leadership nobody else writes.
pub(crate) fn without_a_primary(cluster: &Cluster) {
    let list = List::open(cluster);
    let first = "pg-0";
    let closed = Cordoned::new(&cluster.pod(first).node);
    cluster.delete_pod(first, false);
    let (_, shown) = until("the banner", || list.page(), |page| page.contains(CLOSED));
    assert!(
        shown.contains("buy bread") && shown.contains("<fieldset disabled"),
        "{shown}"
    );
    list.refuses("lost");
    drop(closed);
    until("writes are back", || list.page(), |page| is_open(page));
    list.add("go+on");
    until(
        "the new item is listed",
        || list.page(),
        |page| page.contains("go on"),
    );
    list.0.remove();
}
