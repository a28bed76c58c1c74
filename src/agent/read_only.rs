//! The operator's order to turn the read-only switch: written where the members read it, and waited for until they have.

use std::time::Instant;

use crate::core::cluster::ClusterView;
use crate::core::lease::ReadOnlySwitch;
use crate::core::operate::{Answer, Outcome};
use crate::kube::timestamp;

use super::operator::{Operator, PAUSE_LIMIT};

impl Operator {
    /// Turns the read-only switch, and waits until every member that is heard knows: its routes follow what it knows.
    pub(super) async fn read_only(&self, on: bool, reason: String, by: String) -> Result<Answer, Answer> {
        let switch = on.then(|| ReadOnlySwitch {
            by,
            at: timestamp(0),
            reason,
        });
        match &self.lease {
            Some(store) => {
                let written = store.update(|record| record.turn_read_only(switch.clone())).await;
                written.map_err(|error| error.answer())?;
            }
            None => self.switch.turn(switch),
        }
        let all_know = |view: &ClusterView| view.read_only == on && view.not_switched(on).is_empty();
        let deadline = Instant::now() + PAUSE_LIMIT;
        if !self.comes(deadline, all_know).await {
            return Err(not_everywhere(&self.seen(), on));
        }
        let message = if on {
            "the cluster is read-only: every routing endpoint serves standbys"
        } else {
            "the cluster takes writes again"
        };
        Ok(Answer::new(Outcome::Done, message))
    }
}

fn not_everywhere(seen: &ClusterView, on: bool) -> Answer {
    let word = if on { "on" } else { "off" };
    let missing = seen.not_switched(on).join("\", \"");
    let late =
        format!("the read-only switch is {word}, but not known within {PAUSE_LIMIT:?} to \"{missing}\"");
    let hint = "Their routing endpoints go on as before until they read the Lease, or hear of it from another member. See whether they reach the API server, and the others.";
    Answer::new(Outcome::Failed, late).hint(hint)
}
