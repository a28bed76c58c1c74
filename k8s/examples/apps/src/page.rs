//! The todo page, as text.

/// An item as people see it.
pub(crate) struct Item {
    pub(crate) id: i64,
    pub(crate) text: String,
}

/// The list, the form, and why the form is closed if it is.
pub(crate) fn page(items: &[Item], closed: Option<&str>) -> String {
    let banner = closed.map_or_else(String::new, |reason| {
        format!(
            "<p class=\"banner\">Read-only for the moment: {}</p>",
            escaped(reason)
        )
    });
    let rows: Vec<String> = items
        .iter()
        .map(|item| format!("<li value=\"{}\">{}</li>", item.id, escaped(&item.text)))
        .collect();
    let rows = rows.concat();
    let disabled = if closed.is_some() { " disabled" } else { "" };
    format!(
        "<!doctype html><meta charset=\"utf-8\"><title>To do</title>\
         <style>body{{font:1rem sans-serif;max-width:40rem;margin:2rem auto}}.banner{{background:#fd6;padding:.5rem}}</style>\
         <h1>To do</h1>{banner}<ol>{rows}</ol>\
         <form method=\"post\" action=\"/\"><fieldset{disabled}>\
         <input name=\"text\" required maxlength=\"200\" autofocus> <button>Add</button></fieldset></form>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_and_not_run() {
        let item = Item {
            id: 7,
            text: "<script>&\"".to_owned(),
        };
        let open = page(&[item], None);
        assert!(
            open.contains("<li value=\"7\">&lt;script&gt;&amp;&quot;</li>"),
            "{open}"
        );
        assert!(
            !open.contains("banner\">") && !open.contains("<fieldset disabled>"),
            "{open}"
        );
        let closed = page(&[], Some("a < b"));
        assert!(
            closed.contains("moment: a &lt; b</p>") && closed.contains("<fieldset disabled>"),
            "{closed}"
        );
    }
}
