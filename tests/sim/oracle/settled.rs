//! Whether all is as it should be, and what is not.

use std::fmt;

use podgres::core::lease::{Durability, SynchronousSet};

use crate::world::World;

/// What is not as it should be. Asked for twice a second and hardly ever read: the words are made when it is.
#[derive(Debug, PartialEq)]
pub(crate) enum Unsettled<'a> {
    NoPrimary,
    NoLease,
    Elsewhere { member: usize, primary: usize },
    NotRecorded { member: usize },
    Recorded { set: &'a SynchronousSet, joined: usize },
}

impl fmt::Display for Unsettled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPrimary => f.write_str("no primary"),
            Self::NoLease => f.write_str("no Lease"),
            Self::Elsewhere { member, primary } => {
                write!(f, "pg-{member} does not stream from pg-{primary}")
            }
            Self::NotRecorded { member } => write!(f, "pg-{member} is not in the recorded set as it is"),
            Self::Recorded { set, joined } => write!(f, "the recorded set is {set:?}, {joined} members"),
        }
    }
}

impl World {
    /// The member that is open for writes by right, if there is one.
    pub(crate) fn primary(&self) -> Option<usize> {
        let holder = self.api.stored.as_ref()?.record.holder.as_ref()?;
        let member = self
            .members
            .iter()
            .position(|member| member.policy.identity == *holder)?;
        let postgres = self.members[member].postgres.as_ref()?;
        (!postgres.in_recovery && postgres.is_ready && postgres.stopping.is_none()).then_some(member)
    }

    /// One primary, everybody streams from it, and the record and the setting are what they should be.
    pub(crate) fn is_settled(&self) -> Result<(), Unsettled<'_>> {
        let Some(primary) = self.primary() else {
            return Err(Unsettled::NoPrimary);
        };
        let Some(stored) = &self.api.stored else {
            return Err(Unsettled::NoLease);
        };
        let set = &stored.record.synchronous;
        for (at, member) in self
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| member.wanted)
        {
            if at == primary {
                continue;
            }
            let receiver = member
                .postgres
                .as_ref()
                .filter(|p| p.is_ready)
                .and_then(|p| p.receiver.as_ref());
            if receiver.is_none_or(|receiver| receiver.upstream != primary) {
                return Err(Unsettled::Elsewhere { member: at, primary });
            }
            let incarnation = member.data.as_ref().map(|data| &data.incarnation);
            if set.members.get(&member.policy.ordinal) != incarnation {
                return Err(Unsettled::NotRecorded { member: at });
            }
        }
        let joined = stored.record.members.len();
        let half = u32::try_from(joined / 2).unwrap_or(0);
        let others = u32::try_from(set.members.len()).unwrap_or(0);
        let wanted = match self.config.durability {
            Durability::Async => 0,
            Durability::Preferred => half.min(others),
            Durability::Majority => half,
        };
        if set.quorum != wanted || set.members.contains_key(&self.members[primary].policy.ordinal) {
            return Err(Unsettled::Recorded { set, joined });
        }
        Ok(())
    }

    /// Why it has not converged.
    pub(crate) fn unsettled(&self) -> String {
        let why = self
            .is_settled()
            .err()
            .map_or_else(|| "no commit comes through".to_owned(), |why| why.to_string());
        let members: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| member.wanted)
            .map(|(at, member)| format!("pg-{at} {:?}", member.sidecar.as_ref().map(|s| s.situation)))
            .collect();
        format!("not converged: {why}; {}", members.join(", "))
    }
}
