//! The deterministic simulator: members run the shipped `decide` in a world of drawn delays and faults.
//!
//! One schedule is one seed. `PODGRES_SIM_SEED=17 cargo test --test sim one_seed -- --nocapture` repeats it with a trace of its
//! decisions.
#![expect(clippy::print_stdout, reason = "a schedule is told of on standard output")]

mod api;
mod config;
mod faults;
mod network;
mod oracle;
mod postgres;
mod random;
mod runs;
mod sidecar;
mod supervisor;
mod trace;
mod wal;
mod world;
