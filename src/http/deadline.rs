//! A socket whose reader must take what it is sent: a write that cannot go on for too long ends the connection.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Passes everything through, and fails with `TimedOut` a write that stood still for `limit`.
pub(super) struct WriteDeadline<S> {
    socket: S,
    limit: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteDeadline<S> {
    pub(super) fn new(socket: S, limit: Duration) -> Self {
        Self {
            socket,
            limit,
            stalled: None,
        }
    }

    /// Hands on what a write came to, and keeps the time while it comes to nothing.
    fn watch<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        debug_assert!(timer.deadline() <= Instant::now() + limit);
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteDeadline<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteDeadline<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.watch(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, parts);
        self.watch(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.watch(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_reader_that_takes_nothing_ends_the_write() {
        let (near, mut far) = tokio::net::UnixStream::pair().expect("pair");
        let mut near = WriteDeadline::new(near, Duration::from_millis(100));
        let started = Instant::now();
        let error = near.write_all(&vec![0; 8 << 20]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= Duration::from_millis(100));
        let mut taken = [0; 10];
        far.read_exact(&mut taken)
            .await
            .expect("what was written before arrives");
    }

    #[tokio::test]
    async fn a_slow_reader_that_goes_on_is_served_longer_than_the_limit() {
        let (near, mut far) = tokio::net::UnixStream::pair().expect("pair");
        let mut near = WriteDeadline::new(near, Duration::from_millis(200));
        let size = 4 << 20;
        let reader = tokio::spawn(async move {
            let (mut total, mut buffer) = (0, vec![0; 256 << 10]);
            while total < size {
                tokio::time::sleep(Duration::from_millis(20)).await;
                total += far.read(&mut buffer).await.expect("read");
            }
            total
        });
        near.write_all(&vec![1; size])
            .await
            .expect("no single stall reached the limit");
        drop(near);
        assert_eq!(reader.await.expect("reader"), size);
    }
}
