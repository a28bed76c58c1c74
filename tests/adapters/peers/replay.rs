//! Waits for replay: on connections that are kept, and that may have ended meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use podgres::core::wal::Lsn;
use podgres::peers::{Reach, ReplayWaits};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const REACHED: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 16\r\n\r\n{\"reached\":true}";

/// A member that has replayed everything, and ends each connection after `answers`. Says of each answer on which connection it was.
async fn member(answers: usize) -> (SocketAddr, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for connection in 0.. {
            let (socket, _) = listener.accept().await.expect("a connection");
            let mut lines = BufReader::new(socket);
            for _ in 0..answers {
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    assert!(
                        lines.read_line(&mut line).await.expect("a line") > 0,
                        "ended early"
                    );
                }
                lines.write_all(REACHED.as_bytes()).await.expect("answered");
                sender.send(connection).expect("counted");
            }
        }
    });
    (address, receiver)
}

/// A connection, and with certificates a whole handshake, was made for each client that brought a token.
#[tokio::test]
async fn each_causal_read_made_a_connection_of_its_own() {
    let (address, mut answers) = member(2).await;
    let (waits, reach) = (ReplayWaits::default(), Reach::from(address));
    // The member ends each after two answers: the question that meets that end is put again.
    for expected in [0, 0, 1, 1, 2] {
        let reached = waits.wait(&reach, Lsn(1), Duration::from_secs(5)).await;
        assert!(reached.expect("an answer"));
        assert_eq!(answers.recv().await, Some(expected));
    }
}
