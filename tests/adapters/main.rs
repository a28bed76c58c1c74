//! Adapters against the real thing: PostgreSQL, sockets, processes.

mod dns;
//! What touches the outside, tried against the real thing: PostgreSQL, sockets, files.

mod proxy;
