//! The HTTP server over real sockets: every path, every method, and clients that mean no good.

// A helper that fails fails its test; what a hostile client's own calls come to does not matter.
#![allow(clippy::expect_used, clippy::let_underscore_must_use)]

mod lab;
mod limits;
mod orders;
mod pages;
mod stream;

pub(crate) use lab::{Server, primary, standby, view};
