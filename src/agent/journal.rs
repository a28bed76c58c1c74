//! The last decisions with their observations: a log line on change, and the text that `replay` reads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::core::decision::{Decision, Memory, PostgresAction};
use crate::core::observation::Observation;
use crate::core::policy::Policy;
use crate::core::situation::{Outlook, Situation};

/// Decisions kept: some minutes of a troubled member, days of a quiet one.
const KEPT: usize = 32;

/// One turn that differed from the one before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub policy: Policy,
    pub memory: Memory,
    pub observation: Observation,
    pub decision: Decision,
}

/// Shared with the HTTP room, which shows it at `/debug/decisions`.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<VecDeque<Entry>>>);

impl Journal {
    /// The kept decisions, oldest first, as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_value(&*entries).unwrap_or_default()
    }

    fn keep(&self, entry: Entry) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(entry);
    }
}

/// Notices what is new.
pub(super) struct Recorder {
    journal: Journal,
    last: Option<(Situation, String)>,
    /// When a clone's progress was last told.
    told_at_ms: u64,
}

/// How often the log tells how far a clone is.
const PROGRESS_PERIOD_MS: u64 = 5_000;

impl Recorder {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            last: None,
            told_at_ms: 0,
        }
    }

    /// Keeps and logs a decision that says or does something new.
    pub(super) fn record(
        &mut self,
        policy: &Policy,
        memory: &Memory,
        observation: &Observation,
        decision: &Decision,
    ) {
        let known = self.last.as_ref();
        let same_situation = known.is_some_and(|(situation, _)| *situation == decision.situation);
        let same_detail = known.is_some_and(|(_, detail)| *detail == decision.detail);
        let progress = matches!(decision.situation, Situation::Cloning);
        let acts = matters(decision);
        if !same_situation || (!same_detail && !progress) || acts {
            self.journal.keep(Entry {
                policy: policy.clone(),
                memory: memory.clone(),
                observation: observation.clone(),
                decision: decision.clone(),
            });
        }
        let progress_due =
            progress && !same_detail && observation.at_ms >= self.told_at_ms + PROGRESS_PERIOD_MS;
        let same_reason = known.is_some_and(|(_, detail)| same_but_for_numbers(detail, &decision.detail));
        if !same_situation || (!same_reason && !progress) || progress_due || acts {
            self.told_at_ms = observation.at_ms;
            log(decision);
        } else if !same_detail {
            tracing::debug!(
                situation = decision.situation.name(),
                detail = decision.detail,
                "unchanged"
            );
        }
        self.last = Some((decision.situation, decision.detail.clone()));
    }
}

/// A licence that is renewed in time is no news.
fn matters(decision: &Decision) -> bool {
    let renewed = matches!(
        decision.postgres,
        Some(PostgresAction::GrantLicence { until_ms: Some(_) })
    );
    decision.postgres.is_some() && !(renewed && decision.situation.outlook() == Outlook::Steady)
}

/// A wait whose reason is another one is news; one that has merely lasted longer is not.
fn same_but_for_numbers(one: &str, other: &str) -> bool {
    // LSNs are written in capital letters.
    let in_number = |c: char| c.is_ascii_digit() || ('A'..='F').contains(&c);
    let one = one.split(in_number).filter(|word| !word.is_empty());
    one.eq(other.split(in_number).filter(|word| !word.is_empty()))
}

/// Whether a situation needs a person shows in the level.
fn log(decision: &Decision) {
    let situation = decision.situation.name();
    let sentence = decision.situation.sentence();
    let detail = &decision.detail;
    match (decision.situation.outlook(), decision.situation) {
        (Outlook::Refused | Outlook::Overdue, _)
        | (_, Situation::TwoWritable | Situation::WritableStandby) => {
            tracing::error!(situation, detail, "{sentence}");
        }
        (_, Situation::JobFailed | Situation::StartFailing | Situation::WalGone | Situation::Diverged) => {
            tracing::warn!(situation, detail, "{sentence}");
        }
        _ => tracing::info!(situation, detail, "{sentence}"),
    }
}

#[cfg(test)]
mod tests {
    use super::same_but_for_numbers;

    #[test]
    fn row_80_a_reason_is_news_and_the_passing_of_time_is_none() {
        for (one, other, same) in [
            (
                "DNS has not answered for 51 ms",
                "DNS has not answered for 2050 ms",
                true,
            ),
            ("replayed up to 0/3000060", "replayed up to 1/30000AB", true),
            ("connection refused", "password authentication failed", false),
            ("", "connection refused", false),
        ] {
            assert_eq!(same_but_for_numbers(one, other), same, "{one} / {other}");
        }
    }
}
