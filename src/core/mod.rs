//! The pure floor: plain data in, plain data out.
//!
//! Nothing here reads a clock, waits, draws a random number or touches a file. Every
//! decision that podgres takes is a function in this room, so that it can be tested by
//! table, enumerated, simulated and replayed.

pub mod backup;
pub mod causes;
pub mod cluster;
pub mod data_directory;
pub mod decide;
pub mod decision;
pub mod fnv;
pub mod lease;
pub mod manifests;
pub mod member;
pub mod observation;
pub mod operate;
pub mod policy;
pub mod route_table;
pub mod routing;
pub mod signature;
pub mod situation;
pub mod status;
pub mod supervision;
pub mod switch;
pub mod sync;
pub mod synchronous_names;
pub mod units;
pub mod wal;
pub mod wal_file;
