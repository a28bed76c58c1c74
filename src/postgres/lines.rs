//! Splits what a program prints into lines, for callers that wait for several things at once.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longer lines are cut: nothing that podgres reads is longer.
const LINE_BYTES: usize = 16 * 1024;

/// Splits a stream at line feeds and carriage returns (progress reports).
pub(super) struct Lines<R> {
    reader: Option<R>,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(reader: Option<R>) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
        }
    }

    /// The stream itself, if no line was read from it.
    pub(super) fn take(&mut self) -> Option<R> {
        self.reader.take()
    }

    /// `None` at the end of the stream. May be dropped half way without losing a byte.
    pub(super) async fn next(&mut self) -> Option<String> {
        loop {
            let seen = &self.buffer[..self.buffer.len().min(LINE_BYTES)];
            let end = seen.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            if let Some(end) = end.or((seen.len() == LINE_BYTES).then_some(LINE_BYTES - 1)) {
                let line = self.buffer.split_to(end + 1);
                return Some(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
            }
            let reader = self.reader.as_mut()?;
            if !matches!(reader.read_buf(&mut self.buffer).await, Ok(count) if count > 0) {
                self.reader = None;
                let rest = self.buffer.split();
                return (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_of_line_count_and_long_lines_are_cut() {
        let long = "x".repeat(LINE_BYTES + 10);
        let text = format!("a\rb\n\n{long}\nrest");
        let mut lines = Lines::new(Some(text.as_bytes()));
        let mut found = Vec::new();
        while let Some(line) = lines.next().await {
            found.push(line);
        }
        assert_eq!(found[..3], ["a", "b", ""]);
        assert_eq!((found[3].len(), found[4].len()), (LINE_BYTES, 10));
        assert_eq!(found[5], "rest");
    }
}
