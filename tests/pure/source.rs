//! Reads Rust source as far as the layer test needs it: code without comments and literals, and its words.
//!
//! Knows nothing of grammar beyond that; the compiler has seen the same files.

use std::fs;
use std::path::{Path, PathBuf};

/// One source file: its path from the top of the project, with slashes, and its text.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// All Rust files below a folder of the project, in order of their paths.
pub(crate) fn files_below(folder: &str) -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources: Vec<Source> = rust_files(&top.join(folder))
        .into_iter()
        .map(|path| Source {
            text: fs::read_to_string(&path).expect("a source file can be read"),
            path: path
                .strip_prefix(top)
                .expect("below the top")
                .to_string_lossy()
                .into_owned(),
        })
        .collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a source folder can be read") {
        let path = entry.expect("a source folder can be read").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code alone: comments and the insides of string and character literals become one blank, line ends stay.
pub(crate) fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| literal(rest, &code));
        if let Some(length) = skipped {
            code.extend(rest[..length].chars().filter(|&c| c == '\n'));
            code.push(' ');
            rest = &rest[length..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

/// The length of the comment that the text begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    Some(at)
}

/// The length of the string or character literal that the text begins with, `before` being the code so far.
fn literal(text: &str, before: &str) -> Option<usize> {
    let in_a_word = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    if !in_a_word && (text.starts_with('r') || text.starts_with("br")) {
        let start = text.find('r')? + 1;
        let hashes = text[start..].bytes().take_while(|&b| b == b'#').count();
        if text[start + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let inside = start + hashes + 1;
            return Some(inside + text[inside..].find(&end)? + end.len());
        }
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    // A lifetime has no closing quote behind its first letter.
    let mut letters = text.strip_prefix('\'')?.chars();
    let escaped = letters.next()? == '\\';
    if escaped || letters.next()? == '\'' {
        return quoted(text, '\'');
    }
    None
}

fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        if letter == '\\' {
            letters.next();
        } else if letter == quote {
            return Some(at + quote.len_utf8());
        }
    }
    None
}

/// Where a word stands in code, not as a part of a longer word.
pub(crate) fn positions(code: &str, word: &str) -> Vec<usize> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .filter(|(at, _)| {
            !code[..*at].ends_with(part_of_word) && !code[at + word.len()..].starts_with(part_of_word)
        })
        .map(|(at, _)| at)
        .collect()
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = "a /* b /* c */ d */ e // f\n\"g \\\" h\" 'i' '\\'' &'j k r#\"l\"m\"# br\"n\" for_\"o\" r#p";
    let words: Vec<String> = code_of(text).split_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["a", "e", "&'j", "k", "for_", "r#p"]);
    assert_eq!(code_of("x\n/* \n */ y").lines().count(), 3);
}

#[test]
fn a_word_is_found_whole_only() {
    assert_eq!(positions("rand fastrand rand_core (rand)", "rand"), [0, 25]);
}
