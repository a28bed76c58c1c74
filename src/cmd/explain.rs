//! `podgres explain`: why a member is what it is, who would be primary next, what would be lost, what stands in the way.

use clap::Args;

use crate::core::cluster::explain::{Explanation, explanation_text};

use super::backing::print;
use super::lease_orders::Kubernetes;
use super::place::Place;
use super::status::Output;
use super::{ExitStatus, Failure};

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// As this member sees it [default: the first that answers]
    #[arg(value_name = "POD")]
    pub pod: Option<String>,
}

/// Asks the member and prints.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let member = arguments.pod.as_deref();
    let page = match arguments.kubernetes.pages()? {
        Some(pages) => pages.page(member, "/explain").await?,
        None => arguments.place.page(member, "/explain").await?,
    };
    let text = match arguments.output {
        Output::Json => format!("{page:#}\n"),
        Output::Table => {
            let read: Explanation = serde_json::from_value(page).map_err(|error| {
                Failure::new(ExitStatus::Bug, format!("could not read \"/explain\": {error}"))
            })?;
            explanation_text(&read)
        }
    };
    print(&text)
}
