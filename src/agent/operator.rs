//! Carries out what an operator orders: writes the wish where those who act on it look, and waits for what comes of it.
//!
//! A move is a request in the Lease, a restart or a fresh clone one to the member's own agent, asked of it by a
//! signed request if it is another member. Every wait has a limit, after which the wish is taken back. Decides nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::clock::boottime_ms;
use crate::core::cluster::ClusterView;
use crate::core::cluster::impossible::Impossible;
use crate::core::cluster::moves;
use crate::core::lease::{LeaseRecord, MoveRequest, StoredLease};
use crate::core::member::MemberName;
use crate::core::observation::MemberRequest;
use crate::core::operate::{Answer, Ending, Order, Outcome};
use crate::core::signature::MemberKey;
use crate::core::status::{MemberState, MemberStatus};
use crate::core::units::milliseconds;
use crate::kube::LeaseStore;
use crate::peers::{Way, send_signed_order};
use crate::postgres::ReadLogins;
use crate::postgres::routed::RoutedServer;

use super::Requests;
use super::switch::Switchboard;
use super::visitors::Visitors;

const SWITCHOVER_LIMIT: Duration = Duration::from_secs(30);
/// The Lease may have to run out first.
const FAILOVER_LIMIT: Duration = Duration::from_mins(1);
const RESTART_LIMIT: Duration = Duration::from_mins(1);
/// A fresh clone takes longer, and goes on.
const REINIT_LIMIT: Duration = Duration::from_secs(30);
/// For an earlier order to be through.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);
pub(super) const PAUSE_LIMIT: Duration = Duration::from_secs(5);
/// The view changes without anybody being told where only other members are concerned.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What carries out orders in one member's process.
pub struct Operator {
    pub(super) view: watch::Receiver<Arc<ClusterView>>,
    /// `None` with fixed leadership.
    pub(super) lease: Option<Arc<LeaseStore>>,
    pub(super) requests: Requests,
    pub(super) logins: ReadLogins,
    pub(super) member: MemberName,
    /// The local server, for what the routes order.
    pub(super) routed: RoutedServer,
    /// Without a Lease.
    pub(super) switch: Switchboard,
    pub(super) visitors: Visitors,
    pub(super) way: Way,
}

impl Operator {
    /// Carries out one order, to its end or to a deadline.
    pub async fn carry_out(&self, order: Order) -> Answer {
        let began = Instant::now();
        let of_a_route = matches!(order, Order::EndSessions { .. } | Order::Route { .. });
        if !of_a_route {
            tracing::info!(?order, "the operator's order");
        }
        let answer = match order {
            Order::Switchover {
                leader,
                candidate,
                wait,
            } => self.switchover(leader, candidate, wait).await,
            Order::Failover { candidate, wait } => self.failover(candidate, wait).await,
            Order::Restart { ref member } => match self.elsewhere(member.as_deref()) {
                Some(other) => self.forward(&other, &order, RESTART_LIMIT).await,
                None => self.restart().await,
            },
            Order::Reinitialise { ref member } => match self.elsewhere(member.as_deref()) {
                Some(other) => self.forward(&other, &order, REINIT_LIMIT).await,
                None => self.reinitialise().await,
            },
            Order::Pause { paused } => self.pause(paused).await,
            Order::ReadOnly { on, reason, by } => self.read_only(on, reason, by).await,
            Order::EndSessions { clients, which } => Ok(self.end_sessions(&clients, which).await),
            Order::Route { route, left } => {
                self.visitors.hear(&route, left, boottime_ms());
                Ok(Answer::new(Outcome::Done, "the route is known"))
            }
        };
        let mut answer = answer.unwrap_or_else(|answer| answer);
        answer.elapsed_ms = milliseconds(began.elapsed());
        if !of_a_route {
            tracing::info!(outcome = ?answer.outcome, elapsed_ms = answer.elapsed_ms, "{}", answer.message);
        }
        answer
    }

    /// For a route that drains.
    async fn end_sessions(&self, clients: &[SocketAddr], which: Ending) -> Answer {
        match self.routed.end_sessions(clients, which).await {
            Ok(asked) => Answer {
                clients: Some(asked.ended.into()),
                working: Some(asked.working.into()),
                ..Answer::new(Outcome::Done, "sessions were ended")
            },
            Err(error) => Answer::new(Outcome::Failed, error.to_string()),
        }
    }

    pub(super) fn seen(&self) -> Arc<ClusterView> {
        self.view.borrow().clone()
    }

    async fn switchover(
        &self,
        leader: Option<String>,
        candidate: Option<String>,
        wait: bool,
    ) -> Result<Answer, Answer> {
        let judge = |seen: &ClusterView| moves::switchover(seen, leader.as_deref(), candidate.as_deref());
        let to = self.possible(judge).await?;
        let request = |id| MoveRequest::Switchover { to, id };
        let limit = if wait { SWITCHOVER_LIMIT } else { Duration::ZERO };
        self.moved(request, "switchover", limit).await
    }

    async fn failover(&self, candidate: String, wait: bool) -> Result<Answer, Answer> {
        let seen = self.seen();
        let to = moves::failover(&seen, &candidate).map_err(|why| why.answer())?;
        let loss = moves::loss(&seen, &candidate);
        let request = |id| MoveRequest::Failover { to, id };
        let limit = if wait { FAILOVER_LIMIT } else { Duration::ZERO };
        let answer = self.moved(request, "failover", limit).await?;
        Ok(answer.hint(format!("What was known before: {loss}.")))
    }

    /// What is not possible while the members are still on the way from an earlier order is so in a moment.
    async fn possible<T>(&self, judge: impl Fn(&ClusterView) -> Result<T, Impossible>) -> Result<T, Answer> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        let waits =
            |view: &ClusterView| moves::settling(view) && judge(view).is_err_and(|why| why.may_pass());
        self.comes(deadline, |view| !waits(view)).await;
        judge(&self.seen()).map_err(|why| why.answer())
    }

    /// Writes a request into the Lease and waits until it is done, refused, or `limit` has passed.
    async fn moved(
        &self,
        request: impl Fn(String) -> MoveRequest,
        what: &str,
        limit: Duration,
    ) -> Result<Answer, Answer> {
        let store = self
            .lease
            .as_ref()
            .ok_or_else(|| Impossible::FixedLeadership.answer())?;
        // An earlier request is waited for.
        let idle = |view: &ClusterView| view.lease.as_ref().is_none_or(|record| record.request.is_none());
        self.comes(Instant::now() + SETTLE_LIMIT, idle).await;
        let asked = request(format!("{:016x}", fastrand::u64(..)));
        let written = store.update(|record| {
            record.request.get_or_insert_with(|| asked.clone());
        });
        let written = written.await.map_err(|error| error.answer())?;
        if written.record.request.as_ref() != Some(&asked) {
            let pending = "another move is under way";
            return Err(Answer::new(Outcome::Pending, pending).hint("Wait for its end, then ask again."));
        }
        if limit.is_zero() {
            return Ok(Answer::new(Outcome::Accepted, format!("the {what} is asked for")));
        }
        let deadline = Instant::now() + limit;
        let Some(record) = self.answered(store, &written, &asked, deadline).await else {
            return Err(self.withdrawn(store, &asked, what, limit).await);
        };
        let (before, after) = (holder(&written.record), holder(&record));
        if record.term == written.record.term || after.is_none() || before == after {
            let refused = format!("the {what} was refused: {}", self.last_word(before.as_deref()));
            return Err(Answer::new(Outcome::Failed, refused).hint("The cluster is as it was before."));
        }
        self.arrived(&record, deadline).await.map_err(|primary| {
            let late =
                format!("\"{primary}\" holds the Lease and does not serve as the primary after {limit:?}");
            Answer::new(Outcome::Failed, late)
        })
    }

    /// The first record in which the request is not to be found any more.
    async fn answered(
        &self,
        store: &LeaseStore,
        written: &StoredLease,
        asked: &MoveRequest,
        deadline: Instant,
    ) -> Option<LeaseRecord> {
        let mut seen = false;
        let mut view = store.view();
        let answered = view.wait_for(|view| {
            let Some(record) = view.stored.as_ref().map(|stored| &stored.record) else {
                return false;
            };
            let there = record.request.as_ref() == Some(asked);
            seen |= there;
            // An older record than the one that was written does not have it either.
            let newer = record.term > written.record.term || record.renewals > written.record.renewals;
            !there && (seen || newer)
        });
        let answered = tokio::time::timeout_at(deadline.into(), answered).await;
        answered
            .ok()?
            .ok()?
            .stored
            .as_ref()
            .map(|stored| (*stored.record).clone())
    }

    /// Waits until the new holder serves. `Err` names it.
    async fn arrived(&self, record: &LeaseRecord, deadline: Instant) -> Result<Answer, String> {
        let name = holder(record).unwrap_or_default();
        let serves = |view: &ClusterView| {
            view.term >= record.term && moves::primary(view).is_some_and(|primary| primary.name == name)
        };
        if !self.comes(deadline, serves).await {
            return Err(name);
        }
        let mut answer = Answer::new(
            Outcome::Done,
            format!("\"{name}\" is the primary now, in term {}", record.term),
        );
        (answer.primary, answer.term) = (Some(name), Some(record.term));
        Ok(answer)
    }

    /// Takes a request back that nobody has acted on.
    async fn withdrawn(
        &self,
        store: &LeaseStore,
        asked: &MoveRequest,
        what: &str,
        limit: Duration,
    ) -> Answer {
        let taken_back = store.update(|record| {
            if record.request.as_ref() == Some(asked) {
                record.request = None;
            }
        });
        let late = format!("the {what} did not come about within {} s", limit.as_secs());
        match taken_back.await {
            Ok(_) => Answer::new(Outcome::Failed, format!("{late}; the request was taken back")),
            Err(error) => Answer::new(Outcome::Failed, format!("{late}; {error}"))
                .hint("The request may still be in the Lease, and be acted upon."),
        }
    }

    /// What a member says of itself.
    fn last_word(&self, name: Option<&str>) -> String {
        let seen = self.seen();
        let mut members = seen.live_members();
        let found = members.find(|member| name == Some(member.name.as_str()));
        found.map_or_else(
            || "the primary is not heard".to_owned(),
            |member| format!("\"{}\": {}", member.name, member.message),
        )
    }

    async fn pause(&self, paused: bool) -> Result<Answer, Answer> {
        let store = self.lease.as_ref().ok_or_else(|| {
            let fixed = "cannot pause: leadership is fixed, so that nothing moves by itself";
            Answer::new(Outcome::NotPossible, fixed)
        })?;
        let written = store.update(|record| record.paused = paused).await;
        written.map_err(|error| error.answer())?;
        let deadline = Instant::now() + PAUSE_LIMIT;
        self.comes(deadline, |view| view.paused == paused).await;
        let message = if paused {
            "the cluster is paused: no failover and no automatic action"
        } else {
            "the cluster is not paused any more"
        };
        Ok(Answer::new(Outcome::Done, message))
    }

    async fn restart(&self) -> Result<Answer, Answer> {
        let own = self.member.to_string();
        self.possible(|seen| moves::restart(seen, &own)).await?;
        let seen = self.seen();
        let started = |me: &MemberStatus| {
            me.server
                .as_ref()
                .map(|server| server.postmaster_start_time.clone())
        };
        let (before, was_writable) = (started(&seen.me), seen.me.writable);
        if let Some(refusal) = self.ask(MemberRequest::Restart) {
            return Err(refusal);
        }
        let again = |view: &ClusterView| {
            let me = &view.me;
            me.accepting && me.writable == was_writable && started(me) != before
        };
        if self.comes(Instant::now() + RESTART_LIMIT, again).await {
            return Ok(Answer::new(
                Outcome::Done,
                format!("PostgreSQL of \"{own}\" was restarted"),
            ));
        }
        self.requests.taken_up();
        let late = format!(
            "PostgreSQL of \"{own}\" has not come back: {}",
            self.seen().me.message
        );
        Err(Answer::new(Outcome::Failed, late))
    }

    async fn reinitialise(&self) -> Result<Answer, Answer> {
        let own = self.member.to_string();
        self.possible(|seen| moves::reinitialise(seen, &own)).await?;
        let seen = self.seen();
        let clones = seen.me.clones_total;
        if let Some(refusal) = self.ask(MemberRequest::Reinit) {
            return Err(refusal);
        }
        let streams = |view: &ClusterView| view.me.clones_total > clones && view.me.streaming();
        if self.comes(Instant::now() + REINIT_LIMIT, streams).await {
            let done = format!("\"{own}\" was cloned afresh and streams");
            return Ok(Answer::new(Outcome::Done, done));
        }
        let me = &self.seen().me;
        if me.state == MemberState::Cloning || me.clones_total > clones {
            let going_on = format!("\"{own}\" is being cloned afresh");
            return Ok(
                Answer::new(Outcome::Accepted, going_on).hint("\"podgres status\" shows how far it is.")
            );
        }
        self.requests.taken_up();
        let late = format!("\"{own}\" has not begun to clone: {}", me.message);
        Err(Answer::new(Outcome::Failed, late))
    }

    /// Why the request is not taken, if it is not.
    fn ask(&self, request: MemberRequest) -> Option<Answer> {
        let pending = || Answer::new(Outcome::Pending, "another request to this member is waiting");
        (!self.requests.ask(request)).then(pending)
    }

    /// The named member, unless it is this one.
    fn elsewhere(&self, member: Option<&str>) -> Option<String> {
        let own = self.member.to_string();
        member.filter(|name| *name != own).map(str::to_owned)
    }

    /// Has another member carry it out.
    async fn forward(&self, name: &str, order: &Order, limit: Duration) -> Result<Answer, Answer> {
        let seen = self.seen();
        let possible = match order {
            Order::Reinitialise { .. } => moves::reinitialise(&seen, name),
            _ => moves::restart(&seen, name),
        };
        possible.map_err(|why| why.answer())?;
        let mut members = seen.live_members();
        let address = members
            .find(|member| member.name == name)
            .map(|member| SocketAddr::new(member.host, member.http_port));
        let address = address.ok_or_else(|| {
            let name = name.to_owned();
            Impossible::NotHeard { name }.answer()
        })?;
        let failed = |why: String| Answer::new(Outcome::Failed, format!("could not ask \"{name}\": {why}"));
        let key =
            member_key(&self.logins, &self.member.cluster).ok_or_else(|| failed("no secret".to_owned()))?;
        let sent = send_signed_order(
            self.way.to(name, address),
            order,
            &key,
            limit + Duration::from_secs(5),
        )
        .await;
        let (status, body) = sent.map_err(|error| failed(error.to_string()))?;
        serde_json::from_value(body.clone()).map_err(|_| {
            let said = body["error"].as_str().unwrap_or("no reason given");
            failed(format!("status {status}: {said}"))
        })
    }

    /// Waits until the view fulfils a condition; false if it does not in time.
    pub(super) async fn comes(&self, deadline: Instant, condition: impl Fn(&ClusterView) -> bool) -> bool {
        let mut view = self.view.clone();
        loop {
            if condition(&view.borrow_and_update()) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return false },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}

/// What members sign with: made of the replication role's password, as it is now.
#[must_use]
pub fn member_key(logins: &ReadLogins, cluster: &str) -> Option<MemberKey> {
    let (_, replication) = logins().ok()?;
    Some(MemberKey::derive(cluster, replication.password.expose()))
}

fn holder(record: &LeaseRecord) -> Option<String> {
    record.holder.as_ref().map(|holder| holder.pod.clone())
}
