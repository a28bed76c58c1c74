//! What a client asks of the route in its startup packet: `options='-c podgres.max_staleness=500ms'`.
//!
//! Two-part names pass through to the server unchanged, which takes them for placeholders, so nothing is cut out of
//! the packet. Source of the syntax: `process_postgres_switches` and `pg_split_opts` of PostgreSQL.

use std::time::Duration;

use super::{OnPrimaryLoss, ReadOnlyFallback, RoutePolicy};
use crate::core::units;
use crate::core::wal::Lsn;

/// How long a causal read waits for its standby unless the client says otherwise.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);
/// No client may be held longer than this.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// A session's own wishes; what is `None` is as the policy has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    pub max_staleness_ms: Option<u64>,
    pub max_lag_bytes: Option<u64>,
    pub fallback: Option<ReadOnlyFallback>,
    /// Only a server that has replayed so far may answer.
    pub min_lsn: Option<Lsn>,
    pub wait: Option<Duration>,
    /// Nothing older than what earlier sessions of the client may have read.
    pub monotonic: Option<bool>,
}

/// A setting that cannot be read. The value is the client's own, and is not repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid value for parameter \"{name}\"")]
pub struct InvalidOption {
    pub name: &'static str,
    /// What would be right.
    pub hint: &'static str,
}

impl SessionOptions {
    /// Reads the parameters of a startup packet. Where a setting is given twice, the last one counts.
    ///
    /// # Errors
    /// The first setting of podgres' that cannot be read.
    pub fn read<'a>(parameters: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Self, InvalidOption> {
        let mut read = Self::default();
        for (name, value) in parameters {
            let name = String::from_utf8_lossy(name);
            let value = String::from_utf8_lossy(value);
            if name == "options" {
                for (name, value) in settings(&value) {
                    read.set(&name, &value)?;
                }
            } else {
                read.set(&name, &value)?;
            }
        }
        Ok(read)
    }

    /// The policy with the client's wishes.
    #[must_use]
    pub fn applied_to(&self, policy: &RoutePolicy) -> RoutePolicy {
        RoutePolicy {
            max_staleness_ms: self.max_staleness_ms.unwrap_or(policy.max_staleness_ms),
            max_lag_bytes: self.max_lag_bytes.unwrap_or(policy.max_lag_bytes),
            fallback: self.fallback.unwrap_or(policy.fallback),
            on_primary_loss: self.on_primary_loss(policy),
            monotonic: self.monotonic.unwrap_or(policy.monotonic),
            own_max_lag: self.max_lag_bytes.is_some(),
            ..policy.clone()
        }
    }

    /// A bound that the client has set itself holds without a primary too: when nothing newer may exist is for others to believe.
    fn on_primary_loss(&self, policy: &RoutePolicy) -> OnPrimaryLoss {
        match (self.max_staleness_ms, policy.on_primary_loss) {
            (None, own) | (Some(_), own @ OnPrimaryLoss::Refuse) => own,
            (Some(ms), OnPrimaryLoss::Serve) => OnPrimaryLoss::ServeFor { ms },
            (Some(ms), OnPrimaryLoss::ServeFor { ms: own }) => OnPrimaryLoss::ServeFor { ms: ms.min(own) },
        }
    }

    /// How long a server that has replayed far enough is waited for.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.wait.unwrap_or(DEFAULT_WAIT).min(MAX_WAIT)
    }

    /// Whether the client has limits of its own.
    #[must_use]
    pub fn has_limits(&self) -> bool {
        self.max_staleness_ms.is_some() || self.max_lag_bytes.is_some()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), InvalidOption> {
        let invalid = |name, hint| InvalidOption { name, hint };
        let duration = |name, hint| {
            // A number alone is seconds in podgres' own settings and milliseconds in PostgreSQL's.
            let bare = value.trim_end().ends_with(|last: char| last.is_ascii_digit());
            let read = units::duration(value).ok().filter(|_| !bare);
            read.ok_or_else(|| invalid(name, hint))
        };
        match name.to_ascii_lowercase().as_str() {
            "podgres.max_staleness" => {
                let hint = "Write a duration, with its unit, e.g. 500ms or 10s.";
                self.max_staleness_ms = Some(units::milliseconds(duration("podgres.max_staleness", hint)?));
            }
            "podgres.wait" => {
                let hint = "Write a duration, with its unit, e.g. 500ms or 2s.";
                self.wait = Some(duration("podgres.wait", hint)?);
            }
            "podgres.max_lag" => {
                let size = units::bytes(value);
                let hint = "Write a size, e.g. 1MB.";
                self.max_lag_bytes = Some(size.map_err(|_| invalid("podgres.max_lag", hint))?);
            }
            "podgres.min_lsn" => {
                let hint = "Write what pg_current_wal_insert_lsn() returned, e.g. 0/3000060.";
                let lsn = value.parse();
                self.min_lsn = Some(lsn.map_err(|_| invalid("podgres.min_lsn", hint))?);
            }
            "podgres.fallback" => {
                self.fallback = Some(match value {
                    "primary" => ReadOnlyFallback::Primary,
                    "none" => ReadOnlyFallback::None,
                    _ => return Err(invalid("podgres.fallback", "Write primary or none.")),
                });
            }
            "podgres.monotonic" => {
                self.monotonic = Some(match value {
                    "on" | "true" => true,
                    "off" | "false" => false,
                    _ => return Err(invalid("podgres.monotonic", "Write on or off.")),
                });
            }
            _ => {}
        }
        Ok(())
    }
}

/// The settings among the words of `options`: `-c name=value`, `-cname=value`, `--name=value`.
fn settings(options: &str) -> Vec<(String, String)> {
    let mut words = words(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next()
        } else {
            let given = word.strip_prefix("--").or_else(|| word.strip_prefix("-c"));
            given.map(str::to_owned)
        };
        let pair = setting.as_deref().and_then(|text| text.split_once('='));
        if let Some((name, value)) = pair {
            settings.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    settings
}

/// Divides at white space; a backslash takes the next character as it is.
fn words(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = options.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().extend(letters.next()),
            space if space.is_ascii_whitespace() => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(options: &str) -> Result<SessionOptions, InvalidOption> {
        SessionOptions::read([(&b"user"[..], &b"app"[..]), (b"options", options.as_bytes())].into_iter())
    }

    #[test]
    fn settings_in_every_spelling_of_postgresql() {
        for options in [
            "-c podgres.max_staleness=500ms",
            "-cpodgres.max_staleness=500ms",
            "--podgres.max_staleness=500ms",
            "--podgres.max-staleness=500ms",
            "  -c  Podgres.Max_Staleness=500ms ",
            "-c podgres.max_staleness=1h -c work_mem=1MB -c podgres.max_staleness=500ms",
            "-c podgres.max_staleness=500\\ ms",
        ] {
            assert_eq!(
                read(options).map(|read| read.max_staleness_ms),
                Ok(Some(500)),
                "{options}"
            );
        }
        let all = "-c podgres.max_lag=1MB -c podgres.min_lsn=0/3000060 -c podgres.wait=3s -c podgres.fallback=none -c podgres.monotonic=on";
        let expected = SessionOptions {
            max_staleness_ms: None,
            max_lag_bytes: Some(1 << 20),
            fallback: Some(ReadOnlyFallback::None),
            min_lsn: Some(Lsn(0x300_0060)),
            wait: Some(Duration::from_secs(3)),
            monotonic: Some(true),
        };
        assert_eq!(read(all), Ok(expected));
        for nothing in [
            "",
            "-c",
            "-c work_mem=1MB",
            "podgres.max_staleness=1s",
            "-c podgres.max_staleness",
        ] {
            assert_eq!(read(nothing), Ok(SessionOptions::default()), "{nothing}");
        }
        let parameter = [(&b"podgres.max_lag"[..], &b"2kB"[..])];
        let given = SessionOptions::read(parameter.into_iter()).expect("valid");
        assert_eq!(given.max_lag_bytes, Some(2048));
    }

    #[test]
    fn a_bad_value_is_named() {
        for (options, name) in [
            ("-c podgres.max_staleness=soon", "podgres.max_staleness"),
            ("-c podgres.max_staleness=500", "podgres.max_staleness"),
            ("-c podgres.max_lag=-1", "podgres.max_lag"),
            ("-c podgres.min_lsn=7", "podgres.min_lsn"),
            ("-c podgres.wait=", "podgres.wait"),
            ("-c podgres.fallback=standby", "podgres.fallback"),
            ("-c podgres.monotonic=rather", "podgres.monotonic"),
        ] {
            let error = read(options).expect_err(options);
            assert_eq!(error.name, name);
            assert_eq!(
                error.to_string(),
                format!("invalid value for parameter \"{name}\"")
            );
        }
    }

    #[test]
    fn a_wish_takes_the_place_of_the_routes_own_and_nothing_else_changes() {
        let route = RoutePolicy {
            max_staleness_ms: 7_000,
            max_lag_bytes: 7,
            fallback: ReadOnlyFallback::Primary,
            on_primary_loss: OnPrimaryLoss::Serve,
            monotonic: true,
            ..RoutePolicy::new(crate::core::routing::RouteMode::ReadOnly)
        };
        let wished = |options| read(options).expect("valid").applied_to(&route);
        assert_eq!(wished(""), route);
        let of = |change: fn(&mut RoutePolicy)| {
            let mut policy = route.clone();
            change(&mut policy);
            policy
        };
        let staleness = of(|policy| {
            policy.max_staleness_ms = 500;
            policy.on_primary_loss = OnPrimaryLoss::ServeFor { ms: 500 };
        });
        assert_eq!(wished("-c podgres.max_staleness=500ms"), staleness);
        let lag = of(|policy| (policy.max_lag_bytes, policy.own_max_lag) = (2048, true));
        assert_eq!(wished("-c podgres.max_lag=2kB"), lag);
        let fallback = of(|policy| policy.fallback = ReadOnlyFallback::None);
        assert_eq!(wished("-c podgres.fallback=none"), fallback);
        let monotonic = of(|policy| policy.monotonic = false);
        assert_eq!(wished("-c podgres.monotonic=off"), monotonic);
    }

    #[test]
    fn nobody_is_held_for_ever() {
        assert_eq!(read("").expect("valid").wait(), DEFAULT_WAIT);
        assert_eq!(read("-c podgres.wait=1d").expect("valid").wait(), MAX_WAIT);
    }

    proptest! {
        #[test]
        fn any_options_are_read_or_refused(options in ".{0,300}", value in "[ -~]{0,40}") {
            let _read = read(&options);
            for name in ["max_staleness", "max_lag", "min_lsn", "wait", "fallback", "monotonic"] {
                let _read = read(&format!("-c podgres.{name}={value}"));
            }
        }
    }
}
