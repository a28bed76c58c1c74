//! Asks the supervisor over its unix socket: one JSON line there, one back.
//!
//! Keeps one connection for short requests and one for [`SupervisorRequest::Wait`], so that a long
//! poll holds up nothing; connects anew when the supervisor has been restarted. Never decides
//! anything and never asks twice behind the caller's back, except over a connection found closed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;

use crate::core::supervision::{MAX_LINE_BYTES, SupervisorReply, SupervisorRequest};

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorClientError {
    /// No supervisor listens there now, or it went away while it was asked.
    #[error("could not reach the supervisor at \"{}\"", path.display())]
    NotReachable { path: PathBuf, source: io::Error },
    /// No answer in time; whether the request was carried out is not known.
    #[error("supervisor at \"{}\" did not answer within {} ms", path.display(), timeout.as_millis())]
    TimedOut { path: PathBuf, timeout: Duration },
    /// The request does not fit the supervisor's state; the text is its own.
    #[error("supervisor refused: {message}")]
    Refused { message: String },
    /// The answer is no line of the protocol: another program, or another version of this one.
    #[error("supervisor at \"{}\" sent a line that cannot be read: {detail}", path.display())]
    Garbage { path: PathBuf, detail: String },
}

/// One supervisor, reached by its socket's path. Connects only when asked something.
#[derive(Debug)]
pub struct SupervisorClient {
    path: PathBuf,
    requests: Mutex<Option<Connection>>,
    waits: Mutex<Option<Connection>>,
}

impl SupervisorClient {
    /// A client for the socket at `path`; opens nothing yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            requests: Mutex::new(None),
            waits: Mutex::new(None),
        }
    }

    /// Sends one request and gives the reply, which is never [`SupervisorReply::Refused`].
    ///
    /// `timeout` bounds everything, waiting for an earlier request included; for a `Wait` it must be
    /// longer than the request's own. A limited licence counts from the supervisor's receipt, which
    /// is up to `timeout` later than this call. Dropping the future is safe: its connection goes with it.
    ///
    /// # Errors
    /// See [`SupervisorClientError`]; a refusal is an error too.
    pub async fn request(
        &self,
        request: SupervisorRequest,
        timeout: Duration,
    ) -> Result<SupervisorReply, SupervisorClientError> {
        match tokio::time::timeout(timeout, self.exchange(&request)).await {
            Ok(Ok(SupervisorReply::Refused { message })) => Err(SupervisorClientError::Refused { message }),
            Ok(result) => result,
            Err(_) => Err(SupervisorClientError::TimedOut {
                path: self.path.clone(),
                timeout,
            }),
        }
    }

    async fn exchange(&self, request: &SupervisorRequest) -> Result<SupervisorReply, SupervisorClientError> {
        let mut line = serde_json::to_vec(request).map_err(|e| self.garbage(&e.to_string()))?;
        line.push(b'\n');
        let slot = match request {
            SupervisorRequest::Wait { .. } => &self.waits,
            _ => &self.requests,
        };
        let mut slot = slot.lock().await;
        // Taken out while in use: an exchange dropped half way must not leave its reply to the next one.
        if let Some(mut kept) = slot.take()
            && let Ok(Some(reply)) = kept.exchange(&line).await
        {
            return self.read(&reply, kept, &mut slot);
        }
        let not_reachable = |source| SupervisorClientError::NotReachable {
            path: self.path.clone(),
            source,
        };
        let mut fresh = Connection::open(&self.path).await.map_err(not_reachable)?;
        match fresh.exchange(&line).await.map_err(not_reachable)? {
            Some(reply) => self.read(&reply, fresh, &mut slot),
            None => Err(not_reachable(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Keeps the connection only if it speaks the protocol.
    fn read(
        &self,
        line: &[u8],
        connection: Connection,
        slot: &mut Option<Connection>,
    ) -> Result<SupervisorReply, SupervisorClientError> {
        if line.last() != Some(&b'\n') {
            return Err(self.garbage("it is cut off or too long"));
        }
        let reply = serde_json::from_slice(line).map_err(|e| self.garbage(&e.to_string()))?;
        *slot = Some(connection);
        Ok(reply)
    }

    fn garbage(&self, detail: &str) -> SupervisorClientError {
        SupervisorClientError::Garbage {
            path: self.path.clone(),
            detail: detail.to_owned(),
        }
    }
}

#[derive(Debug)]
struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Connection {
    async fn open(path: &Path) -> io::Result<Self> {
        let (read, writer) = UnixStream::connect(path).await?.into_split();
        Ok(Self {
            reader: BufReader::with_capacity(2048, read),
            writer,
        })
    }

    /// `None` if the other side closed without a byte. A line too long comes back without its newline.
    async fn exchange(&mut self, line: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.writer.write_all(line).await?;
        let mut reply = Vec::new();
        let limit = MAX_LINE_BYTES as u64 + 1;
        (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut reply)
            .await?;
        Ok((!reply.is_empty()).then_some(reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const LIMIT: Duration = Duration::from_secs(5);

    fn refusal(message: &str) -> Vec<u8> {
        let reply = SupervisorReply::Refused {
            message: message.into(),
        };
        let mut line = serde_json::to_vec(&reply).unwrap();
        line.push(b'\n');
        line
    }

    /// Accepts one connection for each entry, reads one line on it, sends the entry and closes.
    fn answer_with(path: &Path, replies: Vec<Vec<u8>>) {
        let listener = UnixListener::bind(path).unwrap();
        tokio::spawn(async move {
            for reply in replies {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
    }

    #[tokio::test]
    async fn every_bad_answer_has_its_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let client = SupervisorClient::new(&path);
        let ask = |limit| client.request(SupervisorRequest::Status, limit);
        let error = ask(LIMIT).await.unwrap_err();
        assert!(
            matches!(error, SupervisorClientError::NotReachable { .. }),
            "{error:?}"
        );

        let long = vec![b'x'; MAX_LINE_BYTES + 100];
        let replies = vec![
            refusal("no"),
            b"hello\n".to_vec(),
            long,
            b"{\"reply\":".to_vec(),
            Vec::new(),
        ];
        answer_with(&path, replies);
        let error = ask(LIMIT).await.unwrap_err();
        assert!(matches!(&error, SupervisorClientError::Refused { message } if message == "no"));
        for _ in 0..3 {
            let error = ask(LIMIT).await.unwrap_err();
            assert!(
                matches!(error, SupervisorClientError::Garbage { .. }),
                "{error:?}"
            );
        }
        let error = ask(LIMIT).await.unwrap_err();
        assert!(
            matches!(error, SupervisorClientError::NotReachable { .. }),
            "{error:?}"
        );
        let error = ask(Duration::from_millis(50)).await.unwrap_err();
        assert!(
            matches!(error, SupervisorClientError::TimedOut { .. }),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_closed_connection_is_opened_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        answer_with(&path, vec![refusal("first"), refusal("second")]);
        let client = SupervisorClient::new(&path);
        for expected in ["first", "second"] {
            let error = client
                .request(SupervisorRequest::Status, LIMIT)
                .await
                .unwrap_err();
            assert!(matches!(error, SupervisorClientError::Refused { message } if message == expected));
        }
    }
}
