//! The session itself: bytes both ways until one side ends, or until it is cut.
//!
//! One future for both directions, without a buffer of its own: an idle session is two sockets and this. A cut says
//! nothing to the client: an `ErrorResponse` in the middle of a message, or of TLS, would be worse than a close.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::direction::Direction;
use super::session::{Order, Session, Side};
use super::stats::RouteStats;

/// For a client to read the server's last words.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// What a client may still send meanwhile.
const LINGER_BYTES: u64 = 64 * 1024;

/// How a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client has, or a connection broke.
    Client,
    /// The server has, and the client has got everything.
    Server,
    Cut,
}

/// Relays between the two until it ends. Dropped, it closes both.
pub(super) struct Relay {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    session: Arc<Session>,
    stats: Arc<RouteStats>,
    up: Direction,
    down: Direction,
}

impl Relay {
    pub(super) fn new(
        client: TcpStream,
        server: TcpStream,
        session: Arc<Session>,
        stats: Arc<RouteStats>,
    ) -> Self {
        Self {
            client,
            server,
            session,
            stats,
            up: Direction::default(),
            down: Direction::default(),
        }
    }

    /// Runs to the end and closes both sides as it is due.
    pub(super) async fn run(mut self) -> Ended {
        let ended = (&mut self).await;
        match ended {
            // What is still on its way to a server that must not be written to is thrown away.
            Ended::Cut => drop(self.server.set_zero_linger()),
            Ended::Server => Box::pin(linger(self.client)).await,
            Ended::Client => {}
        }
        ended
    }

    fn count_bytes(&mut self) {
        for (direction, total) in [
            (&mut self.up, &self.stats.bytes_to_server_total),
            (&mut self.down, &self.stats.bytes_to_client_total),
        ] {
            total.fetch_add(direction.take_count(), Ordering::Relaxed);
        }
    }
}

impl Future for Relay {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        let relay = &mut *self;
        let order = relay.session.order(context.waker());
        if order == Order::Cut {
            return Poll::Ready(Ended::Cut);
        }
        let (client, server) = (&mut relay.client, &mut relay.server);
        let reading = order == Order::Run;
        let session = &relay.session;
        let up = relay
            .up
            .poll(context, client, server, reading, || session.spoke(Side::Client));
        let down = relay
            .down
            .poll(context, server, client, true, || session.spoke(Side::Server));
        if order == Order::Freeze {
            session.froze(relay.up.is_empty());
        }
        relay.count_bytes();
        match (up, down) {
            (_, Poll::Ready(Ok(()))) => Poll::Ready(Ended::Server),
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Poll::Ready(Ended::Client),
            (Poll::Ready(Ok(())) | Poll::Pending, Poll::Pending) => Poll::Pending,
        }
    }
}

/// Closes so that the client can read what came last: a close with unread bytes would reset the connection.
async fn linger(mut client: TcpStream) {
    let _in_time = timeout(LINGER_TIMEOUT, async move {
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(LINGER_BYTES), &mut tokio::io::sink()).await
    })
    .await;
}
