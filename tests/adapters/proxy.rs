//! The routing endpoints in front of a real primary and two real standbys.

mod cluster;
mod ends;
mod hostile;
mod routes;
mod sessions;
mod waiting;
