//! `postgres::gate`, `query`, `roles`, `slots`, `replication` and `tls` against real servers of each version found.
#![allow(clippy::expect_used)] // A failed expectation is a failed test.

mod gate;
mod hostile;
mod roles;
mod server;
mod slots;
mod status;
mod tls;
mod upstream;
