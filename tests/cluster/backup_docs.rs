//! The commands of docs/backup.md, run in their order against a demo.

use std::process::Command;

use crate::backup::{Lab, answer, text};
use crate::harness::{Start, programs};
use crate::user::give_away;

/// The `sh` blocks of a page, in order.
fn blocks(page: &str) -> String {
    let parts = page.split("```");
    let scripts = parts.filter_map(|part| part.strip_prefix("sh\n"));
    scripts.collect::<Vec<_>>().join("\n")
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
    let script = format!("set -eu\n{SERVER}\n{}", blocks(page));
    let output = Command::new("bash")
        .args(["-c", &script])
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
    assert!(told.contains(": verified\n"), "{told}");
    let rows = lab.demo.sql(&[], "SELECT count(*) FROM orders");
    assert_eq!(rows, "1000", "the lost table did not come back:\n{told}");
    for directory in ["volume", "cluster"] {
        assert!(
            lab.restored(directory).join("global/pg_control").exists(),
            "{directory}\n{told}"
        );
    }
}
