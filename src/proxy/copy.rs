//! One direction of a session whose ends are not both sockets: TLS on at least one side.
//!
//! Copies through the buffer that all sessions of a thread share, as `direction` does, and passes on what TLS holds
//! back before it reads more. Understands no byte of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::direction::with_buffer;
use super::relay::{End, Progress, Way};

/// How far the direction has got.
#[derive(Debug, Default)]
pub(super) struct Copy {
    /// Read, and not taken by the receiver's TLS yet.
    rest: Vec<u8>,
    /// The receiver's TLS may hold something back.
    unflushed: bool,
    end: End,
    bytes: u64,
}

impl Copy {
    /// Begins with what was read before.
    pub(super) fn after(rest: Vec<u8>) -> Self {
        Self {
            rest,
            ..Self::default()
        }
    }
}

impl<F, T> Way<F, T> for Copy
where
    F: AsyncRead + Unpin,
    T: AsyncWrite + Unpin,
{
    fn end(&mut self) -> &mut End {
        &mut self.end
    }

    fn poll_rest(&mut self, context: &mut Context<'_>, to: &mut T) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(context, &self.rest))?;
            self.bytes += written as u64;
            self.rest.drain(..written);
            self.unflushed = true;
        }
        self.rest = Vec::new();
        if self.unflushed {
            ready!(Pin::new(to).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_step(
        &mut self,
        context: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        heard: &impl Fn(),
    ) -> Poll<io::Result<()>> {
        with_buffer(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            match ready!(Pin::new(from).poll_read(context, &mut buffer)) {
                // Many clients close without a word of TLS; what they sent before is whole messages or of no use.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                read => read?,
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.end = End::Read;
                return Poll::Ready(Ok(()));
            }
            heard();
            let taken = match Pin::new(to).poll_write(context, read) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.bytes += taken as u64;
            self.unflushed = true;
            self.rest.extend_from_slice(read.get(taken..).unwrap_or_default());
            Poll::Ready(Ok(()))
        })
    }
}

impl Progress for Copy {
    fn is_empty(&self) -> bool {
        self.rest.is_empty() && !self.unflushed
    }

    fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_receiver_that_takes_little_gets_everything_in_the_end() {
        let (mut sender, mut from) = tokio::io::duplex(1 << 20);
        let (mut to, mut receiver) = tokio::io::duplex(100);
        let sent: Vec<u8> = (0..10_000_u32).flat_map(u32::to_be_bytes).collect();
        sender.write_all(&sent).await.expect("sent");
        drop(sender);
        let mut copy = Copy::after(b"first".to_vec());
        let pumped = std::future::poll_fn(|context| copy.poll(context, &mut from, &mut to, true, || ()));
        let mut got = Vec::new();
        let reading = tokio::io::AsyncReadExt::read_to_end(&mut receiver, &mut got);
        let (pumped, read) = tokio::join!(pumped, reading);
        pumped.expect("pumped");
        read.expect("read");
        assert_eq!(got, [b"first", sent.as_slice()].concat());
        assert_eq!((copy.take_count(), copy.is_empty()), (got.len() as u64, true));
    }

    #[tokio::test]
    async fn a_direction_that_may_not_read_leaves_the_bytes() {
        let (mut sender, mut from) = tokio::io::duplex(100);
        let (mut to, _receiver) = tokio::io::duplex(100);
        sender.write_all(b"later").await.expect("sent");
        let (mut copy, waker) = (Copy::default(), noop_waker());
        let mut context = Context::from_waker(&waker);
        let heard = || panic!("read");
        assert!(
            copy.poll(&mut context, &mut from, &mut to, false, heard)
                .is_pending()
        );
        assert!(copy.is_empty());
    }
}
