//! What happened last, for whoever looks into a failing seed.

use std::collections::VecDeque;

use crate::config::{MS, SECOND, Time};

/// The last lines; kept only when a seed is repeated, since words cost time.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) on: bool,
    lines: VecDeque<(Time, String)>,
}

impl Trace {
    pub(crate) fn new(on: bool) -> Self {
        Self {
            on,
            lines: VecDeque::new(),
        }
    }

    pub(crate) fn add(&mut self, at: Time, line: impl FnOnce() -> String) {
        if self.on {
            self.lines.push_back((at, line()));
            if self.lines.len() > 200_000 {
                self.lines.pop_front();
            }
        }
    }

    /// The lines of the last `span`.
    pub(crate) fn last(&self, span: Time) -> String {
        let end = self.lines.back().map_or(0, |(at, _)| *at);
        let lines = self.lines.iter().filter(|(at, _)| *at + span >= end);
        let lines = lines.map(|(at, line)| format!("{:04}.{:03} {line}", at / SECOND, at % SECOND / MS));
        lines.collect::<Vec<_>>().join("\n")
    }
}
