//! Adapters against the real thing: PostgreSQL, sockets, processes, files.

#[path = "../support/authority.rs"]
mod authority;
#[allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]
mod chart;
#[allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]
mod check;
mod demo;
mod dns;
mod http;
#[allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]
mod image;
mod kube;
#[allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]
mod kubectl;
#[allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]
#[path = "../support/kustomize.rs"]
mod kustomize;
#[allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]
#[path = "../support/namespaces.rs"]
mod namespaces;
mod peers;
mod postgres_client;
mod postgres_files;
#[path = "../support/postgresql.rs"]
mod postgresql;
mod proxy;
mod supervisor;
#[path = "../support/user.rs"]
mod user;
#[path = "../support/wait.rs"]
mod wait;
