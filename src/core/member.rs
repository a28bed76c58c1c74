//! Who a pod is: the ordinal and the cluster, both read from the pod's own name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A pod's number in its StatefulSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ordinal(pub u32);

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Ordinal {
    /// The number as it is written in a name: no sign, no leading zero.
    #[must_use]
    pub fn read(digits: &str) -> Option<Self> {
        let plain = digits == "0" || !digits.starts_with(['0', '+']);
        digits.parse().ok().filter(|_| plain).map(Self)
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
        let dns_label = cluster
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
        if cluster.is_empty() || !dns_label || cluster.starts_with('-') {
            return Err(invalid());
        }
        Ok(Self {
            cluster: cluster.to_owned(),
            ordinal: Ordinal::read(digits).ok_or_else(invalid)?,
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

/// PostgreSQL takes no longer one (`NAMEDATALEN`).
const SLOT_NAME_LIMIT: usize = 63;

/// See [`MemberName::slot_name`].
#[must_use]
pub fn slot_name(cluster: &str, ordinal: Ordinal) -> String {
    let tail = ordinal.0.to_string();
    let mut name = String::with_capacity(SLOT_NAME_LIMIT);
    name.push_str(SLOT_PREFIX);
    name.extend(slot_letters(cluster, &tail));
    name.push('_');
    name.push_str(&tail);
    name
}

/// The member of `cluster` whose [`slot_name`] this is.
#[must_use]
pub fn slot_owner(cluster: &str, slot_name: &str) -> Option<Ordinal> {
    let (letters, tail) = slot_name.strip_prefix(SLOT_PREFIX)?.rsplit_once('_')?;
    let ordinal = Ordinal::read(tail)?;
    let letters = letters.bytes().map(char::from);
    slot_letters(cluster, tail).eq(letters).then_some(ordinal)
}

/// As much of the cluster's name as there is room for beside the ordinal; it is one byte a character.
fn slot_letters(cluster: &str, tail: &str) -> impl Iterator<Item = char> {
    let room = SLOT_NAME_LIMIT - SLOT_PREFIX.len() - 1 - tail.len();
    let surplus = cluster.len().saturating_sub(room);
    cluster.bytes().skip(surplus).map(|byte| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte.to_ascii_lowercase())
        } else {
            '_'
        }
    })
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.cluster, self.ordinal)
    }
}

/// Where the members of one cluster are found in DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The StatefulSet's name.
    pub cluster: String,
    /// The headless Service that governs the StatefulSet.
    pub service: String,
    pub namespace: String,
    /// `cluster.local` unless the Kubernetes cluster was set up otherwise; no dot at either end.
    pub cluster_domain: String,
    /// `.spec.ordinals.start` of the StatefulSet.
    pub first_ordinal: Ordinal,
}

impl Topology {
    /// The pod's name: `<cluster>-<ordinal>`.
    #[must_use]
    pub fn pod_name(&self, ordinal: Ordinal) -> String {
        format!("{}-{ordinal}", self.cluster)
    }

    /// The pod's full name in DNS, without the trailing dot: `<pod>.<service>.<namespace>.svc.<domain>`.
    #[must_use]
    pub fn pod_host(&self, ordinal: Ordinal) -> String {
        format!("{}.{}", self.pod_name(ordinal), self.service_host())
    }

    /// The Service's full name in DNS, without the trailing dot.
    #[must_use]
    pub fn service_host(&self) -> String {
        format!("{}.{}.svc.{}", self.service, self.namespace, self.cluster_domain)
    }

    /// Which member a name in DNS stands for; `None` if it is not a pod of this cluster.
    ///
    /// Upper case and a trailing dot do not matter.
    #[must_use]
    pub fn ordinal_of_host(&self, host: &str) -> Option<Ordinal> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let pod = host
            .strip_suffix(&self.service_host().to_ascii_lowercase())?
            .strip_suffix('.')?;
        let member = MemberName::parse(pod).ok()?;
        (member.cluster == self.cluster).then_some(member.ordinal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_72_hosts_are_built_and_read_with_any_namespace_domain_and_first_ordinal() {
        let topology = Topology {
            cluster: "my-db-2".to_owned(),
            service: "db-headless".to_owned(),
            namespace: "prod".to_owned(),
            cluster_domain: "k8s.example".to_owned(),
            first_ordinal: Ordinal(5),
        };
        let host = topology.pod_host(Ordinal(5));
        assert_eq!(host, "my-db-2-5.db-headless.prod.svc.k8s.example");
        assert_eq!(topology.ordinal_of_host(&host), Some(Ordinal(5)));
        let shouted = host.to_ascii_uppercase() + ".";
        assert_eq!(topology.ordinal_of_host(&shouted), Some(Ordinal(5)));
        for other in [
            "my-db-5.db-headless.prod.svc.k8s.example",
            "my-db-2-5.db-headless.test.svc.k8s.example",
            "my-db-2-5db-headless.prod.svc.k8s.example",
            "db-headless.prod.svc.k8s.example",
            "",
        ] {
            assert_eq!(topology.ordinal_of_host(other), None, "{other:?}");
        }
    }

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

    #[test]
    fn the_owner_of_a_slot_is_whom_it_is_named_after() {
        let long = "a.b-".repeat(40);
        for cluster in ["my-db", "my-db-1", &long, &long[..53], &long[..54]] {
            for ordinal in [0, 1, 9, 10, 100, u32::MAX].map(Ordinal) {
                let name = slot_name(cluster, ordinal);
                assert_eq!(slot_owner(cluster, &name), Some(ordinal), "{cluster} {name}");
                assert_eq!(slot_owner("other", &name), None, "{name}");
            }
        }
        for name in [
            "podgres_my_db_",
            "podgres_my_db_01",
            "podgres_my_db_+1",
            "podgres_my_db_1_",
            "my_db_1",
            "podgres_my_db",
        ] {
            assert_eq!(slot_owner("my-db", name), None, "{name}");
        }
    }
}
