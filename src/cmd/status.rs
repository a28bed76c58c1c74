//! `podgres status`: asks any member for its view, prints a table or JSON.

use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::core::cluster::table::table;

use super::Failure;
use super::backing::print;
use super::lease_orders::Kubernetes;
use super::place::Place;

const WATCH_PAUSE: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub kubernetes: Kubernetes,
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

/// Prints once, or until Ctrl-C.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let pages = arguments.kubernetes.pages()?;
    loop {
        let cluster = match &pages {
            Some(pages) => pages.page(None, "/cluster").await,
            None => arguments.place.cluster().await,
        };
        let text = match (cluster, arguments.output) {
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
    let home = if watched && std::io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    print(&format!("{home}{text}"))
}
