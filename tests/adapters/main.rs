//! Adapters against the real thing: sockets, servers, PostgreSQL.

mod http;
mod peers;
