//! The verbs that change something: switchover, failover, pause, resume, restart, reinit. Each is one order to one member,
//! or, for an operator who reaches the Kubernetes API alone, one change of the Lease.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::core::cluster::explain::{Candidate, Explanation};
use crate::core::observation::MemberRequest;
use crate::core::operate::{Answer, Order, Outcome};
use crate::peers::{get_json, send_order};

use super::backing::print;
use super::lease_orders::Kubernetes;
use super::place::{Place, TokenArgument, unanswered};
use super::{ExitStatus, Failure, status_of};

/// For an answer that comes through a pipe: a program has it at hand, a person behind `kubectl exec -i` types it.
const PIPE_LIMIT: Duration = Duration::from_mins(1);
/// Longer than a member waits before it says that something did not come about.
const ORDER_LIMIT: Duration = Duration::from_secs(90);
const ASK_LIMIT: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
pub struct ClusterArguments {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub token: TokenArgument,
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}

#[derive(Args, Debug)]
pub struct SwitchoverArguments {
    #[command(flatten)]
    pub cluster: ClusterArguments,
    /// The new primary [default: whoever fits best]
    #[arg(long, value_name = "POD")]
    pub to: Option<String>,
}

#[derive(Args, Debug)]
pub struct FailoverArguments {
    #[command(flatten)]
    pub cluster: ClusterArguments,
    /// The new primary
    #[arg(long, value_name = "POD")]
    pub to: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct MemberArguments {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub token: TokenArgument,
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// The member
    #[arg(value_name = "POD")]
    pub pod: String,
}

pub async fn switchover(arguments: SwitchoverArguments) -> Result<(), Failure> {
    let SwitchoverArguments { cluster, to } = arguments;
    if let Some(lease) = cluster.kubernetes.lease()? {
        return told(&lease.moved(to.as_deref(), false).await);
    }
    let order = Order::Switchover {
        leader: None,
        candidate: to,
        wait: true,
    };
    give(&cluster.place, &cluster.token, &order).await
}

pub async fn failover(arguments: FailoverArguments) -> Result<(), Failure> {
    let FailoverArguments { cluster, to, yes } = arguments;
    if let Some(lease) = cluster.kubernetes.lease()? {
        confirm(&to, "the members cannot be asked what that would lose", yes).await?;
        return told(&lease.moved(Some(&to), true).await);
    }
    let (url, _) = cluster.place.somebody().await?;
    let candidate = candidate(&url, &to).await?;
    if let Some(refused) = candidate.failover {
        return Err(Failure::new(ExitStatus::Refused, refused));
    }
    confirm(&to, &candidate.loss, yes).await?;
    let order = Order::Failover {
        candidate: to,
        wait: true,
    };
    send(&url, &cluster.token, &order).await
}

pub async fn pause(arguments: ClusterArguments, paused: bool) -> Result<(), Failure> {
    if let Some(lease) = arguments.kubernetes.lease()? {
        return told(&lease.pause(paused).await);
    }
    give(&arguments.place, &arguments.token, &Order::Pause { paused }).await
}

pub async fn restart(arguments: MemberArguments) -> Result<(), Failure> {
    if let Some(lease) = arguments.kubernetes.lease()? {
        return told(&lease.ordered(MemberRequest::Restart, &arguments.pod).await);
    }
    let member = Some(arguments.pod);
    give(&arguments.place, &arguments.token, &Order::Restart { member }).await
}

pub async fn reinit(arguments: MemberArguments) -> Result<(), Failure> {
    if let Some(lease) = arguments.kubernetes.lease()? {
        return told(&lease.ordered(MemberRequest::Reinit, &arguments.pod).await);
    }
    let member = Some(arguments.pod);
    give(
        &arguments.place,
        &arguments.token,
        &Order::Reinitialise { member },
    )
    .await
}

/// What a member says about a candidate.
async fn candidate(url: &str, name: &str) -> Result<Candidate, Failure> {
    let page = get_json(url, "/explain", ASK_LIMIT).await;
    let page = page.map_err(|error| unanswered(&error))?;
    let read: Explanation = serde_json::from_value(page)
        .map_err(|error| Failure::new(ExitStatus::Bug, format!("could not read \"/explain\": {error}")))?;
    if read.primary.as_deref() == Some(name) {
        let already = format!("\"{name}\" is the primary already");
        return Err(Failure::new(ExitStatus::Refused, already));
    }
    let mut candidates = read.candidates.into_iter();
    candidates
        .find(|candidate| candidate.name == name)
        .ok_or_else(|| {
            Failure::new(
                ExitStatus::Settings,
                format!("the cluster has no member \"{name}\""),
            )
        })
}

/// Asks, on the terminal or through a pipe; where there is neither, `--yes` must have been given.
async fn confirm(to: &str, loss: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let question = format!("A failover to \"{to}\": {loss}.\nType \"yes\" to go on: ");
    let failed = |error: std::io::Error| Failure::new(status_of(&error), format!("could not ask: {error}"));
    let mut stdout = std::io::stdout();
    stdout
        .write_all(question.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(failed)?;
    let Some(line) = line_of_stdin().await else {
        let late = format!("no answer came within {} s", PIPE_LIMIT.as_secs());
        return Err(Failure::new(ExitStatus::Overdue, late).hint("Nothing was done."));
    };
    let line = line.map_err(failed)?;
    match line.trim() {
        "yes" => Ok(()),
        "" => {
            let asked = format!("cannot ask whether \"{to}\" is to be the primary: nobody answers");
            let hint = "Give --yes if that is what you want.";
            Err(Failure::new(ExitStatus::Settings, asked).detail(loss).hint(hint))
        }
        _ => Err(Failure::new(ExitStatus::Refused, "nothing was done")),
    }
}

/// The first line; `None` where none comes. A person at a terminal may take any time.
async fn line_of_stdin() -> Option<std::io::Result<String>> {
    let limit = if std::io::stdin().is_terminal() {
        Duration::MAX
    } else {
        PIPE_LIMIT
    };
    let reading = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let read = tokio::time::timeout(limit, reading).await.ok()?;
    Some(read.unwrap_or_else(|lost| Err(std::io::Error::other(lost))))
}

pub(super) async fn give(place: &Place, token: &TokenArgument, order: &Order) -> Result<(), Failure> {
    let (url, _) = place.somebody().await?;
    send(&url, token, order).await
}

async fn send(url: &str, token: &TokenArgument, order: &Order) -> Result<(), Failure> {
    let token = token.read()?;
    let sent = send_order(url, order, token.as_deref(), ORDER_LIMIT).await;
    let (status, body) =
        sent.map_err(|error| unanswered(&error).hint("\"podgres status\" shows what has become of it."))?;
    match serde_json::from_value(body.clone()) {
        Ok(answer) => told(&answer),
        Err(_) => Err(refused(status.as_u16(), &body)),
    }
}

/// No answer to the order: it never reached the one who would carry it out.
fn refused(status: u16, body: &Value) -> Failure {
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let exit = match status {
        401 | 403 => ExitStatus::Permission,
        400..500 => ExitStatus::Settings,
        _ => ExitStatus::Overdue,
    };
    Failure::new(exit, text("error")).hint(text("hint"))
}

/// Prints what was done, or gives the failure with its exit code.
pub(super) fn told(answer: &Answer) -> Result<(), Failure> {
    let status = match answer.outcome {
        Outcome::Done | Outcome::Accepted => {
            let mut text = answer.message.clone();
            if answer.elapsed_ms >= 100 {
                text = format!(
                    "{text} (after {:.1} s)",
                    Duration::from_millis(answer.elapsed_ms).as_secs_f64()
                );
            }
            if let Some(hint) = &answer.hint {
                text = format!("{text}\n{hint}");
            }
            return print(&format!("{text}\n"));
        }
        Outcome::Invalid => ExitStatus::Settings,
        Outcome::Pending | Outcome::NotPossible => ExitStatus::Refused,
        Outcome::Failed => ExitStatus::Overdue,
    };
    let failure = Failure::new(status, answer.message.clone());
    Err(match &answer.hint {
        Some(hint) => failure.hint(hint.clone()),
        None => failure,
    })
}
