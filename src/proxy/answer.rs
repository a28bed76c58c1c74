//! How a server begins to answer a startup packet: whether it lets nobody in just now.
//!
//! One that starts or stops says so in place of a question for a password (57P03). Another may serve the client, or the same one in a moment.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

/// Why an attempt failed.
pub(super) const NO_SESSIONS_NOW: &str = "it takes no sessions just now (57P03)";
/// The code is among the first words of an error.
const ERROR_BYTES: usize = 256;
/// A message that has begun to arrive is there in a moment.
const PAUSE: Duration = Duration::from_millis(1);

/// Returns when the server has begun to answer, which is left to be read.
///
/// # Errors
/// It has closed the connection, or takes no sessions now.
pub(super) async fn begun(stream: &TcpStream) -> io::Result<()> {
    match peeked(stream, 1).await?.as_slice() {
        [b'E'] => {}
        _ => return Ok(()),
    }
    loop {
        match cannot_connect_now(&peeked(stream, ERROR_BYTES).await?) {
            Some(true) => return Err(io::Error::other(NO_SESSIONS_NOW)),
            Some(false) => return Ok(()),
            None => sleep(PAUSE).await,
        }
    }
}

async fn peeked(stream: &TcpStream, most: usize) -> io::Result<Vec<u8>> {
    let mut said = vec![0; most];
    let bytes = stream.peek(&mut said).await?;
    if bytes == 0 {
        return Err(io::Error::other("it closed the connection without an answer"));
    }
    said.truncate(bytes);
    Ok(said)
}

/// Whether these are the first bytes of an `ErrorResponse` with SQLSTATE 57P03; `None` as long as they may become that.
///
/// Source: the manual's "Message Formats" and "Error and Notice Message Fields".
pub(super) fn cannot_connect_now(said: &[u8]) -> Option<bool> {
    let (kind, rest) = said.split_first()?;
    if *kind != b'E' {
        return Some(false);
    }
    let fields = rest.get(4..)?;
    let mut fields = fields.split_inclusive(|byte| *byte == 0);
    let code = fields.find_map(|field| field.strip_prefix(b"C"));
    match code {
        Some(code) if code.ends_with(&[0]) => Some(code == b"57P03\0"),
        _ if said.len() >= ERROR_BYTES => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str) -> Vec<u8> {
        let fields = format!("SFATAL\0VFATAL\0C{code}\0Mthe database system is shutting down\0\0");
        let length = u32::try_from(fields.len() + 4).expect("short");
        [b"E", &length.to_be_bytes()[..], fields.as_bytes()].concat()
    }

    #[test]
    fn only_the_one_code_sends_a_client_on() {
        assert_eq!(cannot_connect_now(&error("57P03")), Some(true));
        for code in ["53300", "28000", "57P01", "57P0"] {
            assert_eq!(cannot_connect_now(&error(code)), Some(false), "{code}");
        }
        assert_eq!(cannot_connect_now(b"R\0\0\0\x08\0\0\0\0"), Some(false));
        let begun = error("57P03");
        let known = begun
            .windows(6)
            .position(|window| window == b"57P03\0")
            .expect("the code")
            + 6;
        for bytes in 0..known {
            assert_eq!(cannot_connect_now(&begun[..bytes]), None, "{bytes}");
        }
        assert_eq!(cannot_connect_now(&begun[..known]), Some(true));
        let long = [&error("")[..5], &[b'S'; ERROR_BYTES]].concat();
        assert_eq!(cannot_connect_now(&long), Some(false), "it has its say");
    }
}
