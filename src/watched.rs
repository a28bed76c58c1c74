//! What many wait for a change of.

use tokio::sync::watch;

/// Says what is so now, and wakes those who wait only if it was not so before; whether it was not.
pub(crate) fn set<T: PartialEq>(watch: &watch::Sender<T>, now: T) -> bool {
    watch.send_if_modified(|known| {
        let changed = *known != now;
        if changed {
            *known = now;
        }
        changed
    })
}
