//! Which tests of `tests/kubernetes` words mean.

#[path = "../support/selection.rs"]
mod shared;

use shared::selects;

#[test]
fn a_groups_name_was_found_in_other_groups_tests() {
    let chosen = |words: &[&str], group: &str, test: &str| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        selects(&words, &["lease", "backup", "bucket", "faults"], (group, test))
    };
    let api_down = "the_api_server_is_down_for_twice_the_leases_duration_and_writing_goes_on";
    assert!(!chosen(&["lease", "backup"], "faults", api_down));
    assert!(!chosen(
        &["backup"],
        "bucket",
        "a_run_leaves_a_backup_in_the_bucket"
    ));
    assert!(chosen(&["lease", "faults"], "faults", api_down));
    assert!(chosen(&["api_server"], "faults", api_down));
    assert!(chosen(&[], "faults", api_down));
}
