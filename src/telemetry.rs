//! The log: one JSON object a line, or plain text on a terminal, always on stderr.
//!
//! Stdout belongs to PostgreSQL in the postgres container and to the answer of a command elsewhere.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Json,
    Text,
}

/// What a level promises: error needs a person, warn is the first place to look, info is a change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

/// Starts the log. Called once, by `main`.
pub fn start(format: LogFormat, level: LogLevel) {
    let terminal = std::io::stderr().is_terminal();
    let json = format == LogFormat::Json || (format == LogFormat::Auto && !terminal);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(terminal);
    let registry = tracing_subscriber::registry().with(targets(level));
    if json {
        registry
            .with(lines.json().flatten_event(true).with_current_span(false))
            .init();
    } else {
        registry.with(lines).init();
    }
}

/// Our own words at the level that was asked for. Libraries only warn: tokio-postgres would show whole statements,
/// with the stored form of a password in them.
fn targets(level: LogLevel) -> Targets {
    let own = LevelFilter::from(level);
    Targets::new()
        .with_default(own.min(LevelFilter::WARN))
        .with_target("podgres", own)
}
