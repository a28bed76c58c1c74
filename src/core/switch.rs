//! The read-only switch where there is no Lease to keep it: a position with a version that the members tell each other.
//!
//! Every member keeps the newest it has heard of, so that the switch outlives any of them.

use serde::{Deserialize, Serialize};

use super::lease::ReadOnlySwitch;

/// Where the switch stands. Newer is what was turned later; of two at the same time the same one wins everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SwitchPosition {
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
            version: self.version + 1,
            on,
        }
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
}
