//! What this member binds itself to: a term is on disk before the request that names it is answered or carried on.
//!
//! One write at a time, on a thread of its own, and never given up: a later one must not be overtaken by it. While the
//! volume hangs, further terms are refused and everything else goes on.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::inputs::Inputs;
use super::requests::{Refusal, Reply};
use super::run::Supervisor;
use super::work::{Task, Work};
use crate::core::supervision::{NextTimeline, ServerRole, SupervisorRequest, Terms};
use crate::files::FileError;
use crate::postgres::error::describe;
use crate::postgres::given::Source;
use crate::postgres::terms::{self, TermRefusal};

/// Terms on their way to the disk.
pub(super) struct Errand {
    terms: Terms,
    then: Then,
    reply: Reply,
    writing: JoinHandle<Result<(), FileError>>,
}

/// What is asked besides.
enum Then {
    Nothing,
    EndReceiver,
    Promote {
        role: ServerRole,
        timeline: NextTimeline,
    },
}

/// How an errand ended.
pub(super) type Written = Result<(), String>;

/// The end of the errand under way; never, without any. Dropping the future loses nothing.
pub(super) async fn next(errand: &mut Option<Errand>) -> Written {
    let Some(errand) = errand else {
        return std::future::pending().await;
    };
    match (&mut errand.writing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("could not write down the term: {}", describe(&error))),
        Err(error) => Err(format!("could not write down the term: {error}")),
    }
}

fn write(inputs: &Arc<Inputs>, new: Terms) -> JoinHandle<Result<(), FileError>> {
    let inputs = Arc::clone(inputs);
    tokio::task::spawn_blocking(move || terms::write(&inputs.settings, new))
}

impl Supervisor {
    /// `Detach`, `Hold` and `Promote`; replies now or later.
    pub(super) fn bind(&mut self, request: SupervisorRequest, reply: Reply) {
        match self.to_bind(request) {
            Err(refusal) => self.reply(reply, Err(refusal)),
            Ok((terms, then)) if Some(terms) == self.terms => self.go_on(then, reply),
            Ok((terms, then)) => {
                self.errand = Some(Errand {
                    terms,
                    then,
                    reply,
                    writing: write(&self.inputs, terms),
                });
            }
        }
    }

    fn to_bind(&self, request: SupervisorRequest) -> Result<(Terms, Then), String> {
        if self.errand.is_some() {
            return Err(Refusal::Busy.to_string());
        }
        let known = self.terms.ok_or_else(|| Refusal::TermsUnknown.to_string())?;
        let text = |refusal: TermRefusal| refusal.to_string();
        match request {
            // What is under way may attach it, which no promise may be followed by.
            SupervisorRequest::Detach { .. } if self.starts_or_reloads() => Err(Refusal::Busy.to_string()),
            SupervisorRequest::Detach { term } => {
                Ok((terms::promise(known, term).map_err(text)?, Then::EndReceiver))
            }
            SupervisorRequest::Promote {
                synchronous_standby_names,
                read_only,
                term,
                timeline,
            } => {
                self.may_promote().map_err(|refusal| refusal.to_string())?;
                let role = ServerRole::Primary {
                    synchronous_standby_names,
                    read_only,
                };
                let then = Then::Promote { role, timeline };
                Ok((terms::hold(known, term).map_err(text)?, then))
            }
            SupervisorRequest::Hold { term } => Ok((terms::hold(known, term).map_err(text)?, Then::Nothing)),
            _ => Err("the request names no term; this is a bug".to_owned()),
        }
    }

    /// The errand has ended.
    pub(super) fn bound(&mut self, written: Written) {
        let Some(Errand {
            terms, then, reply, ..
        }) = self.errand.take()
        else {
            return;
        };
        if let Err(message) = written {
            tracing::warn!("{message}");
            return self.reply(reply, Err(message));
        }
        self.terms = Some(terms);
        self.changed();
        self.go_on(then, reply);
    }

    fn go_on(&mut self, then: Then, reply: Reply) {
        match then {
            Then::Nothing => self.reply(reply, Ok(())),
            Then::EndReceiver => self.end_receiver(reply),
            Then::Promote { role, timeline } => self.prepare_promotion(role, timeline, reply),
        }
    }

    fn starts_or_reloads(&self) -> bool {
        matches!(
            &self.work,
            Some(Work {
                task: Task::Prepare { .. } | Task::Rewrite { .. } | Task::Promote { .. },
                ..
            })
        )
    }

    fn end_receiver(&mut self, reply: Reply) {
        if self.starts_or_reloads() {
            return self.reply(reply, Err(Refusal::Busy.to_string()));
        }
        let follows = self.child.as_ref().is_some_and(|child| {
            !child.is_stopping() && matches!(child.role, ServerRole::Standby { upstream: Some(_) })
        });
        if follows {
            let alone = (ServerRole::Standby { upstream: None }, Source::MountedOrAccepted);
            self.work = Some(Work::rewrite(&self.inputs, alone, Some(reply)));
        } else {
            self.reply(reply, Ok(()));
        }
    }
}

#[cfg(test)]
#[path = "bonds_tests.rs"]
mod tests;
