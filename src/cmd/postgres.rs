//! `podgres postgres`: the supervisor, process 1 of the PostgreSQL container.

use clap::Args;

use crate::config::pod::PodArguments;
use crate::config::server::ServerArguments;
use crate::supervisor::{self, SupervisorOptions};

use super::{Failure, wiring};

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub pod: PodArguments,
    #[command(flatten)]
    pub server: ServerArguments,
}

/// Runs until TERM and until PostgreSQL is down.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let pod = arguments.pod.resolve()?;
    wiring::refuse_root()?;
    wiring::prepare_run_directory(&pod)?;
    let settings = wiring::server_settings(&pod, &arguments.server).await?;
    supervisor::stop_on_panic();
    supervisor::run(
        settings,
        SupervisorOptions {
            children_hold_volume: true,
            ..wiring::supervisor_options()
        },
    )
    .await
    .map(|_| ())
    .map_err(|error| wiring::supervisor_failure(&error))
}
