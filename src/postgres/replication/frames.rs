//! A walsender's messages, in whatever pieces they arrive; of WAL only the length is looked at.
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol", `XLogData` and `Primary keepalive message`. The buffer
//! never grows, and WAL is never copied out of it.

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;

use super::error::{self, UpstreamError};
use crate::core::wal::Lsn;

/// A walsender sends WAL in messages of up to 128 KiB.
const BUFFER_BYTES: usize = 128 << 10;

/// Tag and length.
const HEADER_BYTES: usize = 5;

/// Header, kind, then start, end and time.
const WAL_HEADER_BYTES: usize = HEADER_BYTES + 1 + 3 * 8;

/// Header, kind, end and time, and whether a reply is asked for.
const KEEPALIVE_BYTES: usize = HEADER_BYTES + 1 + 2 * 8 + 1;

pub(super) struct Frames {
    buffer: Box<[u8]>,
    /// How much of the buffer has been received and not yet read.
    filled: usize,
    /// WAL still to come of the message that was begun.
    wal_left_bytes: usize,
    /// Where the WAL of that message ends.
    announced: Lsn,
    /// Where the WAL of the whole messages ends.
    position: Lsn,
}

/// A message at the start of some bytes: its length, or of WAL the length of what stands before the WAL.
struct Read {
    length_bytes: usize,
    reply_requested: bool,
}

impl Frames {
    /// The first WAL must begin at `from`; `unread` was received before.
    pub(super) fn new(from: Lsn, unread: &[u8]) -> Result<Self, UpstreamError> {
        let mut buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        let start = buffer.get_mut(..unread.len());
        start
            .ok_or_else(UpstreamError::unexpected_message)?
            .copy_from_slice(unread);
        Ok(Self {
            buffer,
            filled: unread.len(),
            wal_left_bytes: 0,
            announced: from,
            position: from,
        })
    }

    /// Up to where WAL has come, in whole messages.
    pub(super) fn position(&self) -> Lsn {
        self.position
    }

    /// Where to receive to; never empty after [`Frames::read`].
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// Reads what there is after `received` more bytes came into [`Frames::room`]; says whether a reply is asked for.
    ///
    /// # Errors
    /// The server has ended the stream, or sent what does not belong there.
    pub(super) fn read(&mut self, received: usize) -> Result<bool, UpstreamError> {
        self.filled = (self.filled + received).min(self.buffer.len());
        let (mut at, mut reply_requested) = (0, false);
        loop {
            at += self.pass_wal(self.filled - at);
            let Some(read) = self.message(at)? else { break };
            at += read.length_bytes;
            reply_requested |= read.reply_requested;
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(reply_requested)
    }

    /// How many of the `available` bytes are WAL of the message that was begun.
    fn pass_wal(&mut self, available: usize) -> usize {
        let passed = self.wal_left_bytes.min(available);
        self.wal_left_bytes -= passed;
        if self.wal_left_bytes == 0 {
            self.position = self.announced;
        }
        passed
    }

    /// `None` if not enough of the message is there.
    fn message(&mut self, at: usize) -> Result<Option<Read>, UpstreamError> {
        let bytes = &self.buffer[at..self.filled];
        let Some((&[tag, a, b, c, d], rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let length_bytes = 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        match (tag, rest.first()) {
            (b'd', None) => Ok(None),
            (b'd', Some(b'w')) => {
                let Some(start) = bytes.get(..WAL_HEADER_BYTES).and_then(|_| big_endian(&rest[1..])) else {
                    return Ok(None);
                };
                self.begin_wal(Lsn(start), length_bytes)
            }
            (b'd', Some(b'k')) if length_bytes == KEEPALIVE_BYTES => {
                Ok(bytes.get(KEEPALIVE_BYTES - 1).map(|reply| Read {
                    length_bytes,
                    reply_requested: *reply != 0,
                }))
            }
            (b'd', _) => Err(UpstreamError::unexpected_message()),
            _ if !(HEADER_BYTES..=BUFFER_BYTES).contains(&length_bytes) => {
                Err(UpstreamError::unexpected_message())
            }
            _ => bytes.get(..length_bytes).map_or(Ok(None), other_message),
        }
    }

    fn begin_wal(&mut self, start: Lsn, length_bytes: usize) -> Result<Option<Read>, UpstreamError> {
        let wal_bytes = length_bytes.checked_sub(WAL_HEADER_BYTES);
        let end = wal_bytes.and_then(|wal_bytes| start.0.checked_add(wal_bytes as u64));
        let (Some(wal_bytes), Some(end), true) = (wal_bytes, end, start == self.announced) else {
            return Err(UpstreamError::unreadable("start of WAL", &start.to_string()));
        };
        self.wal_left_bytes = wal_bytes;
        self.announced = Lsn(end);
        Ok(Some(Read {
            length_bytes: WAL_HEADER_BYTES,
            reply_requested: false,
        }))
    }
}

/// A whole message that carries no WAL.
fn other_message(bytes: &[u8]) -> Result<Option<Read>, UpstreamError> {
    let parsed = Message::parse(&mut BytesMut::from(bytes));
    match parsed.map_err(|error| UpstreamError::protocol(&error))? {
        Some(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => Ok(Some(Read {
            length_bytes: bytes.len(),
            reply_requested: false,
        })),
        Some(Message::ErrorResponse(body)) => Err(error::reported(&body)),
        Some(Message::CopyDone | Message::CommandComplete(_)) => Err(UpstreamError::Closed),
        _ => Err(UpstreamError::unexpected_message()),
    }
}

fn big_endian(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().copied().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FROM: Lsn = Lsn(0x300_0060);

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("a length");
        [&[tag], &length.to_be_bytes()[..], body].concat()
    }

    fn wal(start: u64, wal_bytes: usize) -> Vec<u8> {
        let header = [&b"w"[..], &start.to_be_bytes(), &[0; 16]].concat();
        frame(b'd', &[header, vec![b'E'; wal_bytes]].concat())
    }

    fn keepalive(reply: u8) -> Vec<u8> {
        frame(b'd', &[&b"k"[..], &[0; 16], &[reply]].concat())
    }

    fn feed(frames: &mut Frames, mut bytes: &[u8], piece: usize) -> Result<bool, UpstreamError> {
        let mut reply_requested = false;
        while !bytes.is_empty() {
            let room = frames.room();
            let length = piece.min(bytes.len()).min(room.len());
            assert!(length > 0, "the buffer is full");
            room[..length].copy_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            reply_requested |= frames.read(length)?;
        }
        Ok(reply_requested)
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_make_the_same_wal(
            messages in proptest::collection::vec((0_usize..300_000, any::<bool>()), 1..6),
            piece in 1_usize..200_000,
        ) {
            let (mut bytes, mut end, mut asked) = (Vec::new(), FROM.0, false);
            for (wal_bytes, reply) in messages {
                bytes.extend(wal(end, wal_bytes));
                bytes.extend(keepalive(u8::from(reply)));
                bytes.extend(frame(b'S', b"a\0b\0"));
                end += wal_bytes as u64;
                asked |= reply;
            }
            let mut frames = Frames::new(FROM, &[]).expect("frames");
            let reply_requested = feed(&mut frames, &bytes, piece.max(bytes.len() / 5_000)).expect("a stream");
            prop_assert_eq!((frames.position(), reply_requested), (Lsn(end), asked));
        }

        #[test]
        fn nothing_that_is_sent_ends_in_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in "[dEcN]") {
            let mut frames = Frames::new(FROM, &[]).expect("frames");
            let framed = frame(kind.as_bytes()[0], &bytes);
            drop(feed(&mut frames, &framed, 7));
            drop(feed(&mut Frames::new(FROM, &bytes).expect("frames"), &bytes, 11));
        }
    }

    #[test]
    fn half_a_message_does_not_count() {
        let bytes = wal(FROM.0, 100);
        let mut frames = Frames::new(FROM, &bytes[..40]).expect("frames");
        assert!(!frames.read(0).expect("a piece"));
        feed(&mut frames, &bytes[40..bytes.len() - 1], 1).expect("a piece");
        assert_eq!(frames.position(), FROM);
        feed(&mut frames, &bytes[bytes.len() - 1..], 1).expect("the rest");
        assert_eq!(frames.position(), Lsn(FROM.0 + 100));
    }

    #[test]
    fn what_does_not_belong_there_is_refused() {
        for bytes in [
            wal(FROM.0 + 1, 10),
            frame(b'd', b"x"),
            frame(b'd', b"kk"),
            frame(b'd', b"w"),
            [wal(FROM.0, 10), wal(FROM.0, 10)].concat(),
            vec![b'N', 0, 0, 0, 0],
            vec![b'N', 0xFF, 0xFF, 0xFF, 0xFF],
            frame(b'Z', b"I"),
        ] {
            let mut frames = Frames::new(FROM, &[]).expect("frames");
            let tail = [bytes.clone(), vec![0; 64]].concat();
            let error = feed(&mut frames, &tail, 1_000).expect_err("a refusal");
            assert_eq!(error.cause(), "protocol", "{bytes:?}");
        }
        let mut frames = Frames::new(FROM, &[]).expect("frames");
        let ended = feed(&mut frames, &frame(b'c', b""), 9).expect_err("the end");
        assert_eq!(ended.cause(), "closed");
    }
}
