//! Where the PostgreSQL versions are that tests run against; a test that needs one which is not there fails and says so.
//!
//! `make test` gets them all and names them in the environment. Under a plain `cargo test` those that the machine has
//! are looked up, and nothing is fetched.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

const VARIABLES: [&str; 4] = [
    "PODGRES_TEST_PG15",
    "PODGRES_TEST_PG16",
    "PODGRES_TEST_PG18",
    "PODGRES_TEST_PG_TLS",
];

/// The programs of one major version: 15, 16 or 18.
pub(crate) fn programs(major: u32) -> PathBuf {
    programs_named(&format!("PODGRES_TEST_PG{major}"))
}

/// The programs of a version that was built with TLS.
pub(crate) fn programs_with_tls() -> PathBuf {
    programs_named("PODGRES_TEST_PG_TLS")
}

fn programs_named(variable: &str) -> PathBuf {
    static FOUND: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        if VARIABLES.iter().any(|name| std::env::var_os(name).is_some()) {
            named_in_environment()
        } else {
            listed()
        }
    });
    let Some(folder) = found.get(variable) else {
        panic!("no {variable} on this machine; `make test`, as root on Debian 12, gets every version")
    };
    assert!(
        folder.join("postgres").exists(),
        "{variable}: no PostgreSQL in \"{}\"",
        folder.display()
    );
    folder.clone()
}

fn named_in_environment() -> BTreeMap<String, PathBuf> {
    VARIABLES
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var_os(name)?.into())))
        .collect()
}

/// Reads the `export NAME='folder'` lines of `tests/tools/postgresql list`.
fn listed() -> BTreeMap<String, PathBuf> {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/postgresql");
    let output = Command::new(tool)
        .arg("list")
        .output()
        .unwrap_or_else(|error| panic!("could not run \"{tool}\": {error}"));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let (name, folder) = line.strip_prefix("export ")?.split_once('=')?;
            Some((name.to_owned(), folder.trim_matches('\'').into()))
        })
        .collect()
}
