//! Options of the sockets on both sides of a route.
//!
//! A peer that vanished without a word is noticed within about a minute; one that is there and has no room for more may take its time.

use std::io;
use std::time::Duration;

use rustix::ioctl::{Getter, ioctl};
use rustix::net::{RecvFlags, recv, sockopt};
use tokio::net::TcpStream;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged; about what the probes take altogether.
const USER_TIMEOUT_MS: u32 = 60_000;
/// linux/sockios.h: bytes that are not acknowledged, sent or not, and those of them that are not sent.
const SIOCOUTQ: u32 = 0x5411;
const SIOCOUTQNSD: u32 = 0x894b;

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

/// Lifts the limit on unacknowledged bytes while the peer has acknowledged all that was sent and has no room for the rest, and sets it again after
/// that: the kernel counts such bytes too. To be asked a few times within the limit. `lifted` is how it was left.
///
/// A peer that vanishes with no room is noticed by the kernel's own patience (`net.ipv4.tcp_retries2`, about a quarter of an hour).
pub(super) fn bear_with(stream: &TcpStream, lifted: &mut bool) -> io::Result<()> {
    let unsent = queued::<SIOCOUTQNSD>(stream)?;
    let full = unsent > 0 && queued::<SIOCOUTQ>(stream)? == unsent;
    if full != *lifted {
        sockopt::set_tcp_user_timeout(stream, if full { 0 } else { USER_TIMEOUT_MS })?;
        *lifted = full;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "rustix cannot know what a request number writes")]
fn queued<const REQUEST: u32>(stream: &TcpStream) -> io::Result<i32> {
    // SAFETY: both requests write one int, and read nothing.
    let queued = unsafe { ioctl(stream, Getter::<REQUEST, i32>::new()) };
    Ok(queued?)
}

/// Whether the peer's bytes wait in the kernel right now; asks the kernel, not tokio's memory of it.
pub(super) fn has_bytes(stream: &TcpStream) -> bool {
    let mut byte = [0_u8; 1];
    recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok_and(|(_, length)| length > 0)
}
