//! podgres: turns an ordinary StatefulSet with an ordinary PostgreSQL image into a replicated database.
//!
//! Rooms, from the ground up (imports go down only; `tests/pure` holds the code to it):
//!
//! - [`core`]: decisions as pure functions.
//! - [`postgres`], [`http`], [`kube`], [`proxy`], [`dns`], [`peers`], [`store`], [`supervisor_client`]: one outside thing each.
//! - [`agent`], [`supervisor`], [`demo`], [`backup`]: where deciding meets doing.
//! - [`cmd`], [`config`], [`telemetry`]: the command line.

pub mod agent;
pub mod backup;
pub mod clock;
pub mod cmd;
pub mod config;
pub mod core;
pub mod demo;
pub mod dns;
pub mod files;
pub mod http;
pub mod kube;
pub mod peers;
pub mod postgres;
pub mod proxy;
pub mod store;
pub mod supervisor;
pub mod supervisor_client;
pub mod telemetry;
mod watched;
