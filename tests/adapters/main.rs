//! The adapters against the real thing: real PostgreSQL, real sockets.

mod postgres_client;
