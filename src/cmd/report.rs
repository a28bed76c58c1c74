//! Tells the Kubernetes API what others may see of this pod: its role as a label, an Event for each change of what it
//! does, and, from one of the pods, an Event for each turn of the read-only switch.
//!
//! Opt-ins without a say: whoever reads them looks at what was true a moment ago, and nothing here is waited for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::report::ReportArguments;
use crate::core::cluster::{ClusterView, PeerEntry};
use crate::core::lease::ReadOnlySwitch;
use crate::core::policy::Leadership;
use crate::core::situation::{Outlook, SITUATIONS, Situation};
use crate::core::status::{MemberStatus, Role};
use crate::core::switch::SwitchPosition;
use crate::kube::pod::{EventKind, PodReporter};

/// A label that could not be set, or a turn of the switch that could not be told, is tried again after this long.
const AGAIN: Duration = Duration::from_secs(5);

/// What was told last.
#[derive(Default)]
struct Told {
    role: Option<&'static str>,
    situation: String,
    /// `None` until it is known where the switch stands: that was somebody's turn before this process began.
    switch: Option<SwitchPosition>,
}

/// Reports until the agent has ended.
pub(super) async fn report(
    reporter: PodReporter,
    arguments: ReportArguments,
    mut view: watch::Receiver<Arc<ClusterView>>,
) {
    let mut told = Told::default();
    loop {
        let now = Arc::clone(&view.borrow_and_update());
        let role = role(&now);
        if arguments.label_pod && told.role != Some(role) && reporter.label_pod(Some(role)).await {
            told.role = Some(role);
        }
        if arguments.emit_events && told.situation != now.me.situation {
            let (kind, reason) = event(&now.me.situation);
            reporter.emit_event(kind, &reason, &now.me.message).await;
            told.situation.clone_from(&now.me.situation);
        }
        let untold = match &told.switch {
            Some(before) if before.on != now.me.switch.on => {
                let (kind, reason, note) = turn(before.on.as_ref(), now.me.switch.on.as_ref());
                let speaks = arguments.emit_events && speaks_for_all(&now);
                speaks && !reporter.emit_event(kind, reason, &note).await
            }
            Some(_) => false,
            None => !knows_the_switch(&now),
        };
        if !untold {
            told.switch = Some(now.me.switch.clone());
        }
        let unlabelled = arguments.label_pod && told.role != Some(role);
        let pending = unlabelled || (untold && told.switch.is_some());
        let changed = view.changed();
        if pending {
            // Told again or changed meanwhile: either way the loop looks afresh.
            drop(tokio::time::timeout(AGAIN, changed).await);
        } else if changed.await.is_err() {
            return;
        }
    }
}

/// The Event for a turn of the read-only switch.
fn turn(before: Option<&ReadOnlySwitch>, now: Option<&ReadOnlySwitch>) -> (EventKind, &'static str, String) {
    if let Some(ReadOnlySwitch { by, at, reason }) = now {
        let why = if reason.is_empty() {
            "no reason given"
        } else {
            reason
        };
        let note = format!("{by} has switched the cluster to read-only at {at}: {why}");
        return (EventKind::Warning, "ReadOnlySwitchOn", note);
    }
    let by = before.map_or("", |switch| switch.by.as_str());
    let note = format!("the cluster takes writes again; {by} had switched it to read-only");
    (EventKind::Normal, "ReadOnlySwitchOff", note)
}

/// The Lease was read, or without one the volume was.
fn knows_the_switch(view: &ClusterView) -> bool {
    match view.leadership {
        Some(Leadership::Fixed) => view.me.situation != Situation::SupervisorUnreachable.name(),
        _ => view.lease.is_some(),
    }
}

/// One pod tells what concerns all: the primary; while there is none, the first of those that are there.
fn speaks_for_all(view: &ClusterView) -> bool {
    let peers = || view.peers.iter().filter_map(PeerEntry::live_status);
    let is_primary = |member: &MemberStatus| member.role == Some(Role::Primary);
    if is_primary(&view.me) {
        return true;
    }
    !peers().any(is_primary) && peers().all(|peer| view.me.ordinal < peer.ordinal)
}

fn role(view: &ClusterView) -> &'static str {
    match view.me.role {
        Some(Role::Primary) => "primary",
        Some(Role::Standby) | None => "standby",
    }
}

/// An Event's kind and its reason in `PascalCase`.
fn event(situation: &str) -> (EventKind, String) {
    let outlook = SITUATIONS
        .iter()
        .find(|(_, _, name, _)| *name == situation)
        .map(|(_, outlook, ..)| *outlook);
    let kind = match outlook {
        Some(Outlook::Steady | Outlook::Passing) => EventKind::Normal,
        Some(Outlook::Refused | Outlook::Overdue) | None => EventKind::Warning,
    };
    let mut start = true;
    let letters = situation.chars().filter_map(|letter| {
        let first = std::mem::replace(&mut start, letter == '_');
        (letter != '_').then(|| {
            if first {
                letter.to_ascii_uppercase()
            } else {
                letter
            }
        })
    });
    (kind, letters.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_of_the_switch_says_who_and_why() {
        let on = |reason: &str| ReadOnlySwitch {
            by: "alice@db".to_owned(),
            at: "2026-01-02T03:04:05Z".to_owned(),
            reason: reason.to_owned(),
        };
        let (kind, reason, note) = turn(None, Some(&on("a migration")));
        assert_eq!((kind, reason), (EventKind::Warning, "ReadOnlySwitchOn"));
        assert!(
            note.starts_with("alice@db has switched") && note.ends_with("a migration"),
            "{note}"
        );
        assert!(turn(None, Some(&on(""))).2.ends_with("no reason given"));
        let (kind, reason, note) = turn(Some(&on("")), None);
        assert_eq!((kind, reason), (EventKind::Normal, "ReadOnlySwitchOff"));
        assert!(note.contains("alice@db"), "{note}");
    }

    #[test]
    fn an_event_names_its_situation_and_says_whether_somebody_is_needed() {
        assert_eq!(event("waiting_for_primary").1, "WaitingForPrimary");
        for (_, outlook, name, _) in SITUATIONS {
            let (kind, reason) = event(name);
            assert!(
                reason.len() <= 128 && reason.chars().all(|letter| letter.is_ascii_alphanumeric()),
                "{reason}"
            );
            assert_eq!(kind == EventKind::Warning, outlook >= Outlook::Refused, "{name}");
        }
    }
}
