//! The kubelet's HTTP probe: one GET, and nothing of the answer but its status.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// As much of an answer as is read for its status line.
const STATUS_LINE_BYTES: usize = 64;

/// Whether a GET of `path` is answered with 200 within `limit`.
pub(super) async fn succeeds(address: SocketAddr, path: &str, limit: Duration) -> bool {
    matches!(
        tokio::time::timeout(limit, status(address, path)).await,
        Ok(Ok(200))
    )
}

async fn status(address: SocketAddr, path: &str) -> io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(STATUS_LINE_BYTES);
    let mut limited = stream.take(STATUS_LINE_BYTES as u64);
    while !answer.contains(&b'\n') {
        if limited.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    parse_status(&answer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn parse_status(answer: &[u8]) -> Option<u16> {
    let text = answer.strip_prefix(b"HTTP/1.")?;
    let mut words = text.split(u8::is_ascii_whitespace);
    words.next()?;
    std::str::from_utf8(words.next()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_has_a_status() {
        assert_eq!(parse_status(b"HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(parse_status(b"HTTP/1.0 503 Service Unavailable\r\n"), Some(503));
        for other in [
            &b""[..],
            b"HTTP/1.1",
            b"HTTP/1.1 abc\r\n",
            b"SSH-2.0 200\r\n",
            b"\xff\xfe 200",
        ] {
            assert_eq!(parse_status(other), None);
        }
    }
}
