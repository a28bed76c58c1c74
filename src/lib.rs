//! podgres: turns an ordinary StatefulSet with an ordinary PostgreSQL image into a replicated database.
//!
//! Rooms, from the ground up (imports go down only; `tests/pure` holds the code to it):
//!
//! - [`core`]: decisions as pure functions.
//! - [`postgres`], `http`, `proxy`, `dns`, `peers`, `supervisor_client`: one outside thing each.
//! - `agent`, `supervisor`, `demo`: where deciding meets doing.
//! - `cmd`, `config`, `telemetry`: the command line.

pub mod core;
pub mod http;
pub mod peers;
pub mod postgres;
