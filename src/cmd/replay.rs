//! `podgres replay FILE`: decides again on what was recorded, and says whether it comes out the same.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use crate::core::decide::decide;
use crate::core::decision::{Decision, Memory};
use crate::core::observation::Observation;
use crate::core::policy::Policy;

use super::backing::print;
use super::{ExitStatus, Failure, read_text};

#[derive(Args, Debug)]
pub struct Arguments {
    /// What /debug/decisions showed, one entry or a list of them; "-" for standard input
    pub file: PathBuf,
}

#[derive(Deserialize)]
struct Entry {
    policy: Policy,
    memory: Memory,
    observation: Observation,
    /// What was decided then.
    decision: Option<Decision>,
}

/// Prints one decision a line, as JSON.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let file = arguments.file.display();
    let text = read_text(&arguments.file)?;
    let entries = entries(&text).map_err(|error| {
        Failure::new(
            ExitStatus::Settings,
            format!("\"{file}\" is no recording: {error}"),
        )
        .hint("Give what a member shows at /debug/decisions.")
    })?;
    for entry in entries {
        let decision = decide(&entry.policy, &entry.memory, &entry.observation);
        let same = entry.decision.is_none_or(|then| then == decision);
        let line = serde_json::json!({ "at_ms": entry.observation.at_ms, "same_as_recorded": same, "decision": decision });
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

/// One entry or a list of them. Not an untagged enum: its errors do not say what is wrong.
fn entries(text: &str) -> Result<Vec<Entry>, serde_json::Error> {
    if text.trim_start().starts_with('[') {
        serde_json::from_str(text)
    } else {
        Ok(vec![serde_json::from_str(text)?])
    }
}
