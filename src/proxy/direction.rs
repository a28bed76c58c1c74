//! One direction of a session: reads from one socket, writes to the other, and keeps what does not fit.
//!
//! Copies through a buffer that all sessions of a thread share; moves to splice(2) while the data come in
//! bulk. Holds memory of its own only for what the receiver has not taken yet. Understands no byte of it.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead as _, AsyncWrite as _, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::pipes::Pipe;
use super::relay::{End, Progress, Way};

/// Shared by all sessions of a thread; a session that is not being polled has nothing in it.
const BUFFER_BYTES: usize = 64 * 1024;
/// A read of so much is a sign of bulk data: PostgreSQL sends 8 KiB at a time.
const LARGE_READ_BYTES: usize = 8 * 1024;
/// So many large reads in a row, and splice is tried.
const LARGE_READS: u8 = 4;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
}

/// Lends the thread's buffer, whose content means nothing before and after.
pub(super) fn with_buffer<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| work(buffer))
}

/// How far one direction has got.
#[derive(Debug, Default)]
pub(super) struct Direction {
    /// Read, and not taken by the receiver yet.
    rest: Vec<u8>,
    pipe: Option<Pipe>,
    large_reads: u8,
    end: End,
    /// Moved since the last [`Progress::take_count`].
    bytes: u64,
}

impl Progress for Direction {
    fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.pipe.as_ref().is_none_or(Pipe::is_empty)
    }

    fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Way<TcpStream, TcpStream> for Direction {
    fn end(&mut self) -> &mut End {
        &mut self.end
    }

    /// Writes what is kept, in memory or in the pipe.
    fn poll_rest(&mut self, context: &mut Context<'_>, to: &mut TcpStream) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(context, &self.rest))?;
            self.bytes += written as u64;
            self.rest.drain(..written);
        }
        if self.rest.capacity() > 0 {
            self.rest = Vec::new();
        }
        let Some(pipe) = &mut self.pipe else {
            return Poll::Ready(Ok(()));
        };
        while !pipe.is_empty() {
            ready!(to.poll_write_ready(context))?;
            match to.try_io(Interest::WRITABLE, || pipe.empty_into(&*to)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => self.bytes += written as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if self.large_reads < LARGE_READS {
            self.pipe.take().into_iter().for_each(Pipe::give_back);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_step(
        &mut self,
        context: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        heard: &impl Fn(),
    ) -> Poll<io::Result<()>> {
        if self.large_reads >= LARGE_READS && self.has_pipe() {
            self.poll_fill(context, from, heard)
        } else {
            self.poll_copy(context, from, to, heard)
        }
    }
}

impl Direction {
    fn has_pipe(&mut self) -> bool {
        if self.pipe.is_none() {
            self.pipe = Pipe::take();
        }
        self.pipe.is_some()
    }

    /// Through the shared buffer; what the receiver does not take at once is kept.
    fn poll_copy(
        &mut self,
        context: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        heard: &impl Fn(),
    ) -> Poll<io::Result<()>> {
        with_buffer(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(from).poll_read(context, &mut buffer))?;
            let read = buffer.filled();
            if read.is_empty() {
                self.end = End::Read;
                return Poll::Ready(Ok(()));
            }
            heard();
            self.note_size(read.len());
            let taken = match Pin::new(to).poll_write(context, read) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.bytes += taken as u64;
            self.rest.extend_from_slice(read.get(taken..).unwrap_or_default());
            Poll::Ready(Ok(()))
        })
    }

    fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        from: &mut TcpStream,
        heard: &impl Fn(),
    ) -> Poll<io::Result<()>> {
        let Some(pipe) = &mut self.pipe else {
            return Poll::Ready(Ok(()));
        };
        let filled = loop {
            if from.poll_read_ready(context)?.is_pending() {
                // Between two chunks the pipe serves others.
                self.pipe.take().into_iter().for_each(Pipe::give_back);
                return Poll::Pending;
            }
            match from.try_io(Interest::READABLE, || pipe.fill(&*from)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                filled => break filled?,
            }
        };
        if filled == 0 {
            self.end = End::Read;
        } else {
            heard();
            self.note_size(filled);
        }
        Poll::Ready(Ok(()))
    }

    fn note_size(&mut self, bytes: usize) {
        self.large_reads = if bytes >= LARGE_READ_BYTES {
            self.large_reads.saturating_add(1)
        } else {
            0
        };
    }
}
