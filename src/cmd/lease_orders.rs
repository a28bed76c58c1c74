//! Orders by one change of the Lease, for an operator who reaches the Kubernetes API and no member.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use crate::config::ProcessEnvironment;
use crate::config::pod::variable;
use crate::core::cluster::impossible::Impossible;
use crate::core::cluster::moves;
use crate::core::lease::{LeaseRecord, MemberOrder, MoveRequest, ReadOnlySwitch, StoredLease};
use crate::core::member::MemberName;
use crate::core::observation::MemberRequest;
use crate::core::operate::{Answer, Outcome};
use crate::core::units::milliseconds;
use crate::kube::{LeaseClient, LeaseError, Reach, timestamp};

use super::pod_pages::PodPages;
use super::{ExitStatus, Failure};

const MOVE_LIMIT: Duration = Duration::from_mins(1);
/// Longer than a member takes for what is ordered.
const ORDER_LIMIT: Duration = Duration::from_secs(75);
/// For an earlier request to be through.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Which Lease.
#[derive(Args, Debug)]
pub struct Kubernetes {
    /// The StatefulSet's name: asks the Kubernetes API instead of a member
    #[arg(long, conflicts_with_all = ["dir", "url"])]
    pub cluster: Option<String>,
    /// Context of the kubeconfig file [default: its current one]
    #[arg(long, requires = "cluster")]
    pub context: Option<String>,
    #[arg(short, long, requires = "cluster", default_value = "default")]
    pub namespace: String,
    /// [default: ~/.kube/config]
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
}

/// The file that is given, or what kubectl would read: KUBECONFIG, or the one in the home folder.
pub(super) fn kubeconfig(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let variable = || variable(&ProcessEnvironment, "KUBECONFIG").map(PathBuf::from);
    let standard = || std::env::home_dir().map(|home| home.join(".kube").join("config"));
    let found = given.map(Path::to_owned).or_else(variable).or_else(standard);
    found.ok_or_else(|| {
        Failure::new(ExitStatus::Settings, "no kubeconfig file is known").hint("Give --kubeconfig.")
    })
}

/// One cluster's Lease.
pub(super) struct ClusterLease {
    cluster: String,
    client: LeaseClient,
}

impl Kubernetes {
    /// The Lease, if a cluster is named.
    pub(super) fn lease(&self) -> Result<Option<ClusterLease>, Failure> {
        let Some(cluster) = self.cluster.clone() else {
            return Ok(None);
        };
        let client = LeaseClient::new(self.reach()?, &self.namespace, &cluster);
        Ok(Some(ClusterLease { cluster, client }))
    }

    /// The members' pages, if a cluster is named.
    pub(super) fn pages(&self) -> Result<Option<PodPages>, Failure> {
        let Some(cluster) = &self.cluster else {
            return Ok(None);
        };
        Ok(Some(PodPages::new(self.reach()?, &self.namespace, cluster)))
    }

    fn reach(&self) -> Result<Reach, Failure> {
        let path = kubeconfig(self.kubeconfig.as_deref())?;
        let context = self.context.clone();
        Ok(Reach::Kubeconfig { path, context })
    }
}

impl ClusterLease {
    /// The record as it is now.
    pub(super) async fn record(&self) -> Result<LeaseRecord, Failure> {
        let stored = self.client.get().await.map_err(|error| failure(&error))?;
        stored.map(|stored| (*stored.record).clone()).ok_or_else(|| {
            Failure::new(
                ExitStatus::Overdue,
                format!("there is no Lease \"{}\"", self.cluster),
            )
        })
    }

    pub(super) async fn pause(&self, paused: bool) -> Answer {
        match self.client.update(|record| record.paused = paused).await {
            Ok(_) if paused => Answer::new(Outcome::Done, "the cluster is paused"),
            Ok(_) => Answer::new(Outcome::Done, "the cluster is not paused any more"),
            Err(error) => error.answer(),
        }
    }

    /// Turns the read-only switch.
    pub(super) async fn read_only(&self, on: bool, reason: String, by: String) -> Answer {
        let at = timestamp(0);
        let switch = on.then_some(ReadOnlySwitch { by, at, reason });
        match self
            .client
            .update(|record| record.turn_read_only(switch.clone()))
            .await
        {
            Ok(_) if on => Answer::new(Outcome::Done, "the cluster is read-only"),
            Ok(_) => Answer::new(Outcome::Done, "the cluster takes writes again"),
            Err(error) => error.answer(),
        }
    }

    /// Asks for a move and waits for its end.
    pub(super) async fn moved(&self, to: Option<&str>, forced: bool) -> Answer {
        let began = Instant::now();
        let mut answer = self.try_move(to, forced).await.unwrap_or_else(|answer| answer);
        answer.elapsed_ms = milliseconds(began.elapsed());
        answer
    }

    /// Asks one member for a restart or a fresh clone, and waits for its answer.
    pub(super) async fn ordered(&self, what: MemberRequest, pod: &str) -> Answer {
        self.try_order(what, pod).await.unwrap_or_else(|answer| answer)
    }

    async fn try_order(&self, what: MemberRequest, pod: &str) -> Result<Answer, Answer> {
        let record = self.existing().await?.record;
        let known = MemberName::parse(pod)
            .is_ok_and(|name| name.cluster == self.cluster && record.members.contains(&name.ordinal));
        if !known {
            let name = pod.to_owned();
            return Err(Impossible::UnknownMember { name }.answer());
        }
        let id = format!("{:016x}", fastrand::u64(..));
        let asked = MemberOrder {
            member: pod.to_owned(),
            what,
            id: id.clone(),
            taken_up: false,
            answer: None,
        };
        let written = self
            .client
            .update(|record| record.order = Some(asked.clone()))
            .await;
        written.map_err(|error| error.answer())?;
        let answer = self.answer_to(&id).await;
        let own = |order: &MemberOrder| order.id == id;
        let removed = self
            .client
            .update(|record| drop(record.order.take_if(|order| own(order))))
            .await;
        if let Err(error) = removed {
            tracing::debug!(%error, "the order stays in the Lease");
        }
        answer
    }

    /// What the member has written to an order.
    async fn answer_to(&self, id: &str) -> Result<Answer, Answer> {
        let deadline = Instant::now() + ORDER_LIMIT;
        let mut taken_up = false;
        while Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
            let Ok(Some(now)) = self.client.get().await else {
                continue;
            };
            match &now.record.order {
                Some(order) if order.id == id => {
                    taken_up |= order.taken_up;
                    if let Some(answer) = &order.answer {
                        return Ok(answer.clone());
                    }
                }
                _ => return Err(Answer::new(Outcome::Failed, "another order has come in between")),
            }
        }
        let seconds = ORDER_LIMIT.as_secs();
        Err(if taken_up {
            let going_on = format!("the member is at it, and has not answered within {seconds} s");
            Answer::new(Outcome::Failed, going_on).hint("\"podgres status --cluster\" shows how far it is.")
        } else {
            let nobody =
                format!("the member has not taken it up within {seconds} s; the order was taken back");
            Answer::new(Outcome::Failed, nobody)
                .hint("Does its sidecar run, and does it reach the Kubernetes API?")
        })
    }

    async fn existing(&self) -> Result<StoredLease, Answer> {
        let stored = self.client.get().await.map_err(|error| error.answer())?;
        stored.ok_or_else(|| {
            Answer::new(Outcome::Failed, format!("there is no Lease \"{}\"", self.cluster))
                .hint("Is leadership fixed? Then give the command in a pod: kubectl exec POD -c sidecar -- podgres …")
        })
    }

    /// The record once no earlier request is in it, or as it is after a while.
    async fn idle(&self) -> Result<StoredLease, Answer> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let stored = self.existing().await?;
            if stored.record.request.is_none() || Instant::now() >= deadline {
                return Ok(stored);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn try_move(&self, to: Option<&str>, forced: bool) -> Result<Answer, Answer> {
        let before = self.idle().await?;
        let to = moves::by_record(&self.cluster, &before.record, to, forced).map_err(|why| why.answer())?;
        let id = format!("{:016x}", fastrand::u64(..));
        let asked = match to {
            Some(to) if forced => MoveRequest::Failover { to, id },
            to => MoveRequest::Switchover { to, id },
        };
        let written = self.client.update(|record| {
            record.request.get_or_insert_with(|| asked.clone());
        });
        let written = written.await.map_err(|error| error.answer())?;
        if written.record.request.as_ref() != Some(&asked) {
            return Err(Answer::new(Outcome::Pending, "another move is under way"));
        }
        self.answered(&written, &asked).await
    }

    async fn answered(&self, written: &StoredLease, asked: &MoveRequest) -> Result<Answer, Answer> {
        let deadline = Instant::now() + MOVE_LIMIT;
        while Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
            let Ok(Some(now)) = self.client.get().await else {
                continue;
            };
            let record = now.record;
            if record.request.as_ref() == Some(asked) {
                continue;
            }
            let before = written.record.holder.as_ref();
            return match &record.holder {
                Some(holder) if before != Some(holder) => {
                    let message = format!("\"{}\" holds the Lease now, in term {}", holder.pod, record.term);
                    let mut answer = Answer::new(Outcome::Done, message);
                    (answer.primary, answer.term) = (Some(holder.pod.clone()), Some(record.term));
                    Ok(answer)
                }
                _ => Err(refused()),
            };
        }
        let taken_back = self.client.update(|record| {
            if record.request.as_ref() == Some(asked) {
                record.request = None;
            }
        });
        let late = format!("nobody has acted on it within {} s", MOVE_LIMIT.as_secs());
        Err(match taken_back.await {
            Ok(_) => Answer::new(Outcome::Failed, format!("{late}; the request was taken back")),
            Err(error) => Answer::new(Outcome::Failed, format!("{late}; {error}")),
        })
    }
}

/// The Lease tells only that the request is gone: the reason is in the primary's log.
fn refused() -> Answer {
    let message = "the primary has refused the move: no successor fits, a checkpoint takes too long, \
                   or no successor has everything";
    Answer::new(Outcome::Failed, message).hint(
        "\"podgres explain\" with the same --cluster says who could take over now, and what stands in the way. \
         The log of the primary's sidecar has the reason.",
    )
}

fn failure(error: &LeaseError) -> Failure {
    let status = match error.status() {
        Some(401 | 403) => ExitStatus::Permission,
        _ => ExitStatus::Overdue,
    };
    let failure = Failure::from_error(status, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
