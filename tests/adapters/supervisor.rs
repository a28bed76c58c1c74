//! The supervisor as a process of its own, with real PostgreSQL below it and a real client at its socket.

mod control;
mod fence;
mod lifecycle;
mod pod;
mod processes;
