//! `podgres status`: asks any member for its view, prints a table or JSON.

use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::core::cluster::table::table;
use crate::demo::state::PodState;
use crate::peers::get_json;

use super::{ExitStatus, Failure, status_of};

const ASK_LIMIT: Duration = Duration::from_secs(2);
const WATCH_PAUSE: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub place: Place,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Show again every second, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// Where the cluster is.
#[derive(Args, Debug)]
pub struct Place {
    /// A demo's folder
    #[arg(long, env = "PODGRES_DEMO_DIR", conflicts_with = "url")]
    pub dir: Option<PathBuf>,
    /// A member's HTTP address, e.g. http://10.0.0.7:8008 [default: this pod's own sidecar]
    #[arg(long, env = "PODGRES_URL")]
    pub url: Option<String>,
}

impl Place {
    /// Every member that may be asked.
    fn urls(&self) -> Result<Vec<String>, Failure> {
        if let Some(directory) = &self.dir {
            let state = super::demo::state(directory)?;
            let url = |pod: &PodState| format!("http://{}", SocketAddr::new(pod.address, state.ports.http));
            return Ok(state.pods.iter().map(url).collect());
        }
        Ok(vec![
            self.url
                .clone()
                .unwrap_or_else(|| "http://127.0.0.1:8008".to_owned()),
        ])
    }

    /// The view of the first member that answers.
    pub(super) async fn cluster(&self) -> Result<Value, Failure> {
        let mut reasons = Vec::new();
        for url in self.urls()? {
            match get_json(&url, "/cluster", ASK_LIMIT).await {
                Ok(cluster) => return Ok(cluster),
                Err(error) => reasons.push(format!("{url}: {error}")),
            }
        }
        Err(Failure::new(ExitStatus::Overdue, "no member answers")
            .detail(reasons.join("; "))
            .hint("Give --dir for a demo, or --url for a member's HTTP port."))
    }
}

/// Prints once, or until Ctrl-C.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    loop {
        let text = match (arguments.place.cluster().await, arguments.output) {
            (Ok(cluster), Output::Table) => table(&cluster),
            (Ok(cluster), Output::Json) => format!("{cluster:#}\n"),
            // Whoever watches wants to see them come back.
            (Err(failure), Output::Table) if arguments.watch => format!("{}\n", failure.message),
            (Err(failure), _) => return Err(failure),
        };
        show(&text, arguments.watch)?;
        if !arguments.watch {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_PAUSE) => {}
            ended = super::sidecar::terminated() => return ended,
        }
    }
}

/// On a terminal that is watched the new picture replaces the old one.
fn show(text: &str, watched: bool) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let home = if watched && stdout.is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    write!(stdout, "{home}{text}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::new(status_of(&error), format!("could not print: {error}")))
}
