//! Held against every decision that can be enumerated: the rules, the stories, the golden table, models of takeover and of the right.
//!
//! Minutes without optimisation, so it is built with the core alone: `make proof`.

#![allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]

mod decision_table;
mod enumeration;
mod exhaustive;
mod lease_enumeration;
mod lease_exhaustive;
mod lease_rules;
mod lease_scenarios;
mod lease_worlds;
mod right_model;
mod scenarios;
mod takeover_model;
mod worlds;
