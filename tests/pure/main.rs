//! Tests that need no PostgreSQL and no other process: tables, layers, golden files. Seconds.

#![allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]

mod decision_table;
mod enumeration;
mod exhaustive;
mod kustomize;
mod layers;
mod lease_enumeration;
mod lease_exhaustive;
mod lease_rules;
mod lease_worlds;
mod links;
mod manifests;
mod scenarios;
mod source;
// Minutes without optimisation: `make test` runs it in the small crate, tests/sim/core.
#[cfg(not(debug_assertions))]
mod takeover_model;
mod worlds;
