//! Who a pod is: the ordinal and the cluster, both read from the pod's own name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A pod's number in its StatefulSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ordinal(pub u32);

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// `<cluster>-<ordinal>`: the name that a StatefulSet gives its pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberName {
    pub cluster: String,
    pub ordinal: Ordinal,
}

/// Why a pod name does not tell who the pod is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod name \"{name}\" does not end in a dash and an ordinal")]
pub struct InvalidMemberName {
    pub name: String,
}

impl MemberName {
    /// Reads a pod name: everything before the last dash is the cluster, the digits behind it the ordinal.
    ///
    /// # Errors
    /// A name that a StatefulSet cannot have given: no dash, no or too many digits, a sign, a
    /// leading zero, or an empty cluster. Never a guess.
    pub fn parse(name: &str) -> Result<Self, InvalidMemberName> {
        let invalid = || InvalidMemberName {
            name: name.to_owned(),
        };
        let (cluster, digits) = name.rsplit_once('-').ok_or_else(invalid)?;
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let leading_zero = digits.len() > 1 && digits.starts_with('0');
        let dns_label = cluster
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
        if !plain || leading_zero || cluster.is_empty() || !dns_label || cluster.starts_with('-') {
            return Err(invalid());
        }
        Ok(Self {
            cluster: cluster.to_owned(),
            ordinal: Ordinal(digits.parse().map_err(|_| invalid())?),
        })
    }

    /// The replication slot that belongs to this member: `podgres_<cluster>_<ordinal>` in the letters
    /// that a slot name may have (lower case, digits, underscore), shortened from the left to 63.
    #[must_use]
    pub fn slot_name(&self) -> String {
        slot_name(&self.cluster, self.ordinal)
    }
}

/// The prefix of every replication slot that podgres owns; others are left alone.
pub const SLOT_PREFIX: &str = "podgres_";

/// See [`MemberName::slot_name`].
#[must_use]
pub fn slot_name(cluster: &str, ordinal: Ordinal) -> String {
    let letters: String = cluster
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .collect();
    let tail = format!("_{ordinal}");
    let room = 63 - SLOT_PREFIX.len() - tail.len();
    let kept = &letters[letters.len().saturating_sub(room)..];
    format!("{SLOT_PREFIX}{kept}{tail}")
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.cluster, self.ordinal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_01_names_with_dashes_and_digits() {
        for (name, cluster, ordinal) in [
            ("pg-0", "pg", 0),
            ("my-db-2-10", "my-db-2", 10),
            ("a1-4294967295", "a1", u32::MAX),
        ] {
            let parsed = MemberName::parse(name).expect(name);
            assert_eq!((parsed.cluster.as_str(), parsed.ordinal.0), (cluster, ordinal));
            assert_eq!(parsed.to_string(), name);
        }
    }

    #[test]
    fn row_01_unparsable_names_are_never_guessed() {
        for name in [
            "",
            "pg",
            "pg-",
            "-0",
            "pg-01",
            "pg-x",
            "pg-1x",
            "pg-+1",
            "pg--",
            "0",
            "pg-4294967296",
            "Pg-0",
            "p g-0",
        ] {
            assert!(MemberName::parse(name).is_err(), "{name:?} was taken");
        }
    }

    #[test]
    fn a_slot_name_has_at_most_63_of_the_allowed_letters() {
        let long = "a.b-".repeat(40);
        let name = slot_name(&long, Ordinal(u32::MAX));
        assert_eq!(name.len(), 63);
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        );
        assert_eq!(slot_name("my-db", Ordinal(1)), "podgres_my_db_1");
    }
}
