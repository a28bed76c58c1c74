//! The enumeration under a Lease and the model of takeover, optimised: `make proof` runs them with wide bounds.

#![allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]

#[path = "../../pure/lease_enumeration.rs"]
mod lease_enumeration;
#[path = "../../pure/lease_exhaustive.rs"]
mod lease_exhaustive;
#[path = "../../pure/lease_rules.rs"]
mod lease_rules;
#[path = "../../pure/lease_scenarios.rs"]
mod lease_scenarios;
#[path = "../../pure/lease_worlds.rs"]
mod lease_worlds;
#[path = "../../pure/takeover_model.rs"]
mod takeover_model;
#[path = "../../pure/worlds.rs"]
mod worlds;
