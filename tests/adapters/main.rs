//! Adapters against the real parts: PostgreSQL, sockets, processes.

mod supervisor;
