//! `podgres check`: names each thing that cannot work, before anything depends on it: in a pod's environment, in manifest files, or in the
//! objects of a live cluster. Changes nothing.

mod environment;
mod manifests;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::config::pod::PodArguments;
use crate::config::server::ServerArguments;

use super::{ExitStatus, Failure};

#[derive(Args, Debug)]
pub struct Arguments {
    /// Look at the objects in this YAML file instead, "-" for standard input: kubectl kustomize DIR | podgres check -f -
    #[arg(short = 'f', long = "file", conflicts_with = "live")]
    pub files: Vec<PathBuf>,
    /// Look at the objects of this StatefulSet in a live cluster instead
    #[arg(long, value_name = "STATEFULSET")]
    pub live: Option<String>,
    /// Context of the kubeconfig file [default: its current one]
    #[arg(long, requires = "live")]
    pub context: Option<String>,
    #[command(flatten)]
    pub pod: PodArguments,
    #[command(flatten)]
    pub server: ServerArguments,
}

/// One finding: what cannot work, and what to do.
struct Finding {
    problem: String,
    hint: String,
    /// What could not be looked at might show that it is none.
    certain: bool,
}

impl Finding {
    fn new(problem: impl Into<String>, hint: &str) -> Self {
        Self {
            problem: problem.into(),
            hint: hint.to_owned(),
            certain: true,
        }
    }
}

/// Prints each finding with a hint; exit code 64 if any is certain.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (place, findings) = if let Some(set) = &arguments.live {
        let (objects, unseen) = manifests::live(set, &arguments).await?;
        let findings = manifests::findings(&objects, &unseen);
        (format!("StatefulSet \"{set}\""), findings)
    } else if arguments.files.is_empty() {
        let pod = arguments.pod.resolve()?;
        let findings = environment::findings(&pod, &arguments.server).await;
        (pod.name.to_string(), findings)
    } else {
        let objects = manifests::read(&arguments.files)?;
        ("manifests".to_owned(), manifests::findings(&objects, &[]))
    };
    print(&place, &findings)?;
    match findings.iter().filter(|finding| finding.certain).count() {
        0 => Ok(()),
        1 => Err(Failure::new(ExitStatus::Settings, "one thing cannot work")),
        many => Err(Failure::new(
            ExitStatus::Settings,
            format!("{many} things cannot work"),
        )),
    }
}

fn print(place: &str, findings: &[Finding]) -> Result<(), Failure> {
    let mut text = String::new();
    for Finding { problem, hint, .. } in findings {
        writeln!(text, "{problem}\n    hint: {hint}")
            .map_err(|error| Failure::from_error(ExitStatus::Bug, &error))?;
    }
    if findings.is_empty() {
        text = format!("{place}: nothing found that cannot work\n");
    }
    std::io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::from_error(ExitStatus::Overdue, &error))
}
