//! The host name in a TLS ClientHello, read without taking part in TLS: it may pick a policy.
//!
//! Pure and bounded; whatever cannot be read has no name, and the server says what is wrong with it. Source:
//! RFC 8446, 4.1.2 (`ClientHello`), and RFC 6066, 3 (`server_name`).

/// A record's type, version and length.
const RECORD_HEADER_BYTES: usize = 5;
const HANDSHAKE: u8 = 0x16;
const CLIENT_HELLO: u8 = 1;
/// A message's type and length.
const MESSAGE_HEADER_BYTES: usize = 4;
/// A hello with post-quantum keys has a few kilobytes; it may be spread over records.
const MAX_HELLO_BYTES: usize = 16 * 1024;
const MAX_RECORD_BYTES: usize = 1 << 14;
/// No client needs more than a few, and with each that comes all are read again.
const MAX_RECORDS: usize = 256;
/// In as many records as there may be, and the rest of the last one.
const LONGEST_BYTES: usize = MAX_HELLO_BYTES + (MAX_RECORDS + 1) * RECORD_HEADER_BYTES + MAX_RECORD_BYTES;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What can be said of the bytes that have come so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// Read on until there are this many bytes, never more.
    Needs(usize),
    /// It is whole; its host name in lower case, if it has one.
    Whole(Option<String>),
    /// These are no ClientHello, e.g. not TLS at all.
    Other,
}

/// Any bytes at all, for a fuzzer: reads them as they would come, and holds what is promised of the result.
///
/// # Panics
/// If a promise is broken.
pub fn fuzz_server_name(bytes: &[u8]) {
    let mut come = 0;
    let result = loop {
        match read_hello(&bytes[..come]) {
            Hello::Needs(needs) => {
                assert!(come < needs && needs <= come + RECORD_HEADER_BYTES + MAX_RECORD_BYTES);
                assert!(come <= LONGEST_BYTES, "a hello without an end");
                if needs > bytes.len() {
                    return;
                }
                come = needs;
            }
            result => break result,
        }
    };
    if let Hello::Whole(name) = &result {
        assert_eq!(read_hello(bytes), result, "what follows it was read");
        assert!(name.iter().all(|name| name.to_ascii_lowercase() == *name));
    }
}

/// Reads the records of a ClientHello, which may be cut off anywhere.
pub(super) fn read_hello(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    for _ in 0..=MAX_RECORDS {
        let whole = message_length(&message);
        match whole {
            Err(()) => return Hello::Other,
            Ok(Some(length)) if message.len() >= length => {
                return Hello::Whole(message.get(..length).and_then(host_name));
            }
            Ok(_) => {}
        }
        let consumed = bytes.len() - rest.len();
        let Some((header, body)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() else {
            let wrong = rest.first().is_some_and(|first| *first != HANDSHAKE);
            return if wrong {
                Hello::Other
            } else {
                Hello::Needs(consumed + RECORD_HEADER_BYTES)
            };
        };
        let [kind, major, _, high, low] = *header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != HANDSHAKE || major != 3 || !(1..=MAX_RECORD_BYTES).contains(&length) {
            return Hello::Other;
        }
        let Some((record, next)) = body.split_at_checked(length) else {
            return Hello::Needs(consumed + RECORD_HEADER_BYTES + length);
        };
        message.extend_from_slice(record);
        rest = next;
    }
    Hello::Other
}

/// The message's whole length once its header is there.
fn message_length(message: &[u8]) -> Result<Option<usize>, ()> {
    let Some((header, _)) = message.split_first_chunk::<MESSAGE_HEADER_BYTES>() else {
        return match message.first() {
            Some(&kind) if kind != CLIENT_HELLO => Err(()),
            _ => Ok(None),
        };
    };
    let [kind, a, b, c] = *header;
    let length = MESSAGE_HEADER_BYTES + usize::try_from(u32::from_be_bytes([0, a, b, c])).map_err(|_| ())?;
    if kind == CLIENT_HELLO && length <= MAX_HELLO_BYTES {
        Ok(Some(length))
    } else {
        Err(())
    }
}

fn host_name(message: &[u8]) -> Option<String> {
    let mut hello = Reader(message.get(MESSAGE_HEADER_BYTES..)?);
    hello.take(2 + 32)?;
    let session_id = hello.byte()?;
    hello.take(session_id.into())?;
    hello.vector()?;
    let compression = hello.byte()?;
    hello.take(compression.into())?;
    let mut extensions = Reader(hello.vector()?);
    loop {
        let kind = extensions.number()?;
        let body = extensions.vector()?;
        if kind != SERVER_NAME {
            continue;
        }
        let mut names = Reader(Reader(body).vector()?);
        while let Some(kind) = names.byte() {
            let name = names.vector()?;
            if kind == HOST_NAME {
                return std::str::from_utf8(name).ok().map(str::to_ascii_lowercase);
            }
        }
        return None;
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u16> {
        let (number, _) = self.take(2)?.split_first_chunk::<2>()?;
        Some(u16::from_be_bytes(*number))
    }

    /// Bytes behind their length.
    fn vector(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([2, 1, 1, 0, 2, 0x13, 1, 1, 0]);
        body.extend(u16::try_from(extensions.len()).expect("short").to_be_bytes());
        body.extend(extensions);
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&[CLIENT_HELLO], &length[1..], &body].concat()
    }

    fn server_name(name: &str) -> Vec<u8> {
        let length = u16::try_from(name.len()).expect("short");
        let mut extension = vec![0, 0];
        extension.extend((length + 5).to_be_bytes());
        extension.extend((length + 3).to_be_bytes());
        extension.push(HOST_NAME);
        extension.extend(length.to_be_bytes());
        extension.extend(name.bytes());
        extension
    }

    fn records(message: &[u8], record_bytes: usize) -> Vec<u8> {
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).expect("short").to_be_bytes();
            [&[HANDSHAKE, 3, 1], &length[..], part].concat()
        };
        message.chunks(record_bytes).flat_map(record).collect()
    }

    #[test]
    fn the_name_is_found_however_the_hello_is_cut_into_records() {
        let other = [0, 16, 0, 5, 0, 3, 2, b'h', b'2'];
        let message = hello(&[&other[..], &server_name("RO-10s.db.example")].concat());
        for record_bytes in [1, 3, 50, 10_000] {
            let bytes = records(&message, record_bytes);
            assert_eq!(
                read_hello(&bytes),
                Hello::Whole(Some("ro-10s.db.example".to_owned()))
            );
            for length in 0..bytes.len() {
                let Hello::Needs(needs) = read_hello(&bytes[..length]) else {
                    panic!("{length} of {}", bytes.len());
                };
                assert!(length < needs && needs <= bytes.len(), "{length}: {needs}");
            }
        }
    }

    /// Each record of one byte had all that had come before read again: seconds of processor time for one connection.
    #[test]
    fn a_hello_in_thousands_of_records_kept_a_thread_busy() {
        let message = hello(&[0; 4 * MAX_RECORDS]);
        assert!(matches!(read_hello(&records(&message, 4)), Hello::Other));
        assert!(matches!(read_hello(&records(&message, 8)), Hello::Whole(_)));
        let begun = &records(&message, 1)[..MAX_RECORDS * (RECORD_HEADER_BYTES + 1)];
        assert!(matches!(read_hello(begun), Hello::Needs(_)));
    }

    #[test]
    fn without_a_name_and_without_sense() {
        assert_eq!(read_hello(&records(&hello(&[]), 100)), Hello::Whole(None));
        for bytes in [
            b"SELECT 1".to_vec(),
            vec![0x16, 2, 1, 0, 1],
            vec![0x16, 3, 1, 0, 0],
            records(&[2, 0, 0, 1, 0], 100),
            records(&[CLIENT_HELLO, 0, 0x40, 1, 0], 100),
        ] {
            assert_eq!(read_hello(&bytes), Hello::Other, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_within_the_bound(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            cut in 1..200_usize,
        ) {
            for bytes in [bytes.clone(), records(&bytes, cut), records(&hello(&bytes), cut)] {
                fuzz_server_name(&bytes);
                if let Hello::Needs(needs) = read_hello(&bytes) {
                    prop_assert!(bytes.len() < needs);
                    prop_assert!(needs <= bytes.len() + RECORD_HEADER_BYTES + MAX_RECORD_BYTES);
                }
            }
        }
    }
}
