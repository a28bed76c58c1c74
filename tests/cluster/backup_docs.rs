//! The commands of docs/backup.md, run in their order against a demo, and what the page says that they print.

use std::process::Command;

use crate::backup::{Lab, answer, text};
use crate::harness::{Start, programs};
use crate::user::give_away;

/// The `sh` blocks of a page, in order, each with what the `text` block behind it says that it prints.
fn blocks(page: &str) -> Vec<(&str, Option<&str>)> {
    let parts: Vec<&str> = page.split("```").collect();
    let scripts = parts.iter().enumerate();
    let scripts = scripts.filter_map(|(at, part)| Some((at, part.strip_prefix("sh\n")?)));
    let printed = |at: usize| parts.get(at + 2).and_then(|part| part.strip_prefix("text\n"));
    scripts.map(|(at, script)| (script, printed(at))).collect()
}

/// The words of an output, without what differs from run to run: numbers, their units, paths; whether the programs come
/// with amcheck, and whether a segment was archived, or no longer needed, or a transaction replayed just then.
fn masked(output: &str) -> Vec<String> {
    let word = |word: &str| {
        let differs = word.contains(|c: char| c.is_ascii_digit() || c == '/');
        let unit = ["B", "kB", "MB", "GB"].contains(&word.trim_end_matches(','));
        if differs || unit { "#" } else { word }.to_owned()
    };
    let line = |line: &str| {
        let commit = line.find(", last commit ").unwrap_or(line.len());
        let (before, commit) = line.split_at(commit);
        let after = commit.find(", ready").map_or("", |at| &commit[at..]);
        let words = format!("{before}{after}");
        words.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
    };
    let by_chance = |line: &String| {
        let chances = [
            "ok: pg_amcheck",
            "ok: archived WAL follows",
            "# archived WAL files deleted",
        ];
        chances.iter().any(|start| line.starts_with(start))
    };
    let lines = output.lines().map(line);
    lines
        .filter(|line| !line.is_empty() && !by_chance(line))
        .collect()
}

/// What the page says in words: a server on a restored directory, reached by a socket that trusts.
const SERVER: &str = r#"
as_postgres() { if [ "$(id -u)" = 0 ]; then setpriv --reuid="$SERVER_USER" --regid="$SERVER_GROUP" --clear-groups "$@"; else "$@"; fi; }
start_restored() {
    echo "local all all trust" >"$1.hba"
    chmod 644 "$1.hba"
    as_postgres pg_ctl -D "$1" -w -l "$1.log" -o "-c listen_addresses='' -c unix_socket_directories='$RESTORED' -c hba_file='$1.hba'" start >/dev/null
}
stop_restored() { as_postgres pg_ctl -D "$1" -w -m fast stop >/dev/null; }
"#;

#[test]
fn the_commands_of_the_page_do_what_it_says() {
    let lab = Lab::new(Start::new(16));
    lab.demo.sql(
        &[],
        "CREATE TABLE orders AS SELECT i AS id, i * 2 AS amount FROM generate_series(1, 1000) i",
    );
    let page = include_str!("../../docs/backup.md");
    let new = lab.folder.path().join("new");
    std::fs::create_dir(&new).expect("folder");
    give_away(&new);
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_podgres"));
    let path = format!(
        "{}:{}:{}",
        text(binary.parent().expect("a folder")),
        text(&programs(16)),
        std::env::var("PATH").expect("PATH")
    );
    let (user, group) = crate::user::server_user().unwrap_or_default();
    let blocks = blocks(page);
    let mut script = format!("set -eu\n{SERVER}\n");
    for (block, _) in &blocks {
        script.extend([block, "echo '@@'\n"]);
    }
    let output = Command::new("timeout")
        .args(["240", "bash", "-c", &script])
        .env("PATH", path)
        .env("DEMO", &lab.demo.directory)
        .env("DSN", lab.demo.ask(&["dsn"]))
        .env("BACKUPS", lab.destination())
        .env("NEW_BACKUPS", new)
        .env("RESTORED", lab.folder.path().join("restored"))
        .env("SERVER_USER", user.to_string())
        .env("SERVER_GROUP", group.to_string())
        .output()
        .expect("bash");
    let told = answer(&output);
    let printed = blocks.iter().zip(told.split("@@\n"));
    let compared = printed.filter_map(|((script, expected), found)| Some((script, (*expected)?, found)));
    let mut number = 0;
    for (script, expected, found) in compared {
        assert_eq!(masked(found), masked(expected), "{script}\nprinted\n{found}");
        number += 1;
    }
    assert!(number >= 5, "the page shows {number} outputs");
    let rows = lab.demo.sql(&[], "SELECT count(*) FROM orders");
    assert_eq!(rows, "1000", "the lost table did not come back:\n{told}");
    for directory in ["volume", "cluster"] {
        assert!(
            lab.restored(directory).join("global/pg_control").exists(),
            "{directory}\n{told}"
        );
    }
}
