//! Adapters against the real thing: PostgreSQL, sockets, file systems.

mod postgres_files;
mod supervisor;
