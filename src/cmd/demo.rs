//! `podgres demo`: the whole cluster on this machine, and the verbs that play with it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::config::pod::LeadershipArgument;
use crate::config::{Environment, ProcessEnvironment, units};
use crate::core::member::Ordinal;
use crate::core::policy::Leadership;
use crate::demo::control::{Reply, Request, request};
use crate::demo::dsn::{Target, dsn};
use crate::demo::events::Events;
use crate::demo::state::DemoState;
use crate::demo::{self, DemoError, Options, PodManagement};
use crate::postgres::find;
use crate::postgres::user::UserError;

use super::{ExitStatus, Failure};

#[derive(Args, Debug)]
pub struct Arguments {
    /// The demo's folder [default: a temporary one, removed at the end]
    #[arg(long, env = "PODGRES_DEMO_DIR", global = true)]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    pub start: Start,
    #[command(subcommand)]
    pub verb: Option<DemoVerb>,
}

/// What a new demo is started with.
#[derive(Args, Debug)]
pub struct Start {
    /// Number of pods [default: 3]
    #[arg(long)]
    pub replicas: Option<u32>,
    /// Folder with PostgreSQL's programs [default: found on PATH and in the usual places]
    #[arg(long, env = "PG_BINDIR", visible_aliases = ["bindir", "pg-bindir"])]
    pub program_dir: Option<PathBuf>,
    /// Who is primary [default: lease]
    #[arg(long, value_enum)]
    pub leadership: Option<LeadershipArgument>,
    /// [default: Parallel with a Lease, OrderedReady with a fixed primary]
    #[arg(long, value_enum)]
    pub pod_management: Option<PodManagementArgument>,
    /// Name of the StatefulSet [default: demo]
    #[arg(long)]
    pub cluster: Option<String>,
    /// [default: default]
    #[arg(long)]
    pub namespace: Option<String>,
    /// [default: the cluster's name]
    #[arg(long)]
    pub service: Option<String>,
    /// [default: cluster.local]
    #[arg(long)]
    pub cluster_domain: Option<String>,
    /// [default: 0]
    #[arg(long)]
    pub first_ordinal: Option<u32>,
    /// How long a pod may take to end by itself
    #[arg(long, value_parser = units::duration, default_value = "30s")]
    pub grace: Duration,
    /// A setting for the pods, KEY=VALUE; may be repeated
    #[arg(long = "set", value_parser = key_value, value_name = "KEY=VALUE")]
    pub set: Vec<(String, String)>,
    /// Repeat what the containers print
    #[arg(long)]
    pub verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PodManagementArgument {
    #[value(name = "OrderedReady")]
    OrderedReady,
    #[value(name = "Parallel")]
    Parallel,
}

#[derive(Subcommand, Debug)]
pub enum DemoVerb {
    /// From now on there are this many pods
    Scale { replicas: u32 },
    /// End a pod; its replacement comes by itself
    DeletePod {
        ordinal: u32,
        /// SIGKILL to every process of the pod
        #[arg(long)]
        force: bool,
        /// The replacement begins with an empty volume
        #[arg(long)]
        wipe_volume: bool,
        /// The replacement gets another address
        #[arg(long)]
        move_address: bool,
    },
    /// SIGSTOP to every process of a pod
    Freeze { ordinal: u32 },
    /// SIGCONT to every process of a pod
    Thaw { ordinal: u32 },
    /// The Kubernetes API stops answering, or answers again
    Api {
        #[arg(value_enum)]
        state: ApiState,
    },
    /// Print a connection string, superuser and password included
    Dsn(DsnArguments),
    /// End the demo
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ApiState {
    Down,
    Up,
}

#[derive(Args, Debug)]
#[group(multiple = false)]
pub struct DsnArguments {
    /// Through the read-write routes (default)
    #[arg(long)]
    pub read_write: bool,
    /// Through the read-only routes
    #[arg(long)]
    pub read_only: bool,
    /// Straight to one server
    #[arg(long, value_name = "ORDINAL")]
    pub member: Option<u32>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("\"{text}\" has no \"=\""))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs a demo, or plays with one that runs.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Some(verb) = arguments.verb else {
        return start(arguments.start, arguments.dir).await;
    };
    let directory = arguments.dir.ok_or_else(|| {
        Failure::new(ExitStatus::Settings, "no demo is named").hint("Give --dir the folder of the demo.")
    })?;
    let asked = match verb {
        DemoVerb::Dsn(target) => return print_dsn(&directory, &target),
        DemoVerb::Scale { replicas } => Request::Scale { replicas },
        DemoVerb::DeletePod {
            ordinal,
            force,
            wipe_volume,
            move_address,
        } => Request::DeletePod {
            ordinal: Ordinal(ordinal),
            force,
            wipe_volume,
            move_address,
        },
        DemoVerb::Freeze { ordinal } => Request::Freeze {
            ordinal: Ordinal(ordinal),
        },
        DemoVerb::Thaw { ordinal } => Request::Thaw {
            ordinal: Ordinal(ordinal),
        },
        DemoVerb::Api { state } => Request::Api {
            up: state == ApiState::Up,
        },
        DemoVerb::Stop => Request::Stop,
    };
    let reply = request(&directory, &asked)
        .await
        .map_err(|error| Failure::from_error(ExitStatus::Overdue, &error))?;
    match reply {
        Reply::Done { message } => print(&message),
        Reply::Refused { message } => Err(Failure::new(ExitStatus::Settings, message)),
        Reply::Status(status) => print(&format!("{status:?}")),
    }
}

async fn start(start: Start, directory: Option<PathBuf>) -> Result<(), Failure> {
    let path = ProcessEnvironment.get("PATH").map(OsString::from);
    let program_directory = find::find_program_directory(start.program_dir.as_deref(), None, path.as_deref())
        .await
        .map_err(|error| Failure::from_error(ExitStatus::Settings, &error))?;
    let binary = std::env::current_exe().map_err(|error| Failure::from_error(ExitStatus::Bug, &error))?;
    let options = Options {
        replicas: start.replicas,
        directory,
        pod_management: start.pod_management.map(|order| match order {
            PodManagementArgument::OrderedReady => PodManagement::OrderedReady,
            PodManagementArgument::Parallel => PodManagement::Parallel,
        }),
        leadership: start.leadership.map(|leadership| match leadership {
            LeadershipArgument::Fixed => Leadership::Fixed,
            LeadershipArgument::Lease => Leadership::Lease,
        }),
        cluster: start.cluster,
        service: start.service,
        namespace: start.namespace,
        cluster_domain: start.cluster_domain,
        first_ordinal: start.first_ordinal,
        grace: start.grace,
        environment: BTreeMap::from_iter(start.set),
        verbose: start.verbose,
        ..Options::new(binary, program_directory)
    };
    demo::run(options, Events::to_stdout())
        .await
        .map_err(|error| failure(&error))
}

fn failure(error: &DemoError) -> Failure {
    let status = match error {
        DemoError::Setting { .. }
        | DemoError::NoPod { .. }
        | DemoError::OtherCluster { .. }
        | DemoError::NotEntered { .. }
        | DemoError::User(UserError::Missing) => ExitStatus::Settings,
        DemoError::InUse { .. } => ExitStatus::Refused,
        DemoError::User(UserError::Passwd(_))
        | DemoError::File { .. }
        | DemoError::Address { .. }
        | DemoError::Process { .. } => ExitStatus::Overdue,
    };
    let failure = Failure::from_error(status, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn print_dsn(directory: &Path, target: &DsnArguments) -> Result<(), Failure> {
    let target = match target {
        DsnArguments {
            member: Some(ordinal),
            ..
        } => Target::Member(Ordinal(*ordinal)),
        DsnArguments { read_only: true, .. } => Target::ReadOnly,
        DsnArguments { .. } => Target::ReadWrite,
    };
    print(&dsn(&state(directory)?, target).map_err(|error| failure(&error))?)
}

/// The state of a demo that ran in a folder.
pub(super) fn state(directory: &Path) -> Result<DemoState, Failure> {
    let missing = || {
        Failure::new(
            ExitStatus::Settings,
            format!("\"{}\" is not the folder of a demo", directory.display()),
        )
        .hint("Give --dir the folder that \"podgres demo\" was started with.")
    };
    DemoState::load(directory)
        .map_err(|error| failure(&error))?
        .ok_or_else(missing)
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| Failure::from_error(ExitStatus::Overdue, &error))
}
