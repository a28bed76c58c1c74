//! The deterministic simulator: members run the shipped `decide` in a world of drawn delays and faults.
//!
//! One schedule is one seed. `make sim SEED=17` repeats it with a trace of its decisions.
#![expect(clippy::print_stdout, reason = "a schedule is told of on standard output")]

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod api;
mod config;
mod event;
mod faults;
mod jobs;
mod network;
mod operator;
mod oracle;
mod postgres;
mod queue;
mod random;
mod runs;
mod scenes;
mod sidecar;
mod stops;
mod supervisor;
mod trace;
mod wal;
mod world;
