//! Adapters against the real thing: PostgreSQL, sockets, processes, files.

mod demo;
mod dns;
mod http;
mod peers;
mod postgres_client;
mod postgres_files;
mod proxy;
mod supervisor;
