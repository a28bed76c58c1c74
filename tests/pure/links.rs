//! Every relative link in the Markdown pages leads to a file of the project.

use std::fs;
use std::path::{Path, PathBuf};

/// The pages that people read: those at the top, and all of `docs/`.
fn pages() -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![top.to_owned(), top.join("docs")];
    let mut pages = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of pages can be read") {
            let path = entry.expect("a folder of pages can be read").path();
            if path.is_dir() && folder != top {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// The targets of `[text](target)` that name a file, without the part behind `#`.
fn targets(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|tail| tail.split(')').next())
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .filter_map(|target| target.split('#').next())
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    assert!(pages.iter().any(|page| page.ends_with("docs/operations.md")));
    let mut dead = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page can be read");
        let folder = page.parent().expect("a page lies in a folder");
        for target in targets(&text) {
            if !folder.join(target).exists() {
                dead.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

#[test]
fn targets_are_found() {
    let text = "[a](b.md) [c](https://d/e) [f](#g) ![h](i/j.png#k) (l)";
    assert_eq!(targets(text), ["b.md", "i/j.png"]);
}
