//! Adapters against the real thing: PostgreSQL, sockets, processes.

mod demo;
mod dns;
