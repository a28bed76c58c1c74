//! What a member under a Lease decided comes out the same when it is decided again.

use serde_json::Value;

use crate::harness::{Demo, Start, member, members, podgres};
use crate::kit::answer;

/// The decisions that a member shows, and what `podgres replay` says of each.
fn replayed(demo: &Demo, ordinal: u32) -> Vec<(Value, Value)> {
    let (_, recorded) = demo.get(ordinal, "/debug/decisions").expect("an answer");
    let folder = crate::kit::open_folder();
    let file = folder.path().join("decisions.json");
    std::fs::write(&file, &recorded).expect("write");
    let output = podgres().arg("replay").arg(&file).output().expect("replay");
    let text = answer(&output);
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let entries: Vec<Value> = serde_json::from_str(&recorded).expect("JSON");
    let pairs: Vec<(Value, Value)> = entries.into_iter().zip(lines).collect();
    assert!(pairs.len() > 2, "{text}");
    pairs
}

/// A takeover and a planned move: claims, promises, a hand-over, and who merely follows.
#[test]
fn replay_decides_what_was_decided_under_a_lease() {
    let demo = Start::lease(16).run();
    demo.wait("a quorum", |status| {
        status["synchronous"]["quorum"].as_u64() > Some(0)
    });
    let first = demo.wait_streaming(2);
    let holder = first["lease_holder"].as_str().expect("a holder").to_owned();
    let ordinal = holder.rsplit('-').next().expect("an ordinal");
    demo.ask(&["delete-pod", ordinal, "--force"]);
    demo.wait("a takeover", |status| {
        status["term"].as_u64() > first["term"].as_u64()
    });
    demo.wait_streaming(2);
    // Back to where it was, so that every member has been through something.
    demo.wait("a successor that may be named", |status| {
        member(status, &holder)["sync"] == true
    });
    demo.done(&["switchover", "--to", &holder]);
    let status = demo.wait_streaming(2);
    let mut purposes = Vec::new();
    let mut actions = Vec::new();
    for one in members(&status) {
        let number = u32::try_from(one["ordinal"].as_u64().expect("an ordinal")).expect("an ordinal");
        for (entry, again) in replayed(&demo, number) {
            assert_eq!(again["same_as_recorded"], true, "{}: {entry:#}", one["name"]);
            assert_eq!(again["decision"], entry["decision"], "{}", one["name"]);
            let decision = &again["decision"];
            purposes.extend(decision["lease"]["purpose"].as_str().map(str::to_owned));
            actions.extend(decision["postgres"]["action"].as_str().map(str::to_owned));
        }
    }
    for purpose in ["claim", "hand_over", "record"] {
        assert!(
            purposes.iter().any(|found| found == purpose),
            "{purpose}: {purposes:?}"
        );
    }
    for action in ["detach", "promote", "reload", "stop", "start"] {
        assert!(
            actions.iter().any(|found| found == action),
            "{action}: {actions:?}"
        );
    }
    // What is decided depends on what was observed: without the record nobody takes the Lease.
    let claim = (0..3).flat_map(|number| replayed(&demo, number));
    let mut claims = claim.filter(|(entry, _)| entry["decision"]["lease"]["purpose"] == "claim");
    let (mut entry, _) = claims.next().expect("a claim");
    entry["observation"]["lease"]["stored"] = Value::Null;
    let folder = crate::kit::open_folder();
    let file = folder.path().join("altered.json");
    std::fs::write(&file, entry.to_string()).expect("write");
    let line = answer(&podgres().arg("replay").arg(&file).output().expect("replay"));
    assert!(line.contains("\"same_as_recorded\":false"), "{line}");
}
