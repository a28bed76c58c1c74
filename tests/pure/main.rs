//! Tests of the pure floor: seconds, no PostgreSQL, no sockets.

mod decision_table;
mod exhaustive;
mod scenarios;
mod worlds;
