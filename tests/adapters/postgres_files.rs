//! PostgreSQL's files and programs, with real PostgreSQL 15, 16 and 18.
#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

mod clone;
mod configuration;
mod initdb;
mod inspect;
mod kills;
mod lab;
mod refused;
mod staging;
mod tls;
mod volume;
