//! The pure floor alone, under the name by which the simulator knows it.

#[path = "../../../src/core/mod.rs"]
pub mod core;
