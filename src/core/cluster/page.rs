//! The page that a browser gets: what `podgres status` prints, with the history of the primary.
//!
//! Plain HTML that renews itself; loads nothing from anywhere, runs no script, changes nothing.

use std::fmt::Write as _;

use serde_json::Value;

use super::table::{COLUMNS, cell, heading};

const HISTORY_ROWS: usize = 10;
const HEAD: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"2\">
<title>podgres</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}th,td{text-align:left;padding:.25rem .9rem .25rem 0;border-bottom:1px solid #ddd}
th{font-weight:600}pre{font:inherit;margin:0}.primary{font-weight:600}.bad{color:#b00020}
@media (prefers-color-scheme:dark){body{color:#ddd;background:#181818}th,td{border-color:#444}.bad{color:#ff8a80}}
</style></head><body>
";
/// States in which a member serves.
const WELL: [&str; 2] = ["running", "streaming"];

/// The page about the value that `/cluster` gives, as the member `me` sees it.
#[must_use]
pub fn page(cluster: &Value, me: &str) -> String {
    let mut text = HEAD.to_owned();
    // Writing to a String cannot fail.
    let _never = write!(
        text,
        "<pre>{}</pre>\n<table>\n<tr>",
        escaped(heading(cluster).trim_end())
    );
    for (title, _) in COLUMNS {
        let _never = write!(text, "<th>{}</th>", title.to_lowercase());
    }
    text.push_str("</tr>\n");
    for member in cluster["members"].as_array().into_iter().flatten() {
        let primary = member["role"] == "primary";
        let well = WELL.iter().any(|state| member["state"] == *state);
        let class = match (well, primary) {
            (false, _) => "bad",
            (true, true) => "primary",
            (true, false) => "standby",
        };
        let _never = write!(text, "<tr class=\"{class}\">");
        for (_, key) in COLUMNS {
            let _never = write!(text, "<td>{}</td>", escaped(&cell(member, key)));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</table>\n");
    history(&mut text, cluster);
    let _never = write!(text, "<p>as seen by {}</p>\n</body></html>\n", escaped(me));
    text
}

/// The newest changes of the primary first.
fn history(text: &mut String, cluster: &Value) {
    const FIELDS: [&str; 4] = ["at", "term", "new_leader", "reason"];
    let Some(rows) = cluster["history"].as_array().filter(|rows| !rows.is_empty()) else {
        return;
    };
    text.push_str("<table>\n<tr>");
    for field in FIELDS {
        let _never = write!(text, "<th>{}</th>", field.replace('_', " "));
    }
    text.push_str("</tr>\n");
    for row in rows.iter().rev().take(HISTORY_ROWS) {
        text.push_str("<tr>");
        for field in FIELDS {
            let _never = write!(text, "<td>{}</td>", escaped(&cell(row, field)));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</table>\n");
}

/// The text as HTML shows it, in an element and in an attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{peer, primary, standby, view};
    use super::super::{PeerContact, json::cluster_json};
    use super::*;

    #[test]
    fn the_page_says_what_the_table_says() {
        let mut lost = peer(standby(2));
        lost.contact = PeerContact::TimedOut;
        let text = page(
            &cluster_json(&view(primary(0), vec![peer(standby(1)), lost])),
            "pg-0",
        );
        for said in [
            "cluster pg",
            "<tr class=\"primary\"><td>pg-0</td><td>primary</td>",
            "<tr class=\"standby\"><td>pg-1</td>",
            "<tr class=\"bad\"><td>pg-2</td>",
            "as seen by pg-0",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }

    #[test]
    fn nothing_that_a_member_says_becomes_a_tag() {
        let value = serde_json::json!({ "members": [{ "name": "<script>alert('1')</script>\"&" }] });
        let text = page(&value, "<b>");
        assert!(!text.contains("<script") && !text.contains("<b>"), "{text}");
        assert!(text.contains("&lt;script&gt;alert(&#39;1&#39;)"), "{text}");
    }
}
