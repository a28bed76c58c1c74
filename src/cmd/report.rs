//! Tells the Kubernetes API what others may see of this pod: its role as a label, and an Event for each change of what it does.
//!
//! Opt-ins without a say: whoever reads them looks at what was true a moment ago, and nothing here is waited for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::report::ReportArguments;
use crate::core::cluster::ClusterView;
use crate::core::situation::{Outlook, SITUATIONS};
use crate::core::status::Role;
use crate::kube::pod::{EventKind, PodReporter};

/// A label that could not be set is tried again after this long.
const AGAIN: Duration = Duration::from_secs(5);

/// What was told last.
#[derive(Default)]
struct Told {
    role: Option<&'static str>,
    situation: String,
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
        let pending = arguments.label_pod && told.role != Some(role);
        let changed = view.changed();
        if pending {
            // Told again or changed meanwhile: either way the loop looks afresh.
            drop(tokio::time::timeout(AGAIN, changed).await);
        } else if changed.await.is_err() {
            return;
        }
    }
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
