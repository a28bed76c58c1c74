//! The planted bugs of `make mutants` still fit the code that they are planted in.

use std::process::Command;

#[test]
fn a_planted_bug_no_longer_applied_and_ended_the_run_of_all_others() {
    let root = env!("CARGO_MANIFEST_DIR");
    let folder = std::fs::read_dir(format!("{root}/tests/sim/mutants")).expect("the folder");
    let patches: Vec<_> = folder
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .collect();
    assert!(patches.len() >= 12, "{patches:?}");
    for patch in patches {
        let output = Command::new("git")
            .args(["apply", "--check"])
            .arg(&patch)
            .current_dir(root)
            .output()
            .expect("git");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {error}", patch.display());
    }
}
