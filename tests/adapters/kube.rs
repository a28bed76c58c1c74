//! The shipped Lease client against API servers: the demo's, and a real one where there is one.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod harness;
mod shared;
