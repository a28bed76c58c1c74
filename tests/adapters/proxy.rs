//! The routing endpoints in front of a real primary and two real standbys.

#![allow(clippy::expect_used, reason = "helpers of tests")]

mod bulk;
mod cluster;
mod direct;
mod encrypted;
mod ends;
mod hostile;
mod policies;
mod routes;
mod sessions;
mod together;
mod traffic;
mod waiting;
