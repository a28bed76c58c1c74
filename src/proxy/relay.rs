//! The session itself: bytes both ways until one side ends, or until it is cut.
//!
//! One future for both directions, without a buffer of its own: an idle session is two sockets and this. A cut says
//! nothing to the client: an `ErrorResponse` in the middle of a message, or of TLS, would be worse than a close.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{client, server};

use super::connection::Occupied;
use super::session::{Order, Session, Side};
use super::socket::bear_with;
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

/// One end of a session.
pub(super) trait Peer: AsyncRead + AsyncWrite + Unpin {
    fn socket(&self) -> &TcpStream;
}

impl Peer for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Peer for client::TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

impl Peer for server::TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// How far a direction has got.
pub(super) trait Progress {
    /// Nothing that was read waits to be taken.
    fn is_empty(&self) -> bool;

    /// Bytes moved since this was asked last.
    fn take_count(&mut self) -> u64;
}

/// Where a direction is on its way to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    #[default]
    Open,
    /// The sender has ended; the receiver is to be told once it has everything.
    Read,
    Told,
}

/// Reads in a row, then others have their turn.
const ROUNDS: usize = 16;

/// One direction of a session.
pub(super) trait Way<F, T: AsyncWrite + Unpin>: Progress {
    fn end(&mut self) -> &mut End;

    /// Passes on what was read before and the receiver has not taken.
    fn poll_rest(&mut self, context: &mut Context<'_>, to: &mut T) -> Poll<io::Result<()>>;

    /// Reads once and passes on what the receiver takes; notes the sender's end. `heard` is called in between.
    fn poll_step(
        &mut self,
        context: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        heard: &impl Fn(),
    ) -> Poll<io::Result<()>>;

    /// Moves what there is. Ready once the sender has ended and the receiver has been told.
    ///
    /// With `may_read` false nothing more is read. `heard` is called before what was read is passed on.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        may_read: bool,
        heard: impl Fn(),
    ) -> Poll<io::Result<()>> {
        for _round in 0..ROUNDS {
            ready!(self.poll_rest(context, to))?;
            match *self.end() {
                End::Told => return Poll::Ready(Ok(())),
                End::Read => {
                    // One that has gone already needs not be told.
                    let _gone = ready!(Pin::new(&mut *to).poll_shutdown(context));
                    *self.end() = End::Told;
                    return Poll::Ready(Ok(()));
                }
                End::Open if !may_read => return Poll::Pending,
                End::Open => {}
            }
            ready!(self.poll_step(context, from, to, &heard))?;
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Relays between the two until it ends. Dropped, it closes both.
pub(super) struct Relay<C, S, W> {
    client: C,
    server: S,
    session: Arc<Session>,
    stats: Arc<RouteStats>,
    up: W,
    down: W,
    /// Of client and server: see [`bear_with`].
    lifted: [bool; 2],
}

impl<C, S, W> Relay<C, S, W>
where
    C: Peer,
    S: Peer,
    W: Way<C, S> + Way<S, C> + Unpin,
{
    /// `up` leads from the client to the server, `down` back.
    pub(super) fn new(
        (client, up): (C, W),
        (server, down): (S, W),
        session: Arc<Session>,
        stats: Arc<RouteStats>,
    ) -> Self {
        Self {
            client,
            server,
            session,
            stats,
            up,
            down,
            lifted: [false; 2],
        }
    }

    /// Runs to the end and closes both sides as it is due.
    pub(super) async fn run(mut self, occupied: Occupied) {
        match (&mut self).await {
            // What is still on its way to a server that must not be written to is thrown away.
            Ended::Cut => drop(self.server.socket().set_zero_linger()),
            Ended::Server => Box::pin(self.leave(occupied)).await,
            Ended::Client => {}
        }
    }

    /// The session is over, and nobody has to wait for a client that does not look.
    async fn leave(self, occupied: Occupied) {
        let Self {
            client,
            server,
            session,
            ..
        } = self;
        drop((server, session, occupied.listed));
        linger(client).await;
        drop(occupied.places);
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

impl<C, S, W> Future for Relay<C, S, W>
where
    C: Peer,
    S: Peer,
    W: Way<C, S> + Way<S, C> + Unpin,
{
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        let relay = &mut *self;
        let order = relay.session.order(context.waker());
        if order == Order::Cut {
            return Poll::Ready(Ended::Cut);
        }
        let (client, server) = (&mut relay.client, &mut relay.server);
        if relay.session.takes_look() {
            for (socket, lifted) in [client.socket(), server.socket()]
                .into_iter()
                .zip(&mut relay.lifted)
            {
                // One that cannot be asked is broken, which reading tells.
                let _asked = bear_with(socket, lifted);
            }
        }
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
async fn linger(mut client: impl Peer) {
    let _in_time = timeout(LINGER_TIMEOUT, async move {
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(LINGER_BYTES), &mut tokio::io::sink()).await
    })
    .await;
}
