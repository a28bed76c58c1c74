//! The demo's controller with a shell script in the place of podgres: what it does with processes,
//! addresses and its own socket. What the pods do is the business of the cluster tests.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod lab;
mod pieces;
mod pods;
mod runs;
mod servers;
