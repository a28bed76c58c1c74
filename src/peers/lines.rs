//! Whole lines out of a stream of chunks, none longer than a bound.

/// A peer's line may have this many bytes; a status of a large cluster has some thousand.
pub(super) const MAX_LINE_BYTES: usize = 256 * 1024;

/// A line longer than [`MAX_LINE_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Collects chunks until they make a line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Bytes at the front without a line end among them.
    searched: usize,
}

impl Lines {
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole line without its end; `None` if more chunks are needed.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let found = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n');
        let Some(length) = found.map(|at| self.searched + at) else {
            self.searched = self.buffer.len();
            return if self.searched > MAX_LINE_BYTES {
                Err(TooLong)
            } else {
                Ok(None)
            };
        };
        if length > MAX_LINE_BYTES {
            return Err(TooLong);
        }
        let rest = self.buffer.split_off(length + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.truncate(length);
        self.searched = 0;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_are_cut() {
        let text = b"one\n\n{\"two\": 2}\nrest";
        for size in 1..=text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for chunk in text.chunks(size) {
                lines.push(chunk);
                while let Some(line) = lines.next().expect("short lines") {
                    found.push(String::from_utf8(line).expect("text"));
                }
            }
            assert_eq!(found, ["one", "", "{\"two\": 2}"], "chunks of {size}");
        }
    }

    #[test]
    fn a_line_has_at_most_the_bound() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE_BYTES]);
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"\n");
        assert_eq!(
            lines.next().expect("just fits").map(|line| line.len()),
            Some(MAX_LINE_BYTES)
        );
        lines.push(&vec![b'x'; MAX_LINE_BYTES + 1]);
        assert_eq!(lines.next(), Err(TooLong));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_make_the_same_lines_however_they_are_cut(
            bytes in proptest::collection::vec(proptest::prop_oneof![proptest::prelude::Just(b'\n'), proptest::prelude::any::<u8>()], 0..200),
            size in 1..50usize,
        ) {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for chunk in bytes.chunks(size) {
                lines.push(chunk);
                while let Some(line) = lines.next().expect("short lines") {
                    found.push(line);
                }
            }
            let mut expected: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            expected.pop();
            proptest::prop_assert_eq!(found, expected);
        }
    }
}
