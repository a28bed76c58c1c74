//! Kernel pipes for splice(2): few, made when bulk data needs them, given back between two chunks.
//!
//! Pipes count against a limit of the user's (`pipe-user-pages-soft`), so their number is bounded; a session
//! that gets none copies.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::workers::MAX_THREADS;

/// In the whole process.
const MAX_PIPES: usize = 32;
/// That a thread keeps for later: all threads together leave some for one that has none.
const MAX_IDLE: usize = MAX_PIPES / MAX_THREADS;
/// What one pipe is asked to hold; the kernel may give less.
const PIPE_BYTES: usize = 256 * 1024;
/// What one call moves at most.
const CHUNK_BYTES: usize = PIPE_BYTES;

static MADE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IDLE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
    held_bytes: usize,
}

impl Pipe {
    /// An empty one, if the bound allows it.
    pub(super) fn take() -> Option<Self> {
        IDLE.with_borrow_mut(Vec::pop).or_else(Self::make)
    }

    fn make() -> Option<Self> {
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let opened = (made < MAX_PIPES).then(|| pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok());
        let Some((read_end, write_end)) = opened.flatten() else {
            MADE.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        // Beyond the user's limit the pipe stays smaller, and works.
        let _granted = fcntl_setpipe_size(&write_end, PIPE_BYTES);
        Some(Self {
            read_end,
            write_end,
            held_bytes: 0,
        })
    }

    /// Gives an empty pipe back; one with bytes in it is closed, and one that is too many.
    pub(super) fn give_back(self) {
        if self.is_empty() {
            IDLE.with_borrow_mut(|idle| {
                if idle.len() < MAX_IDLE {
                    idle.push(self);
                }
            });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held_bytes == 0
    }

    /// Moves what `from` has into the pipe; 0 at its end.
    pub(super) fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let moved = splice(from, None, &self.write_end, None, CHUNK_BYTES, flags())?;
        self.held_bytes += moved;
        Ok(moved)
    }

    /// Moves what the pipe has on to `to`, as far as it takes it.
    pub(super) fn empty_into(&mut self, to: impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.read_end, None, to, None, self.held_bytes, flags())?;
        self.held_bytes = self.held_bytes.saturating_sub(moved);
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        MADE.fetch_sub(1, Ordering::Relaxed);
    }
}

fn flags() -> SpliceFlags {
    SpliceFlags::MOVE | SpliceFlags::NONBLOCK
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// The bound is the whole process'.
    static ALONE: Mutex<()> = Mutex::new(());

    fn all() -> Vec<Pipe> {
        std::iter::from_fn(Pipe::take).take(MAX_PIPES * 2).collect()
    }

    /// Those that came back stayed with the thread, however many: the others copied from then on.
    #[test]
    fn the_thread_that_once_had_all_pipes_kept_them_for_good() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = || all().into_iter().for_each(Pipe::give_back);
        let (keep, kept) = std::sync::mpsc::channel::<()>();
        let (done, busied) = std::sync::mpsc::channel();
        let others: Vec<_> = (1..MAX_THREADS)
            .map(|_| {
                let (done, keep) = (done.clone(), keep.clone());
                std::thread::spawn(move || {
                    busy();
                    done.send(()).expect("the test waits");
                    // The idle ones go with their thread.
                    while keep.send(()).is_ok() {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                })
            })
            .collect();
        for _ in &others {
            busied.recv().expect("busied");
        }
        let pipe = std::thread::spawn(|| Pipe::take().is_some());
        assert!(pipe.join().expect("no panic"), "nothing is left");
        drop(kept);
        for other in others {
            other.join().expect("no panic");
        }
    }

    #[test]
    fn what_goes_in_comes_out_and_the_number_is_bounded() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut client, from) = UnixStream::pair().expect("pair");
        let (to, mut server) = UnixStream::pair().expect("pair");
        client.write_all(b"some rows").expect("write");
        let mut pipe = Pipe::take().expect("a pipe");
        assert_eq!(pipe.fill(&from).expect("fill"), 9);
        assert!(!pipe.is_empty());
        assert_eq!(pipe.empty_into(&to).expect("empty"), 9);
        assert!(pipe.is_empty());
        let mut got = [0; 9];
        server.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"some rows");

        let all = all();
        assert!(all.len() <= MAX_PIPES && Pipe::take().is_none(), "{}", all.len());
        all.into_iter().for_each(Pipe::give_back);
        assert!(Pipe::take().is_some());
    }
}
