//! pgbench, which repeats nothing: what it is told, and where, while the primary moves.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use podgres::demo::{Target, dsn};

use super::{found_primary, leased, ordinal_of, primary};
use crate::harness::{Demo, programs, wait_for};

/// The first command of a transaction is number 0.
const TRANSACTION: &str =
    "BEGIN;\nINSERT INTO work VALUES (1);\nSELECT count(*) FROM work WHERE n < 0;\nCOMMIT;\n";
const READING: &str = "BEGIN;\nSELECT count(*) FROM work WHERE n < 0;\nCOMMIT;\n";
const CLIENTS: u64 = 8;

/// One run: how many transactions were acknowledged, and where and why clients were aborted.
#[derive(Debug, Default)]
struct Outcome {
    done: u64,
    aborted: Vec<(u64, String)>,
}

fn start(demo: &Demo, script: &std::path::Path, protocol: &str, seconds: u32) -> Child {
    let dsn = dsn(&demo.deployed(), Target::ReadWrite).expect("dsn");
    let any_route = format!("{dsn}&load_balance_hosts=random");
    Command::new(programs(16).join("pgbench"))
        .args([
            "--no-vacuum",
            "--protocol",
            protocol,
            "--client",
            &CLIENTS.to_string(),
            "--time",
            &seconds.to_string(),
            "--file",
        ])
        .arg(script)
        .arg(any_route)
        .env("LC_ALL", "C")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgbench")
}

fn outcome(run: Child) -> Outcome {
    let output = run.wait_with_output().expect("pgbench");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    let done = said
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    // "pgbench: error: client 3 aborted in command 0 (SQL) of script 0; perhaps the backend died …"
    let aborted = errors.lines().filter_map(|line| {
        let (_, rest) = line.split_once("aborted in command ")?;
        let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some((number.parse().expect("a number"), line.to_owned()))
    });
    Outcome {
        done: done.map_or(0, |done| done.parse().expect("a number")),
        aborted: aborted.collect(),
    }
}

fn script(transaction: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("script");
    std::fs::write(file.path(), transaction).expect("script");
    file
}

/// pgbench while `moves` happens, and once more when it is over.
fn run_through(demo: &Demo, protocol: &str, moves: impl FnOnce()) -> [Outcome; 2] {
    let script = script(TRANSACTION);
    let run = start(demo, script.path(), protocol, 6);
    let working = || demo.sql(&[], "SELECT count(*) > 50 FROM work") == "t";
    assert!(
        wait_for(Duration::from_secs(20), working),
        "pgbench does not work"
    );
    moves();
    let during = outcome(run);
    [during, outcome(start(demo, script.path(), protocol, 6))]
}

fn rows(demo: &Demo) -> u64 {
    demo.sql(&[], "SELECT count(*) FROM work")
        .parse()
        .expect("a number")
}

impl Outcome {
    /// Nobody was aborted in the middle of a transaction.
    fn assert_between(&self) {
        let inside: Vec<_> = self.aborted.iter().filter(|(command, _)| *command != 0).collect();
        assert!(inside.is_empty(), "in the middle of a transaction: {inside:#?}");
    }
}

/// There and back: pgbench comes back from neither by itself, so each run ends with its flip.
fn the_switch_ends_reads_between_transactions(demo: &Demo) {
    let script = script(READING);
    for turn in ["on", "off"] {
        // It ends long before, with its last session: after the drain timeout none may be left.
        let run = start(demo, script.path(), "prepared", 20);
        let works = || {
            let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
            let on = |ordinal: &&str| {
                demo.sql(&["--member", ordinal], sessions)
                    .parse::<u64>()
                    .expect("a number")
            };
            ["0", "1", "2"].iter().map(on).sum::<u64>() == CLIENTS
        };
        assert!(wait_for(Duration::from_secs(5), works), "pgbench does not work");
        demo.done(&["read-only", turn]);
        let ended = outcome(run);
        ended.assert_between();
        let all = usize::try_from(CLIENTS).expect("few");
        assert_eq!(ended.aborted.len(), all, "{turn}: {ended:?}");
    }
}

#[test]
fn pgbench_loses_no_transaction_in_a_switchover_and_only_open_ones_in_a_failover() {
    let demo = leased(&[]);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let [during, afterwards] = run_through(&demo, "prepared", || {
        demo.done(&["switchover"]);
    });
    assert!(!during.aborted.is_empty(), "the move met nobody: {during:?}");
    during.assert_between();
    assert!(
        afterwards.aborted.is_empty() && afterwards.done > 0,
        "{afterwards:?}"
    );
    assert_eq!(
        rows(&demo),
        during.done + afterwards.done,
        "each acknowledged one, once"
    );

    demo.sql(&[], "TRUNCATE work");
    demo.wait_streaming(2);
    the_switch_ends_reads_between_transactions(&demo);
    let lost = primary(&demo.status().expect("status"));
    let [during, afterwards] = run_through(&demo, "simple", || {
        demo.ask(&["delete-pod", &ordinal_of(&lost), "--force"]);
        let moved = wait_for(Duration::from_secs(30), || {
            let holder = demo.status().as_ref().and_then(found_primary);
            holder.is_some_and(|name| name != lost)
        });
        assert!(moved, "{lost} is still the primary");
    });
    let lost_connection = |said: &String| {
        let words = [
            "perhaps the backend died",
            "terminating connection",
            "closed the connection",
        ];
        words.iter().any(|words| said.contains(words))
    };
    assert!(
        during.aborted.iter().all(|(_, said)| lost_connection(said)),
        "{during:?}"
    );
    assert!(
        afterwards.aborted.is_empty() && afterwards.done > 0,
        "{afterwards:?}"
    );
    let acknowledged = during.done + afterwards.done;
    let there = rows(&demo);
    assert!(
        (acknowledged..=acknowledged + CLIENTS).contains(&there),
        "{there} of {acknowledged}, each client may have had one commit in doubt"
    );
}
