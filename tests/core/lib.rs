//! The pure floor alone, under the name by which its tests know it.

#[path = "../../src/core/mod.rs"]
pub mod core;
