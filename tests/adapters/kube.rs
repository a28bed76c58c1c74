//! The shipped Lease client against API servers: the demo's, and a real one where `PODGRES_TEST_KUBECONFIG` names it.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod faults;
mod harness;
mod pod;
mod relay;
mod restarting;
mod server;
mod shared;
mod slices;
mod watching;
