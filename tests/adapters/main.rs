//! Adapters against the real thing: PostgreSQL, sockets, processes, files.

#[path = "../support/authority.rs"]
mod authority;
mod demo;
mod dns;
mod http;
mod kube;
mod peers;
mod postgres_client;
mod postgres_files;
#[path = "../support/postgresql.rs"]
mod postgresql;
mod proxy;
mod supervisor;
#[path = "../support/user.rs"]
mod user;
