//! The JSON patches of overlays and components (docs/decisions/0031): a place in a list is a number, and what is there is tested before it is changed.

use std::path::{Path, PathBuf};

use super::*;

/// Each place in a list that a path goes through or ends at: the path up to each number in it.
fn places(path: &str) -> Vec<&str> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let number = |place: &&str| {
        let last = place.rsplit('/').next().unwrap_or_default();
        !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
    };
    ends.map(|end| &path[..end]).filter(number).collect()
}

/// The places that operations change without having tested what is there, or after an element before them was taken away.
fn unguarded(operations: &[Value]) -> Vec<String> {
    let mut guarded: BTreeSet<&str> = BTreeSet::new();
    let mut found = Vec::new();
    for operation in operations {
        let text = |key: &str| operation[key].as_str().unwrap_or_default();
        let (op, path, from) = (text("op"), text("path"), text("from"));
        if op == "test" {
            guarded.extend(places(path));
            continue;
        }
        let touched = [path, from].into_iter().flat_map(places);
        found.extend(
            touched
                .filter(|place| !guarded.contains(place))
                .map(str::to_owned),
        );
        // What is behind it in the list has another number now.
        let shifted = match op {
            "remove" | "add" => path,
            "move" => from,
            _ => continue,
        };
        if places(shifted).last() == Some(&shifted) {
            let list = &shifted[..=shifted.rfind('/').unwrap_or_default()];
            guarded.retain(|place| !place.starts_with(list));
        }
    }
    found
}

/// Each kustomization.yaml below a folder.
fn kustomizations(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let files = paths.flat_map(|path| {
        if path.is_dir() {
            kustomizations(&path)
        } else {
            vec![path]
        }
    });
    files
        .filter(|file| file.ends_with("kustomization.yaml"))
        .collect()
}

/// Otherwise a component that no longer fits does half, or the wrong thing, instead of failing.
#[test]
fn components_changed_places_in_lists_without_a_look_at_what_is_there() {
    let mut guarded = 0;
    for file in kustomizations(&top()) {
        let kustomization = documents(&file).remove(0);
        for patch in kustomization["patches"].as_array().into_iter().flatten() {
            let text = patch["patch"].as_str().expect("a patch");
            let operations: Value = serde_saphyr::from_str(text).expect("YAML");
            // `$patch: delete` is an object.
            let operations = operations.as_array().cloned().unwrap_or_default();
            let found = unguarded(&operations);
            assert_eq!(found, Vec::<String>::new(), "{}", file.display());
            guarded += operations
                .iter()
                .filter(|operation| operation["op"] == "test")
                .count();
        }
    }
    assert!(guarded > 20, "{guarded}");
}

#[test]
fn a_place_is_guarded_by_a_test_of_it_or_of_what_is_in_it() {
    let test = |path: &str| json!({"op": "test", "path": path, "value": "x"});
    let remove = |path: &str| json!({"op": "remove", "path": path});
    for (operations, expected) in [
        (vec![remove("/a/0")], vec!["/a/0"]),
        (vec![test("/a/0"), remove("/a/0")], vec![]),
        (vec![test("/a/0/name"), remove("/a/0/b")], vec![]),
        (vec![test("/a/1/name"), remove("/a/0/b")], vec!["/a/0"]),
        (vec![test("/a/10/name"), remove("/a/1/b")], vec!["/a/1"]),
        (vec![test("/a/0/name"), remove("/a/0/b/1")], vec!["/a/0/b/1"]),
        (vec![remove("/a/0/b"), test("/a/0/name")], vec!["/a/0"]),
        (
            vec![test("/a/0"), test("/a/1"), remove("/a/0"), remove("/a/1")],
            vec!["/a/1"],
        ),
        (
            vec![json!({"op": "move", "from": "/a/2", "path": "/b/-"})],
            vec!["/a/2"],
        ),
        (
            vec![json!({"op": "add", "path": "/a/1/ports/-", "value": 1})],
            vec!["/a/1"],
        ),
        (vec![json!({"op": "add", "path": "/a/-", "value": 1})], vec![]),
    ] {
        assert_eq!(unguarded(&operations), expected, "{operations:?}");
    }
}
