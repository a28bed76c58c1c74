//! Flags and environment, read once, into plain structs. All settings of podgres are read here.
//!
//! Other places read the environment only for what is no setting of podgres:
//!
//! - `postgres::process`, `postgres::initdb` and `postgres::initdb_scripts` pass variables on to PostgreSQL's programs and to the user's
//!   scripts (`PATH`, `LANG` and the like), as the official image does; `initdb` picks a locale of its own where there is no `LANG`.
//! - `postgres::find` looks for PostgreSQL where Python keeps packages (`VIRTUAL_ENV`, `HOME`).
//! - `demo::setup` passes a few variables (`PATH`, `TZ` …) on to the demo's processes.
//! - `cmd::read_only` takes `USER` for the name of whoever turns the switch; `cmd::lease_orders` looks for `~/.kube/config`.
//!
//! Every flag has a `PODGRES_…` variable; the variables of the official PostgreSQL image and of the
//! Kubernetes downward API keep their names. A bad value ends with exit code 64, the key, the value
//! and what would be right.

pub mod backup;
pub mod lease;
pub mod limits;
pub mod pod;
pub mod report;
pub mod routes;
pub mod server;
pub mod tags;
pub use crate::core::units;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("invalid value for {key}: {problem}")]
pub struct InvalidSetting {
    /// The flag or variable.
    pub key: String,
    pub problem: String,
    /// What would be right.
    pub hint: String,
}

impl InvalidSetting {
    pub fn new(key: &str, problem: impl Into<String>, hint: &str) -> Self {
        Self {
            key: key.to_owned(),
            problem: problem.into(),
            hint: hint.to_owned(),
        }
    }
}

/// Where variables come from: the process' environment, or a table in a test.
pub trait Environment {
    fn get(&self, key: &str) -> Option<String>;
}

/// The environment of this process.
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn get(&self, key: &str) -> Option<String> {
        std::env::var_os(key).map(|value| value.to_string_lossy().into_owned())
    }
}

/// Asks for TERM when the parent ends, if the parent asked for that: a demo's pods do not outlive it.
pub fn end_with_parent() {
    if ProcessEnvironment.get("PODGRES_END_WITH_PARENT").is_some() {
        let term = Some(rustix::process::Signal::TERM);
        if let Err(error) = rustix::process::set_parent_process_death_signal(term) {
            tracing::warn!(%error, "could not tie this process to its parent");
        }
    }
}
