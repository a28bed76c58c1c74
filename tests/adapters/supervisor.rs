//! The supervisor as a process of its own, with real PostgreSQL below it and a real client at its socket.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod control;
mod failover;
mod fence;
mod jobs;
mod lifecycle;
mod looks;
mod machine;
mod pair;
mod pod;
mod process;
mod processes;
mod rewinding;
