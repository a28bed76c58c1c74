//! The read-only switch: a position with a version that the members tell each other.
//!
//! Without a Lease every member keeps the newest it has heard of, so that the switch outlives any of them. With one the Lease
//! keeps it, and what the others tell is for a member that cannot read it just now.

use serde::{Deserialize, Serialize};

use super::lease::ReadOnlySwitch;

/// Where the switch stands. Newer is what was turned later; of two at the same time the same one wins everywhere.
///
/// The order of the fields is the order of the positions: a Lease that was made anew counts its turns from 0, in a later term.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SwitchPosition {
    /// Of the Lease that says so; 0 without one.
    #[serde(default)]
    pub term: u64,
    /// Counts the turns.
    pub version: u64,
    /// Who has switched to read-only, when and why; `None`: off.
    pub on: Option<ReadOnlySwitch>,
}

impl SwitchPosition {
    /// The position after this one.
    #[must_use]
    pub fn turned(&self, on: Option<ReadOnlySwitch>) -> Self {
        Self {
            term: self.term,
            version: self.version.saturating_add(1),
            on,
        }
    }

    /// Where a member takes the switch to stand that has read `recorded` in the Lease, and has heard of `told`.
    ///
    /// Every write to the Lease replaces the one before it, so that of two records the later has the higher term, or as many turns
    /// or more in the same one. A member that cannot read it follows the others, and their word counts only where
    /// it is of a later turn: of the same one its own record does not need to be told.
    #[must_use]
    pub fn followed(recorded: Option<Self>, told: Self) -> Self {
        match recorded {
            Some(own) if told.turn() <= own.turn() => own,
            Some(_) | None => told,
        }
    }

    /// What tells a later position from an earlier one.
    #[must_use]
    pub fn turn(&self) -> (u64, u64) {
        (self.term, self.version)
    }

    /// The newest of what is known.
    #[must_use]
    pub fn newest<'a>(positions: impl Iterator<Item = &'a Self>) -> Option<&'a Self> {
        positions.max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(name: &str) -> ReadOnlySwitch {
        ReadOnlySwitch {
            by: name.to_owned(),
            at: String::new(),
            reason: String::new(),
        }
    }

    #[test]
    fn the_last_turn_wins_and_two_at_once_end_alike() {
        let start = SwitchPosition::default();
        let on = start.turned(Some(by("alice")));
        let off = on.turned(None);
        assert_eq!(
            SwitchPosition::newest([&off, &start, &on].into_iter()),
            Some(&off)
        );
        let rival = start.turned(Some(by("bob")));
        let one_way = SwitchPosition::newest([&on, &rival].into_iter());
        assert_eq!(one_way, SwitchPosition::newest([&rival, &on].into_iter()));
        assert_eq!(SwitchPosition::newest(std::iter::empty()), None);
    }

    /// A member that the API server did not answer went on with what it had read last.
    #[test]
    fn a_later_turn_that_others_know_of_was_not_followed() {
        let at = |term, version, on: Option<&str>| SwitchPosition {
            term,
            version,
            on: on.map(by),
        };
        let own = || at(4, 7, Some("own"));
        for (what, told, follows_told) in [
            ("nobody has told anything", SwitchPosition::default(), false),
            ("an earlier turn", at(4, 6, None), false),
            ("the same turn: one by hand in the Lease", at(4, 7, None), false),
            ("a later turn", at(4, 8, None), true),
            ("a later turn, and a later term", at(5, 8, None), true),
            ("a failover since, and no turn", at(5, 7, Some("own")), true),
            ("more turns of a Lease that is gone", at(3, 99, None), false),
            ("a Lease that was made anew", at(6, 0, None), true),
            ("kept from when there was no Lease", at(0, 99, None), false),
        ] {
            let expected = if follows_told { told.clone() } else { own() };
            assert_eq!(SwitchPosition::followed(Some(own()), told), expected, "{what}");
        }
        let told = at(0, 3, Some("alice"));
        assert_eq!(
            SwitchPosition::followed(None, told.clone()),
            told,
            "without a Lease"
        );
    }
}
