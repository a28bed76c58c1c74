//! `podgres read-only on|off`: takes all routed clients off the primary, or lets them write again.

use clap::{Args, Subcommand};

use crate::core::operate::Order;

use super::Failure;
use super::orders::{ClusterArguments, give, told};

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    pub position: Position,
}

#[derive(Subcommand, Debug)]
pub enum Position {
    /// Every routing endpoint serves standbys; writes fail with PostgreSQL's own error 25006
    On(TurnArguments),
    /// The read-write endpoints serve the primary again
    Off(TurnArguments),
}

#[derive(Args, Debug)]
pub struct TurnArguments {
    #[command(flatten)]
    pub cluster: ClusterArguments,
    /// Why, for those who look at the status
    #[arg(long, default_value = "")]
    pub reason: String,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (on, turn) = match arguments.position {
        Position::On(turn) => (true, turn),
        Position::Off(turn) => (false, turn),
    };
    let TurnArguments { cluster, reason } = turn;
    let by = whoever();
    if let Some(lease) = cluster.kubernetes.lease()? {
        return told(&lease.read_only(on, reason, by).await);
    }
    give(
        &cluster.place,
        &cluster.token,
        &Order::ReadOnly { on, reason, by },
    )
    .await
}

fn whoever() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| rustix::process::getuid().as_raw().to_string());
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}
