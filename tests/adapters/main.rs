//! Adapters against the real thing: PostgreSQL, sockets, processes, files.

mod dns;
mod proxy;
mod supervisor;
mod postgres_client;
