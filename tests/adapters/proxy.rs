//! The routing endpoints in front of a real primary and two real standbys.

#![allow(clippy::expect_used, reason = "helpers of tests")]

mod asked;
mod bulk;
mod cluster;
mod direct;
mod drivers;
mod encrypted;
mod ends;
mod hostile;
mod leaving;
mod newer;
mod policies;
mod protocol;
mod returning;
mod routes;
mod sessions;
mod sockets;
mod together;
mod traffic;
mod vanished;
mod waiting;
