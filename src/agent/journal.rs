//! The last decisions with their observations: a log line on change, and the text that `replay` reads.

use std::borrow::Cow;
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

    /// The decision as others are to see it: a turn that merely renews the licence says nothing of what the member is otherwise at,
    /// so that the row of the turn before stands.
    pub(super) fn shown<'a>(&self, decision: &'a Decision) -> Cow<'a, Decision> {
        match &self.last {
            Some((situation, detail)) if renews(decision) => Cow::Owned(Decision {
                situation: *situation,
                detail: detail.clone(),
                ..decision.clone()
            }),
            _ => Cow::Borrowed(decision),
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
        if renews(decision) && self.last.is_some() {
            return;
        }
        let known = self.last.as_ref();
        let same_situation = known.is_some_and(|(situation, _)| *situation == decision.situation);
        let same_detail = known.is_some_and(|(_, detail)| *detail == decision.detail);
        let progress = matches!(decision.situation, Situation::Cloning);
        let acts = decision.postgres.is_some();
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
fn renews(decision: &Decision) -> bool {
    let renewed = matches!(
        decision.postgres,
        Some(PostgresAction::GrantLicence { until_ms: Some(_) })
    );
    renewed && decision.situation.outlook() == Outlook::Steady
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
    use super::*;

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

    fn decision(situation: Situation, postgres: Option<PostgresAction>) -> Decision {
        Decision {
            situation,
            detail: format!("{situation:?}"),
            postgres,
            lease: None,
            report: None,
            upstream: None,
            gate_until_ms: 0,
            read_lease: false,
            memory: Box::default(),
            recheck_after_ms: 0,
        }
    }

    /// With every renewal the log said "primary" and then again what it was waiting for.
    #[test]
    fn a_renewed_licence_interrupts_no_situation() {
        let recorder = |last: Option<Situation>| Recorder {
            last: last.map(|situation| (situation, "why".to_owned())),
            ..Recorder::new(Journal::default())
        };
        let licence = |until_ms| Some(PostgresAction::GrantLicence { until_ms });
        let changing = Some(Situation::ChangingSynchronousSet);
        for (last, situation, action, shown) in [
            (
                changing,
                Situation::Primary,
                licence(Some(5)),
                Situation::ChangingSynchronousSet,
            ),
            (changing, Situation::Primary, None, Situation::Primary),
            (changing, Situation::Primary, licence(None), Situation::Primary),
            (
                changing,
                Situation::Promoting,
                licence(Some(5)),
                Situation::Promoting,
            ),
            (None, Situation::Primary, licence(Some(5)), Situation::Primary),
        ] {
            let decision = decision(situation, action);
            let found = recorder(last).shown(&decision).into_owned();
            assert_eq!(found.situation, shown, "{last:?} {decision:?}");
            assert_eq!(found.postgres, decision.postgres);
        }
    }
}
