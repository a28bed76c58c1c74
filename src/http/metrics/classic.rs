//! The metrics page for scrapers that do not know `OpenMetrics`: Prometheus' text format 0.0.4, made from the other page.
//!
//! Differences that matter: a counter's family is named as its samples (`…_total`), an info's is a gauge `…_info`, states are gauges,
//! "unknown" is "untyped"; there is neither a unit nor an end mark.

use std::fmt::Write as _;

/// The content type of the page.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN: &str = "application/openmetrics-text";

/// Whether a client that says this in `Accept` takes `OpenMetrics`; who does not say so gets what everybody reads.
#[must_use]
pub(super) fn takes_openmetrics(accept: Option<&str>) -> bool {
    let ranges = accept.unwrap_or_default().split(',');
    ranges
        .map(weight)
        .any(|(kind, weight)| kind.eq_ignore_ascii_case(OPEN) && weight > 0.0)
}

/// A media range and its weight (RFC 9110, 12.5.1).
fn weight(range: &str) -> (&str, f32) {
    let mut parts = range.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    let weight = parts
        .find_map(|part| part.strip_prefix("q="))
        .map_or(Some(1.0), |text| text.parse().ok());
    (kind, weight.unwrap_or(0.0))
}

/// An `OpenMetrics` page in the older format.
#[must_use]
pub(super) fn from_openmetrics(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    // HELP comes before TYPE there or behind it: both are written when the family's kind is known.
    let mut family = Family::default();
    for line in page.lines() {
        match line
            .strip_prefix("# ")
            .map(|rest| rest.splitn(3, ' ').collect::<Vec<_>>())
            .as_deref()
        {
            Some(["HELP", name, help]) => family.of(name, &mut text).help = Some(help),
            Some(["TYPE", name, kind]) => family.of(name, &mut text).kind = kind,
            Some(["UNIT", ..] | ["EOF"]) => {}
            _ => {
                family.write(&mut text);
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    family.write(&mut text);
    text
}

/// What was said of a family before its first sample.
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    help: Option<&'a str>,
    kind: &'a str,
}

impl<'a> Family<'a> {
    fn of(&mut self, name: &'a str, text: &mut String) -> &mut Self {
        if self.name != name {
            self.write(text);
            self.name = name;
        }
        self
    }

    fn write(&mut self, text: &mut String) {
        let Self { name, help, kind } = std::mem::take(self);
        if name.is_empty() {
            return;
        }
        let (end, kind) = match kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            "stateset" => ("", "gauge"),
            "" | "unknown" => ("", "untyped"),
            kind => ("", kind),
        };
        // Writing to a String cannot fail.
        if let Some(help) = help {
            let _never = writeln!(text, "# HELP {name}{end} {help}");
        }
        let _never = writeln!(text, "# TYPE {name}{end} {kind}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_rewritten_family_by_family() {
        let page = "# HELP podgres_clones Clones made.\n# TYPE podgres_clones counter\npodgres_clones_total{reason=\"new\"} 2\n\
            # HELP podgres_build What runs.\n# TYPE podgres_build info\npodgres_build_info{version=\"1\"} 1\n\
            # HELP podgres_lag_bytes Lag.\n# TYPE podgres_lag_bytes gauge\n# UNIT podgres_lag_bytes bytes\npodgres_lag_bytes 7\n\
            # TYPE podgres_odd unknown\npodgres_odd 1\n# EOF\n";
        let expected = "# HELP podgres_clones_total Clones made.\n# TYPE podgres_clones_total counter\n\
            podgres_clones_total{reason=\"new\"} 2\n\
            # HELP podgres_build_info What runs.\n# TYPE podgres_build_info gauge\npodgres_build_info{version=\"1\"} 1\n\
            # HELP podgres_lag_bytes Lag.\n# TYPE podgres_lag_bytes gauge\npodgres_lag_bytes 7\n\
            # TYPE podgres_odd untyped\npodgres_odd 1\n";
        assert_eq!(from_openmetrics(page), expected);
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        for (accept, takes) in [
            (None, false),
            (Some("*/*"), false),
            (Some("text/plain;version=0.0.4;q=1,*/*;q=0.1"), false),
            (
                Some(
                    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ),
                true,
            ),
            (Some("application/openmetrics-text; q=0, text/plain"), false),
            (Some("Application/OpenMetrics-Text"), true),
        ] {
            assert_eq!(takes_openmetrics(accept), takes, "{accept:?}");
        }
    }
}
