//! `synchronous_standby_names` as podgres writes it: the commit gate first, then the standbys of the synchronous set.
//!
//! Source: PostgreSQL manual, "Replication", `synchronous_standby_names`. PostgreSQL cannot say "the gate and any k",
//! and need not: a commit that the gate does not confirm needs one standby more.

use super::member::MemberName;
use super::supervision::GATE_NAME;

/// What a text of [`standby_names`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The commit gate is named.
    pub gate: bool,
    /// `application_name`s of standbys, in the order in which they are named.
    pub members: Vec<String>,
    /// How many of the members a commit waits for, besides the gate: "k".
    pub quorum: u32,
}

/// PostgreSQL's setting for a commit that waits for the gate (if `gate`) and for `quorum` of the `members`.
///
/// With a `quorum` of 0 the members are not named: `ANY 1 (gate, member)` would let a member open the gate.
/// A `quorum` beyond the number of members is written as it is; PostgreSQL takes it and acknowledges nothing. Empty
/// if there is nobody to wait for. A member must not be called `*`, which PostgreSQL takes for any name even in quotes.
#[must_use]
pub fn standby_names(gate: bool, members: &[String], quorum: u32) -> String {
    match (gate, quorum) {
        (true, 0) => ["FIRST 1 (", GATE_NAME, ")"].concat(),
        (true, _) => any(quorum.saturating_add(1), GATE_NAME, members),
        (false, 1..) if !members.is_empty() => any(quorum, "", members),
        (false, _) => String::new(),
    }
}

/// The gate's name as it is, the members' in quotes.
fn any(count: u32, gate: &str, members: &[String]) -> String {
    let length: usize = members.iter().map(|name| name.len() + 4).sum();
    let mut text = String::with_capacity(length + 32);
    text.extend(["ANY ", &count.to_string(), " (", gate]);
    for (at, name) in members.iter().enumerate() {
        if at > 0 || !gate.is_empty() {
            text.push_str(", ");
        }
        text.extend(["\"", &name.replace('"', "\"\""), "\""]);
    }
    text.push(')');
    text
}

/// Reads what [`standby_names`] wrote; `None` for every other text, e.g. the operator's own.
#[must_use]
pub fn parse(text: &str) -> Option<Names> {
    let names = parts(text)?;
    (standby_names(names.gate, &names.members, names.quorum) == text).then_some(names)
}

/// The replication slots of the standbys that `text` (of [`standby_names`]) names; none where it names none, or is not ours.
///
/// PostgreSQL's `synchronized_standby_slots` (17 and later), with which a logical consumer of a failover slot is given nothing
/// before all of them have it. Whoever may take over has what any `quorum` of them have, so that no consumer is
/// ever ahead of a new primary, which would begin after what it lacks and leave out what comes in its place.
#[must_use]
pub fn slots(text: &str) -> Vec<String> {
    let names = parse(text).unwrap_or_default();
    let members = names
        .members
        .iter()
        .filter_map(|name| MemberName::parse(name).ok());
    members.map(|member| member.slot_name()).collect()
}

/// Reads more than [`standby_names`] writes.
fn parts(text: &str) -> Option<Names> {
    if text.is_empty() {
        return Some(Names::default());
    }
    let (count, list) = text.strip_suffix(')')?.split_once('(')?;
    let count: u32 = count.split(' ').nth(1)?.parse().ok()?;
    let (gate, mut rest) = match list.strip_prefix(GATE_NAME) {
        Some(rest) => (true, rest.strip_prefix(", ").unwrap_or(rest)),
        None => (false, list),
    };
    let mut members = Vec::new();
    while !rest.is_empty() {
        let (member, after) = unquoted(rest)?;
        members.push(member);
        rest = after.strip_prefix(", ").unwrap_or(after);
    }
    let quorum = count.checked_sub(u32::from(gate))?;
    Some(Names {
        gate,
        members,
        quorum,
    })
}

/// The name in the quotes that `text` begins with, and what follows.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut name = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, after)),
        }
    }
}

/// The first minor releases (May 2025) in which a commit cannot slip past `synchronous_standby_names` just after the
/// server's start, as `server_version_num`.
const RACE_FIXED_IN: &[u32] = &[130_021, 140_018, 150_013, 160_009, 170_005];

/// A warning if this server (`server_version_num`) may acknowledge commits that nobody confirmed.
///
/// Until the checkpointer has read `synchronous_standby_names`, backends of the older minor releases take the setting
/// for empty.
#[must_use]
pub fn bypass_race(server_version_num: u32) -> Option<&'static str> {
    let major = server_version_num / 10_000;
    let fixed = match RACE_FIXED_IN.iter().find(|fixed| *fixed / 10_000 == major) {
        Some(fixed) => server_version_num >= *fixed,
        None => major >= 18,
    };
    (!fixed).then_some(
        "this minor release of PostgreSQL may acknowledge commits without waiting for synchronous_standby_names in the \
         first moments after its start; upgrade to 13.21, 14.18, 15.13, 16.9, 17.5 or later",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(members: &[&str]) -> Vec<String> {
        members.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn each_form_as_postgresql_reads_it() {
        let two = names(&["pg-1", "pg-2"]);
        for (gate, members, quorum, text) in [
            (false, &names(&[]), 0, ""),
            (false, &names(&[]), 1, ""),
            (false, &two, 0, ""),
            (true, &names(&[]), 0, "FIRST 1 (podgres_gate)"),
            (true, &two, 0, "FIRST 1 (podgres_gate)"),
            (true, &names(&[]), 1, "ANY 2 (podgres_gate)"),
            (true, &two, 1, "ANY 2 (podgres_gate, \"pg-1\", \"pg-2\")"),
            (false, &two, 2, "ANY 2 (\"pg-1\", \"pg-2\")"),
            (false, &names(&["a\"b"]), 1, "ANY 1 (\"a\"\"b\")"),
        ] {
            assert_eq!(standby_names(gate, members, quorum), text);
        }
    }

    #[test]
    fn other_texts_are_not_ours() {
        for text in [
            "*",
            "pg-1",
            "FIRST 1 (\"pg-1\")",
            "FIRST 2 (podgres_gate)",
            "ANY 1 (podgres_gate)",
            "ANY 1 (podgres_gate, \"pg-1\")",
            "ANY 0 (\"pg-1\")",
            "ANY 02 (podgres_gate, \"pg-1\")",
            "ANY 2 (podgres_gate, pg1)",
            "ANY 2 (podgres_gate,\"pg-1\")",
            "ANY 2 (podgres_gate, \"pg-1\"",
            "ANY 2 (podgres_gate, \"pg-1\", )",
            "ANY 2 (podgres_gate\"pg-1\")",
            "any 2 (podgres_gate, \"pg-1\")",
            "ANY 1 (\"pg-1\"\"pg-2)",
            " ",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_slots_of_those_who_are_waited_for() {
        let two = names(&["my-pg-1", "my-pg-2"]);
        let slots_of = |quorum| slots(&standby_names(true, &two, quorum));
        assert_eq!(slots_of(1), names(&["podgres_my_pg_1", "podgres_my_pg_2"]));
        assert_eq!(slots_of(0), names(&[]));
        assert_eq!(slots("FIRST 1 (\"my-pg-1\")"), names(&[]), "not our own text");
    }

    #[test]
    fn minor_releases_with_the_race() {
        for affected in [130_020, 140_017, 150_012, 160_000, 160_008, 170_004, 120_022] {
            assert!(bypass_race(affected).is_some(), "{affected}");
        }
        for sound in [
            130_021, 140_018, 150_013, 150_018, 160_009, 170_005, 180_000, 190_001,
        ] {
            assert_eq!(bypass_race(sound), None, "{sound}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(
            gate: bool,
            members in proptest::collection::vec("[a-z\", ()\\-é]{0,8}", 0..4),
            quorum in 0_u32..5,
        ) {
            let text = standby_names(gate, &members, quorum);
            let read = parse(&text).expect("our own text");
            let named = quorum > 0 && (gate || !members.is_empty());
            let expected = Names {
                gate,
                members: if named { members } else { Vec::new() },
                quorum: if named { quorum } else { 0 },
            };
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn no_text_is_taken_for_what_it_is_not(text in "(ANY|FIRST) [0-9]{1,2} \\((podgres_gate)?[a-z\", ]{0,12}\\)") {
            if let Some(names) = parse(&text) {
                prop_assert_eq!(standby_names(names.gate, &names.members, names.quorum), text);
            }
        }
    }
}
