//! Which tests the words of a command line mean.

/// A word that is a group's name means this group, any other one the tests whose names contain it; no word means all.
pub(crate) fn selects(words: &[String], groups: &[&str], (group, test): (&str, &str)) -> bool {
    let means = |word: &String| {
        if groups.contains(&word.as_str()) {
            word == group
        } else {
            test.contains(word.as_str())
        }
    };
    words.is_empty() || words.iter().any(means)
}
