//! Whole clusters: the demo's processes on real PostgreSQL. Tests that begin with `row_` show a promise of `docs/promises.md`.

#![allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]

mod api;
mod api_calls;
mod api_way;
#[path = "../support/authority.rs"]
mod authority;
mod azure_server;
mod backup;
mod backup_archive;
mod backup_azure;
mod backup_docs;
mod backup_failover;
mod backup_faults;
mod backup_google;
mod backup_incremental;
mod backup_kill;
mod backup_prune;
mod backup_reads;
mod backup_s3;
mod backup_settings;
mod chaos;
mod chaos_lease;
mod containers;
mod exit_codes;
mod failover;
mod full_volume;
mod google_server;
mod hand;
mod harness;
mod hazards_clone;
mod hazards_deadlines;
mod hazards_first;
mod hazards_hostile;
mod hazards_secrets;
mod hazards_standby;
mod hazards_wal;
mod hazards_writers;
mod kit;
mod logical;
mod mounted;
mod mounted_refused;
mod moves;
#[path = "../support/namespaces.rs"]
mod namespaces;
mod network;
mod plain;
mod planned_stops;
mod pods;
#[path = "../support/postgresql.rs"]
mod postgresql;
mod preloaded;
mod relay;
mod repair;
mod replayed;
mod reviewed;
mod rotation;
mod routing;
#[path = "../support/s3_server.rs"]
mod s3_server;
mod scaling;
mod sidecars;
mod slots;
mod smoke;
mod steady;
mod steady_asked;
mod tags;
mod tls;
#[path = "../support/user.rs"]
mod user;
mod verbs;
mod verbs_refused;
mod volume;
