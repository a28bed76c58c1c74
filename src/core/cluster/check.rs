//! What a probe asks: the check that its path names, and the conditions in its query.
//!
//! Paths and parameters are Patroni's (its REST API page); a parameter that cannot be read fails the check.

use super::LagMode;
use crate::core::units;

/// One question about this member, answered with 200 or 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Startup,
    Liveness,
    Readiness,
    Primary,
    Leader,
    /// Patroni's name for the first member of a standby cluster; podgres has none.
    StandbyLeader,
    Replica,
    ReadOnly,
    Synchronous,
    ReadOnlySynchronous,
    Quorum,
    ReadOnlyQuorum,
    Asynchronous,
    Health,
}

/// Every path with its check, for the router and for whoever lists them.
pub const CHECK_PATHS: &[(&str, Check)] = &[
    ("/startup", Check::Startup),
    ("/liveness", Check::Liveness),
    ("/readiness", Check::Readiness),
    ("/", Check::Primary),
    ("/primary", Check::Primary),
    ("/master", Check::Primary),
    ("/read-write", Check::Primary),
    ("/leader", Check::Leader),
    ("/standby-leader", Check::StandbyLeader),
    ("/standby_leader", Check::StandbyLeader),
    ("/replica", Check::Replica),
    ("/read-only", Check::ReadOnly),
    ("/synchronous", Check::Synchronous),
    ("/sync", Check::Synchronous),
    ("/read-only-synchronous", Check::ReadOnlySynchronous),
    ("/read-only-sync", Check::ReadOnlySynchronous),
    ("/quorum", Check::Quorum),
    ("/read-only-quorum", Check::ReadOnlyQuorum),
    ("/asynchronous", Check::Asynchronous),
    ("/async", Check::Asynchronous),
    ("/health", Check::Health),
];

impl Check {
    /// Its first path without the slash.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Primary => "primary",
            Self::Leader => "leader",
            Self::StandbyLeader => "standby-leader",
            Self::Replica => "replica",
            Self::ReadOnly => "read-only",
            Self::Synchronous => "synchronous",
            Self::ReadOnlySynchronous => "read-only-synchronous",
            Self::Quorum => "quorum",
            Self::ReadOnlyQuorum => "read-only-quorum",
            Self::Asynchronous => "asynchronous",
            Self::Health => "health",
        }
    }
}

/// The conditions of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckQuery {
    /// `lag`: at most this many bytes behind.
    pub lag_bytes: Option<u64>,
    /// `mode`, for `/readiness`.
    pub mode: LagMode,
    /// `replication_state`: the standby's must be this.
    pub replication_state: Option<String>,
    /// `tag_NAME=VALUE`: the member must have all of them.
    pub tags: Vec<(String, String)>,
    /// Why a parameter could not be read.
    pub invalid: Option<String>,
}

impl CheckQuery {
    /// Reads decoded pairs of a query; unknown names are left alone, as Patroni leaves them.
    #[must_use]
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut query = Self::default();
        for (name, value) in pairs {
            match name {
                // Patroni takes the units in any case.
                "lag" => match units::bytes(&value.to_ascii_uppercase()) {
                    Ok(bytes) => query.lag_bytes = Some(bytes),
                    Err(_) => query.invalid = Some(unreadable(name, value, "a size such as 16MB")),
                },
                "mode" => match value {
                    "apply" => query.mode = LagMode::Apply,
                    "write" => query.mode = LagMode::Write,
                    _ => query.invalid = Some(unreadable(name, value, "apply or write")),
                },
                "replication_state" => query.replication_state = Some(value.to_owned()),
                _ => query.tags.extend(
                    name.strip_prefix("tag_")
                        .map(|tag| (tag.to_owned(), value.to_owned())),
                ),
            }
        }
        query
    }
}

fn unreadable(name: &str, value: &str, right: &str) -> String {
    let shown: String = value.chars().take(40).collect();
    format!("invalid value for parameter \"{name}\": \"{shown}\", expected {right}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_patroni_reads_them() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1048576", Some(1 << 20)),
            ("16MB", Some(16 << 20)),
            ("1kB", Some(1024)),
            ("1 KB", Some(1024)),
            ("10b", Some(10)),
            ("2GB", Some(2 << 30)),
            ("1TB", Some(1 << 40)),
            ("", None),
            ("MB", None),
            ("-1", None),
            ("1.5MB", None),
            ("16M", None),
            ("99999999999999999999", None),
            ("99999999TB", None),
        ] {
            let query = CheckQuery::from_pairs([("lag", text)]);
            assert_eq!(query.lag_bytes, bytes, "{text:?}");
            assert_eq!(query.invalid.is_some(), bytes.is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_query_is_read_and_what_cannot_be_read_is_kept_as_the_reason() {
        let query = CheckQuery::from_pairs([("lag", "1kB"), ("mode", "write"), ("x", "y")]);
        assert_eq!(
            (query.lag_bytes, query.mode, query.invalid),
            (Some(1024), LagMode::Write, None)
        );
        for (name, value) in [("lag", "much"), ("mode", "flush")] {
            let invalid = CheckQuery::from_pairs([(name, value)]).invalid.expect(value);
            assert!(invalid.contains(name) && invalid.contains(value), "{invalid}");
        }
        let query = CheckQuery::from_pairs([("tag_clonefrom", "true"), ("tag_zone", "a")]);
        let tags =
            [("clonefrom", "true"), ("zone", "a")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(query.tags, tags);
    }

    #[test]
    fn every_check_has_a_path_of_its_own_name() {
        for (_, check) in CHECK_PATHS {
            let own = format!("/{}", check.as_str());
            assert!(CHECK_PATHS.contains(&(own.as_str(), *check)), "{own}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_query_is_read_or_refused_with_a_short_reason(
            pairs in proptest::collection::vec(("lag|mode|replication_state|tag_x|.{0,9}", "[0-9]{0,25} ?[kmgtKMGTbB]{0,3}|.{0,60}"), 0..6),
        ) {
            let query = CheckQuery::from_pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            proptest::prop_assert!(query.invalid.is_none_or(|reason| reason.chars().count() < 120));
        }

        #[test]
        fn any_size_that_can_be_written_is_read_back(size: u32, unit in 0..5usize) {
            let (name, shift) = [("B", 0), ("kB", 10), ("MB", 20), ("GB", 30), ("TB", 40)][unit];
            let bytes = u64::from(size).checked_mul(1 << shift);
            let text = format!("{size}{name}");
            proptest::prop_assert_eq!(CheckQuery::from_pairs([("lag", text.as_str())]).lag_bytes, bytes);
        }
    }
}
