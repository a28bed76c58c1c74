//! Tests of the repository itself that need no PostgreSQL and no other process: layers, links, manifests, words. Seconds.

#![allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]

#[path = "../support/kustomize.rs"]
mod kustomize;
mod layers;
mod links;
mod manifests;
mod mutants;
mod promises;
mod selection;
mod source;
