//! Options of the sockets on both sides of a route.
//!
//! A peer that vanished without a word is noticed within about a minute.

use std::io;
use std::time::Duration;

use rustix::net::{RecvFlags, recv, sockopt};
use tokio::net::TcpStream;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged; about what the probes take altogether.
const USER_TIMEOUT_MS: u32 = 60_000;

/// No delay for small messages, and probes for a silent peer.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
    Ok(())
}

/// Whether the peer's bytes wait in the kernel right now; asks the kernel, not tokio's memory of it.
pub(super) fn has_bytes(stream: &TcpStream) -> bool {
    let mut byte = [0_u8; 1];
    recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok_and(|(_, length)| length > 0)
}
