//! A slow network: passes TCP connections on at a given rate, so that a copy takes long enough to be met midway.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const CHUNK_BYTES: usize = 32 * 1024;

/// Listens until dropped; connections live as long as their ends.
pub(crate) struct Relay {
    ended: Arc<AtomicBool>,
    address: SocketAddr,
}

impl Relay {
    /// Passes what comes to `from` on to `to`, and back, each direction at `bytes_per_second`.
    pub(crate) fn start(from: SocketAddr, to: SocketAddr, bytes_per_second: u32) -> Self {
        let listener = TcpListener::bind(from).expect("relay");
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ended);
        thread::spawn(move || {
            for client in listener.incoming() {
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(to)) {
                    pass(&client, &server, bytes_per_second);
                    pass(&server, &client, bytes_per_second);
                }
            }
        });
        Self { ended, address: from }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the listener.
        TcpStream::connect(self.address).ok();
    }
}

fn pass(from: &TcpStream, to: &TcpStream, bytes_per_second: u32) {
    let (mut from, mut to) = (from.try_clone().expect("clone"), to.try_clone().expect("clone"));
    thread::spawn(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            if to.write_all(&chunk[..length]).is_err() {
                break;
            }
            let length = u32::try_from(length).expect("a chunk");
            thread::sleep(Duration::from_secs(1) * length / bytes_per_second);
        }
        to.shutdown(Shutdown::Write).ok();
        from.shutdown(Shutdown::Read).ok();
    });
}
