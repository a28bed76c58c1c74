//! What a demo prints once all its pods are ready.

use super::dsn::{Target, dsn_with_passfile};
use super::events::Events;
use super::setup::Prepared;

/// Connection strings, each usable as it is with libpq, and what can be done next.
///
/// The second time and later only that all is well again.
pub(super) fn show(events: &Events, prepared: &Prepared, again: bool) {
    let state = &prepared.state;
    events.change(&state.cluster, &format!("all {} pods are ready", state.replicas));
    if again {
        return;
    }
    events.line("");
    for (label, target) in [("read-write", Target::ReadWrite), ("read-only", Target::ReadOnly)] {
        // The password stays in its file: this output may end in a log.
        if let Ok(text) = dsn_with_passfile(state, target, &prepared.layout.passfile()) {
            events.line(&format!("  {label}: {text}"));
        }
    }
    let directory = prepared.layout.directory().display();
    events.line(&format!(
        "\n  psql \"$(podgres demo dsn --dir {directory})\"\n  podgres status --dir {directory}\n  \
         podgres demo delete-pod 0 --force --dir {directory}\n  podgres demo scale 4 --dir {directory}\n  \
         Ctrl-C stops all\n"
    ));
}
