//! Holds the imports of `src/` against the floor plan: imports go down only, adapters do not know each other,
//! and the pure floor stays pure.
//!
//! If an adapter wants another one, the answer is a new field in what the floor above hands down.

use crate::source::{Source, code_of, files_below, positions};

/// A room's place in the house. What a room may import follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Floor {
    /// Imports nothing of ours.
    Core,
    /// The one clock, and what all do with files and watches. Imports nothing of ours; all but the core use it.
    Ground,
    /// One outside thing each. Imports the core.
    Adapter,
    /// Where deciding meets doing. Imports the core and adapters, never another of this floor.
    Middle,
    /// The command line. Imports everything.
    Top,
}

/// Every room, by the first segment of its path in the crate.
const ROOMS: &[(&str, Floor)] = &[
    ("core", Floor::Core),
    ("clock", Floor::Ground),
    ("files", Floor::Ground),
    ("watched", Floor::Ground),
    ("dns", Floor::Adapter),
    ("http", Floor::Adapter),
    ("kube", Floor::Adapter),
    ("peers", Floor::Adapter),
    ("postgres", Floor::Adapter),
    ("proxy", Floor::Adapter),
    ("store", Floor::Adapter),
    ("supervisor_client", Floor::Adapter),
    ("agent", Floor::Middle),
    ("backup", Floor::Middle),
    ("demo", Floor::Middle),
    ("supervisor", Floor::Middle),
    ("cmd", Floor::Top),
    ("config", Floor::Top),
    ("telemetry", Floor::Top),
];

/// What would let waiting, time, chance or the outside into the pure floor, and what iterates in no fixed order.
const NOT_IN_CORE: &[&str] = &[
    "tokio",
    "Instant",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "rand",
    "fastrand",
    "HashMap",
    "HashSet",
    "std::env",
    "std::fs",
    "std::io",
    "std::process",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
];

/// A longer file holds more than one idea.
const MOST_LINES: usize = 450;
/// The worlds and rules of an enumeration are lists.
const MOST_LINES_OF_A_TEST: usize = 950;

fn floor_of(room: &str) -> Option<Floor> {
    ROOMS
        .iter()
        .find(|(name, _)| *name == room)
        .map(|(_, floor)| *floor)
}

fn may_import(from: Floor, to: Floor) -> bool {
    match from {
        Floor::Core | Floor::Ground => false,
        Floor::Adapter => matches!(to, Floor::Core | Floor::Ground),
        Floor::Middle => matches!(to, Floor::Core | Floor::Ground | Floor::Adapter),
        Floor::Top => true,
    }
}

/// The modules that lead to a file: `src/core/wal.rs` is `core`, `wal`; `src/core/mod.rs` is `core`.
fn module_path(path: &str) -> Vec<&str> {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs");
    inside.split('/').filter(|part| *part != "mod").collect()
}

/// The rooms that code names, by `crate::…`, or by as many `super::` as lead to the crate's root.
fn imported_rooms(code: &str, depth: usize) -> Vec<(usize, String)> {
    let tests_at = code.find("mod tests {").unwrap_or(code.len());
    let mut found = Vec::new();
    for at in positions(code, "crate") {
        if let Some(tail) = code[at + "crate".len()..].trim_start().strip_prefix("::") {
            found.extend(first_segments(tail).into_iter().map(|room| (at, room)));
        }
    }
    for at in positions(code, "super") {
        if code[..at].trim_end().ends_with("super::") {
            continue;
        }
        let mut tail = &code[at..];
        let mut steps = 0;
        while let Some(next) = tail.trim_start().strip_prefix("super::") {
            steps += 1;
            tail = next;
        }
        if steps > 0 && steps == depth + usize::from(at > tests_at) {
            found.extend(first_segments(tail).into_iter().map(|room| (at, room)));
        }
    }
    found
}

/// What a path goes on with: one name, or the first names of a group in braces.
fn first_segments(tail: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = tail.trim_start().strip_prefix('{') else {
        return vec![name(tail)];
    };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
                if letter == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// What is wrong with one file of `src/`, each as `path:line: sentence`.
fn violations(source: &Source) -> Vec<String> {
    let code = code_of(&source.text);
    let modules = module_path(&source.path);
    let room = modules[0];
    let mut wrong: Vec<(usize, String)> = Vec::new();
    if !matches!(room, "lib" | "main") {
        match floor_of(room) {
            None => wrong.push((0, format!("room \"{room}\" is not in the floor plan"))),
            Some(floor) => {
                wrong.extend(wrong_imports(&code, room, floor, modules.len()));
                if floor == Floor::Core {
                    wrong.extend(impurities(&code));
                }
            }
        }
    }
    wrong.sort();
    wrong
        .into_iter()
        .map(|(at, sentence)| {
            let line = code[..at].matches('\n').count() + 1;
            format!("{}:{line}: {sentence}", source.path)
        })
        .collect()
}

fn wrong_imports(code: &str, room: &str, floor: Floor, depth: usize) -> Vec<(usize, String)> {
    let judge = |imported: &str| match floor_of(imported) {
        _ if imported == room => None,
        None => Some(format!(
            "\"{imported}\" stands at the crate's root and is not in the floor plan"
        )),
        Some(to) if may_import(floor, to) => None,
        Some(to) => Some(format!("{room} ({floor:?}) must not import {imported} ({to:?})")),
    };
    imported_rooms(code, depth)
        .into_iter()
        .filter_map(|(at, imported)| judge(&imported).map(|sentence| (at, sentence)))
        .collect()
}

fn impurities(code: &str) -> Vec<(usize, String)> {
    NOT_IN_CORE
        .iter()
        .flat_map(|word| positions(code, word).into_iter().map(move |at| (at, *word)))
        .map(|(at, word)| (at, format!("\"{word}\" has no place in the pure floor")))
        .collect()
}

/// A file that is too long, as a sentence.
fn overlong(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    let most = if source.path.starts_with("tests/") {
        MOST_LINES_OF_A_TEST
    } else {
        MOST_LINES
    };
    (lines > most).then(|| {
        format!(
            "{}: {lines} lines, more than {most}: more than one idea?",
            source.path
        )
    })
}

#[test]
fn imports_go_down_only() {
    let sources = files_below("src");
    assert!(sources.iter().any(|source| source.path == "src/core/mod.rs"));
    let wrong: Vec<String> = sources.iter().flat_map(violations).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_holds_one_idea() {
    let mut sources = files_below("src");
    sources.extend(files_below("tests"));
    let wrong: Vec<String> = sources.iter().filter_map(overlong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn wrong_in(path: &str, text: &str) -> Vec<String> {
    violations(&Source {
        path: path.to_owned(),
        text: text.to_owned(),
    })
}

#[test]
fn each_kind_of_wrong_import_is_seen() {
    for (path, line, part) in [
        (
            "src/core/wal.rs",
            "use crate::postgres::Secret;",
            "core (Core) must not import postgres",
        ),
        ("src/core/mod.rs", "use super::dns;", "must not import dns"),
        (
            "src/core/wal.rs",
            "use super::super::dns::Name;",
            "must not import dns",
        ),
        (
            "src/dns.rs",
            "use super::postgres::Secret;",
            "dns (Adapter) must not import postgres",
        ),
        (
            "src/dns.rs",
            "mod tests {\n use super::super::http;\n}",
            "src/dns.rs:2: dns",
        ),
        (
            "src/http/mod.rs",
            "use crate::{core::wal, proxy::{self, Route}};",
            "must not import proxy",
        ),
        (
            "src/http/mod.rs",
            "use crate::{\n  core::{a, b},\n  agent,\n};",
            "must not import agent",
        ),
        (
            "src/proxy/tls.rs",
            "fn f() { crate::config::read(); }",
            "must not import config",
        ),
        (
            "src/agent/run.rs",
            "use crate::supervisor::Fence;",
            "agent (Middle) must not import supervisor",
        ),
        ("src/agent/run.rs", "use crate::cmd;", "must not import cmd"),
        (
            "src/agent/run.rs",
            "use crate::helpers::x;",
            "\"helpers\" stands at the crate's root",
        ),
        ("src/helpers.rs", "", "room \"helpers\" is not in the floor plan"),
    ] {
        let wrong = wrong_in(path, line).join("\n");
        assert!(wrong.contains(part), "{path}: {line:?} gave {wrong:?}");
    }
}

#[test]
fn each_impurity_of_the_core_is_seen() {
    for word in NOT_IN_CORE {
        let wrong = wrong_in("src/core/decide.rs", &format!("// fine\nuse {word}::x;"));
        assert!(
            wrong[0].starts_with("src/core/decide.rs:2: ") && wrong[0].contains(word),
            "{word} was not seen: {wrong:?}"
        );
        assert_eq!(wrong_in("src/dns.rs", &format!("use {word}::x;")), [""; 0]);
    }
}

#[test]
fn what_the_plan_allows_is_not_complained_of() {
    for (path, text) in [
        (
            "src/core/wal.rs",
            "use super::member::Ordinal;\nuse crate::core::status;\nuse std::net::IpAddr;",
        ),
        (
            "src/core/wal.rs",
            "mod tests {\n use super::*;\n use super::super::member;\n}",
        ),
        (
            "src/dns.rs",
            "//! [`crate::postgres`]\nuse crate::core::wal::Lsn; // crate::http\nconst A: &str = \"crate::http\";",
        ),
        (
            "src/postgres/conf.rs",
            "use super::Secret;\nuse crate::postgres::ServerSettings;",
        ),
        (
            "src/agent/run.rs",
            "use crate::{core::decide, postgres, http::{self, Server}};",
        ),
        ("src/cmd/demo.rs", "use crate::{config, demo, telemetry};"),
        ("src/lib.rs", "pub mod anything;"),
        ("src/main.rs", "use podgres::cmd;"),
    ] {
        assert_eq!(wrong_in(path, text), [""; 0], "{path}: {text:?}");
    }
}

#[test]
fn an_overlong_file_is_seen() {
    let of_lines = |lines: usize| Source {
        path: "src/dns.rs".to_owned(),
        text: "\n".repeat(lines),
    };
    assert_eq!(overlong(&of_lines(MOST_LINES)), None);
    assert!(overlong(&of_lines(MOST_LINES + 1)).is_some());
}
