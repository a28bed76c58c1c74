//! Whole clusters: the demo's processes on real PostgreSQL, rows of ACCEPTANCE by number.

#![allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]

mod chaos;
mod containers;
mod hand;
mod harness;
mod hazards_clone;
mod hazards_deadlines;
mod hazards_first;
mod hazards_hostile;
mod hazards_secrets;
mod hazards_standby;
mod hazards_wal;
mod hazards_writers;
mod kit;
mod network;
mod plain;
mod pods;
mod relay;
mod repair;
mod reviewed;
mod scaling;
mod smoke;
mod steady;
mod steady_asked;
mod verbs;
mod verbs_refused;
