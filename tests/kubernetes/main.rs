//! podgres on a live Kubernetes cluster, whichever KUBECONFIG names: `make test-kubernetes`.
//!
//! The shipped manifests are applied as a user applies them, with `kubectl apply -k` and a kustomization.yaml of one's own; what then
//! happens is read through the API. Tests of a group share one StatefulSet in a namespace of its own and run in order, since starting one takes
//! half a minute. Without a cluster this fails. `cargo test --test kubernetes -- WORD…` runs the groups of these names, and tests whose names
//! contain one of the other words.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "clippy takes a test's helpers for code that ships"
)]

mod ask;
#[path = "../support/authority.rs"]
mod authority;
mod backup;
mod bucket;
mod chaos;
mod cluster;
mod faults;
mod fixed;
mod kubectl;
mod lease;
mod moving;
mod node;
mod outside;
mod overlay;
mod restore;
mod rights;
mod routes;
mod runner;
#[path = "../support/s3_server.rs"]
#[expect(dead_code, reason = "its faults are for tests/cluster")]
mod s3_server;
#[path = "../support/selection.rs"]
mod selection;
mod switch;
mod tls;
mod upkeep;
#[path = "../support/user.rs"]
mod user;
mod volumes;
mod wait;
mod world;
mod writer;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The longest ones first.
    runner::run(&[
        fixed::GROUP,
        backup::GROUP,
        bucket::GROUP,
        lease::GROUP,
        rights::GROUP,
        moving::GROUP,
        moving::SCRIPTS,
        tls::GROUP,
        faults::GROUP,
    ])
}
