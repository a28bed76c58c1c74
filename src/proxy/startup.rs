//! The first bytes of a client, read as PostgreSQL's `ProcessStartupPacket` reads them.
//!
//! Pure: bytes in, packet or error out; bounded whatever the peer claims. Never looks past the
//! first packet and never changes one, so that what was read can be forwarded as it came. Source: the manual's
//! "Message Formats" (`StartupMessage`, `SSLRequest`, `GSSENCRequest`, `CancelRequest`).

use std::net::IpAddr;

use crate::core::routing::options::SessionOptions;

/// What a packet may hold behind its length word: `MAX_STARTUP_PACKET_LENGTH`.
pub const MAX_STARTUP_BYTES: usize = 10_000;

/// The whole `SSLRequest`: length 8, code 1234.5679.
pub(super) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The first byte of a TLS record that carries a handshake: `sslnegotiation=direct`.
pub(super) const TLS_HANDSHAKE: u8 = 0x16;
/// Type, version 3.x and length of a TLS record (RFC 8446, 5.1).
const TLS_HEADER_BYTES: usize = 5;
const MAX_TLS_RECORD_BYTES: usize = 1 << 14;
/// The most that is ever read before a server is chosen.
const MAX_FIRST_BYTES: usize = TLS_HEADER_BYTES + MAX_TLS_RECORD_BYTES;
/// Major version of the codes that are not versions.
const REQUEST_MAJOR: u16 = 1234;
/// Request code and key are 8 bytes; the secret is 4 bytes up to protocol 3.0 and at most 256 later.
const CANCEL_LENGTHS: std::ops::RangeInclusive<usize> = 16..=12 + 256;

/// What a client asks for first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    /// TLS without asking: its first record, whole; nothing of what is in it is understood here.
    DirectTls,
    SslRequest,
    GssEncRequest,
    /// The whole packet; forwarded as it is.
    Cancel(Vec<u8>),
    Session(SessionStartup),
}

/// A `StartupMessage` of protocol 3.x, well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStartup {
    /// The packet as it came, length word included.
    pub bytes: Vec<u8>,
}

/// Why the first bytes of a client are not the beginning of a PostgreSQL connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    #[error("invalid length of startup packet")]
    Length,
    #[error("invalid first record of TLS")]
    TlsRecord,
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Protocol { major: u16, minor: u16 },
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
}

const APPLICATION_NAME: &[u8] = b"application_name";
/// What PostgreSQL keeps of an application's name.
const MAX_APPLICATION_NAME_BYTES: usize = 63;

/// What can be said of the bytes that have come so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Read on until there are this many bytes (from the first byte on), never more.
    Needs(usize),
    Complete(Startup),
}

/// Reads the first packet of `bytes`, which may be cut off anywhere; what follows it is ignored.
///
/// # Errors
/// As soon as the bytes cannot become a packet: a wrong length (no more is read then), a foreign
/// protocol, parameters that are not name and value pairs.
pub fn parse(bytes: &[u8]) -> Result<Parsed, StartupError> {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return tls_record(bytes);
    }
    let Some((word, _)) = bytes.split_first_chunk::<4>() else {
        return Ok(Parsed::Needs(4));
    };
    let length = usize::try_from(u32::from_be_bytes(*word)).unwrap_or(usize::MAX);
    if !(8..=MAX_STARTUP_BYTES + 4).contains(&length) {
        return Err(StartupError::Length);
    }
    match bytes.get(..length) {
        None => Ok(Parsed::Needs(length)),
        Some(packet) => packet_of(packet).map(Parsed::Complete),
    }
}

/// Any bytes at all, for a fuzzer: parses them, reads the parameters and what they ask of the route, and holds what is promised of the result.
///
/// # Panics
/// If a promise is broken.
pub fn fuzz_startup(bytes: &[u8]) {
    match parse(bytes) {
        Ok(Parsed::Needs(length)) => {
            assert!(length > bytes.len() && length <= MAX_FIRST_BYTES);
        }
        Ok(Parsed::Complete(Startup::Session(session))) => {
            assert!(bytes.starts_with(&session.bytes));
            assert!(session.parameters().count() <= MAX_STARTUP_BYTES / 3);
            let _replicates: bool = session.asks_for_replication();
            let _wishes = SessionOptions::read(session.parameters());
            let shown = session.with_client(IpAddr::from([192, 0, 2, 1]));
            let others = |session: &SessionStartup| -> Vec<(Vec<u8>, Vec<u8>)> {
                let others = session.parameters().filter(|(name, _)| *name != APPLICATION_NAME);
                others
                    .map(|(name, value)| (name.to_vec(), value.to_vec()))
                    .collect()
            };
            match parse(&shown) {
                Ok(Parsed::Complete(Startup::Session(again))) => assert_eq!(others(&again), others(&session)),
                other => panic!("{other:?} of a packet with the client's address"),
            }
        }
        Ok(Parsed::Complete(Startup::Cancel(packet))) => {
            assert!(bytes.starts_with(&packet) && CANCEL_LENGTHS.contains(&packet.len()));
        }
        Ok(Parsed::Complete(_)) | Err(_) => {}
    }
}

impl SessionStartup {
    /// Names and values in the order of the packet; of equal names the last one counts.
    pub fn parameters(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut words = self.bytes.get(8..).unwrap_or_default().split(|byte| *byte == 0);
        std::iter::from_fn(move || match (words.next(), words.next()) {
            (Some(name), Some(value)) if !name.is_empty() => Some((name, value)),
            _ => None,
        })
    }

    /// The packet with the client's address behind the application's name, for whoever looks at `pg_stat_activity`.
    ///
    /// As it came for replication, where the name says who the standby is, and where it would become too long.
    pub fn with_client(&self, client: IpAddr) -> Vec<u8> {
        let given = self
            .parameters()
            .filter(|(name, _)| *name == APPLICATION_NAME)
            .last();
        let address = client.to_canonical().to_string();
        let room = MAX_APPLICATION_NAME_BYTES.saturating_sub(address.len() + 1);
        let mut value: Vec<u8> = given
            .map_or(&[][..], |(_, value)| value)
            .iter()
            .copied()
            .take(room)
            .collect();
        if !value.is_empty() {
            value.push(b' ');
        }
        value.extend(address.bytes());
        let others = self.parameters().filter(|(name, _)| *name != APPLICATION_NAME);
        let mut packet = self.bytes.get(..8).unwrap_or_default().to_vec();
        for (name, value) in others.chain([(APPLICATION_NAME, value.as_slice())]) {
            packet.extend(name.iter().chain(&[0]).chain(value).chain(&[0]));
        }
        packet.push(0);
        let fits = packet.len() <= MAX_STARTUP_BYTES + 4;
        match u32::try_from(packet.len()) {
            Ok(length) if fits && !self.asks_for_replication() => {
                packet.splice(..4, length.to_be_bytes());
                packet
            }
            _ => self.bytes.clone(),
        }
    }

    /// Whether the session would be a WAL sender. A value that is not a clear "no" counts as yes.
    pub fn asks_for_replication(&self) -> bool {
        self.parameters()
            .any(|(name, value)| name == b"replication" && !means_false(value))
    }
}

/// A whole record before any server is bothered: a client that begins TLS and stalls costs none.
fn tls_record(bytes: &[u8]) -> Result<Parsed, StartupError> {
    let Some((header, _)) = bytes.split_first_chunk::<TLS_HEADER_BYTES>() else {
        return Ok(Parsed::Needs(TLS_HEADER_BYTES));
    };
    let [_, major, _, high, low] = *header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if major != 3 || !(1..=MAX_TLS_RECORD_BYTES).contains(&length) {
        return Err(StartupError::TlsRecord);
    }
    if bytes.len() < TLS_HEADER_BYTES + length {
        return Ok(Parsed::Needs(TLS_HEADER_BYTES + length));
    }
    Ok(Parsed::Complete(Startup::DirectTls))
}

fn packet_of(packet: &[u8]) -> Result<Startup, StartupError> {
    let (major, minor) = version_of(packet).ok_or(StartupError::Length)?;
    match (major, minor) {
        (REQUEST_MAJOR, 5678) if CANCEL_LENGTHS.contains(&packet.len()) => {
            Ok(Startup::Cancel(packet.to_vec()))
        }
        (REQUEST_MAJOR, 5679) if packet.len() == 8 => Ok(Startup::SslRequest),
        (REQUEST_MAJOR, 5680) if packet.len() == 8 => Ok(Startup::GssEncRequest),
        (REQUEST_MAJOR, 5678..=5680) => Err(StartupError::Length),
        (3, _) => session_of(packet),
        (major, minor) => Err(StartupError::Protocol { major, minor }),
    }
}

fn version_of(packet: &[u8]) -> Option<(u16, u16)> {
    let (word, _) = packet.get(4..)?.split_first_chunk::<4>()?;
    let [a, b, c, d] = *word;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// Name, NUL, value, NUL, …, NUL as the very last byte.
fn session_of(packet: &[u8]) -> Result<Startup, StartupError> {
    let session = SessionStartup {
        bytes: packet.to_vec(),
    };
    let used: usize = session
        .parameters()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    let ends_there = packet.len() == 8 + used + 1 && packet.last() == Some(&0);
    ends_there
        .then_some(Startup::Session(session))
        .ok_or(StartupError::Layout)
}

/// The spellings that PostgreSQL's `parse_bool` takes for false.
fn means_false(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    let abbreviates = |word: &[u8], least: usize| value.len() >= least && word.starts_with(&value);
    value == b"0" || abbreviates(b"false", 1) || abbreviates(b"no", 1) || abbreviates(b"off", 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(code: [u16; 2], rest: &[u8]) -> Vec<u8> {
        let length = u32::try_from(8 + rest.len()).expect("short");
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(code.iter().flat_map(|half| half.to_be_bytes()));
        bytes.extend(rest);
        bytes
    }

    fn session(rest: &[u8]) -> Result<Parsed, StartupError> {
        parse(&packet([3, 0], rest))
    }

    fn replicates(value: &str) -> bool {
        let rest = format!("user\0u\0replication\0{value}\0\0");
        match session(rest.as_bytes()) {
            Ok(Parsed::Complete(Startup::Session(session))) => session.asks_for_replication(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_of_first_packet() {
        let cancel = packet([1234, 5678], &[1; 8]);
        let long_cancel = packet([1234, 5678], &[1; 4 + 256]);
        for (bytes, expected) in [
            (vec![0x16, 3, 1, 0, 2, 7, 7], Startup::DirectTls),
            (SSL_REQUEST.to_vec(), Startup::SslRequest),
            (packet([1234, 5679], b""), Startup::SslRequest),
            (packet([1234, 5680], b""), Startup::GssEncRequest),
            (cancel.clone(), Startup::Cancel(cancel)),
            (long_cancel.clone(), Startup::Cancel(long_cancel)),
        ] {
            assert_eq!(parse(&bytes), Ok(Parsed::Complete(expected)));
        }
        for minor in [0, 2, 9999] {
            let bytes = packet([3, minor], b"user\0app\0options\0\0\0");
            let Ok(Parsed::Complete(Startup::Session(session))) = parse(&bytes) else {
                panic!("3.{minor}");
            };
            assert_eq!(session.bytes, bytes);
            let parameters: Vec<_> = session.parameters().collect();
            assert_eq!(parameters, [(&b"user"[..], &b"app"[..]), (b"options", b"")]);
        }
    }

    #[test]
    fn what_postgresql_refuses_is_refused() {
        let protocol = |major, minor| Err(StartupError::Protocol { major, minor });
        for (bytes, expected) in [
            (vec![0, 0, 0, 7], Err(StartupError::Length)),
            (vec![0, 0, 0x27, 0x15], Err(StartupError::Length)),
            (b"GET / HTTP/1.1\r\n".to_vec(), Err(StartupError::Length)),
            (vec![0xff; 4], Err(StartupError::Length)),
            (vec![0x16, 3, 1, 0, 0], Err(StartupError::TlsRecord)),
            (vec![0x16, 3, 1, 0x40, 1], Err(StartupError::TlsRecord)),
            (vec![0x16, 2, 0, 0, 9], Err(StartupError::TlsRecord)),
            (packet([2, 0], b"x"), protocol(2, 0)),
            (packet([4, 1], b"\0"), protocol(4, 1)),
            (packet([1234, 5681], b""), protocol(1234, 5681)),
            (packet([1234, 5679], b"x"), Err(StartupError::Length)),
            (packet([1234, 5678], b"short"), Err(StartupError::Length)),
            (packet([1234, 5678], &[0; 261]), Err(StartupError::Length)),
        ] {
            assert_eq!(parse(&bytes), expected, "{bytes:?}");
        }
        for rest in [
            "",
            "user\0app\0",
            "user\0app",
            "user\0\0",
            "user",
            "user\0a\0\0x\0",
            "\0\0",
        ] {
            assert_eq!(session(rest.as_bytes()), Err(StartupError::Layout), "{rest:?}");
        }
        assert!(session(b"\0").is_ok());
    }

    #[test]
    fn no_more_is_asked_for_than_the_packet_has() {
        let bytes = packet([3, 0], b"user\0app\0\0");
        for length in 0..bytes.len() {
            let needs = if length < 4 { 4 } else { bytes.len() };
            assert_eq!(parse(&bytes[..length]), Ok(Parsed::Needs(needs)));
        }
        assert_eq!(parse(&[0, 0, 0x27, 0x14]), Ok(Parsed::Needs(10_004)));
        for (bytes, needs) in [
            (&[0x16][..], 5),
            (&[0x16, 3, 1, 2, 0], 517),
            (&[0x16, 3, 1, 0x40, 0, 1], 16_389),
        ] {
            assert_eq!(parse(bytes), Ok(Parsed::Needs(needs)));
        }
    }

    #[test]
    fn replication_is_anything_but_a_clear_no() {
        for value in [
            "true", "t", "YES", "on", "1", "database", "physical", "", "o", "nope",
        ] {
            assert!(replicates(value), "{value:?}");
        }
        for value in ["false", "F", "no", "n", "off", "of", "0"] {
            assert!(!replicates(value), "{value:?}");
        }
    }

    #[test]
    fn the_clients_address_stands_behind_the_applications_name() {
        let client = IpAddr::from([192, 0, 2, 1]);
        let long = "n".repeat(80);
        for (before, after) in [
            ("user\0u\0\0", "192.0.2.1"),
            ("application_name\0shop\0user\0u\0\0", "shop 192.0.2.1"),
            (
                &format!("user\0u\0application_name\0{long}\0\0"),
                &format!("{} 192.0.2.1", &long[..53]),
            ),
        ] {
            let Ok(Parsed::Complete(Startup::Session(given))) = session(before.as_bytes()) else {
                panic!("{before}");
            };
            let Ok(Parsed::Complete(Startup::Session(made))) = parse(&given.with_client(client)) else {
                panic!("{before}");
            };
            let expected = [(&b"user"[..], &b"u"[..]), (b"application_name", after.as_bytes())];
            assert_eq!(made.parameters().collect::<Vec<_>>(), expected);
        }
        let Ok(Parsed::Complete(Startup::Session(standby))) = session(b"user\0u\0replication\x001\0\0")
        else {
            panic!("a standby");
        };
        assert_eq!(standby.with_client(client), standby.bytes);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_startup(&bytes);
        }

        #[test]
        fn hostile_packets_never_panic(
            major in prop_oneof![Just(3u16), Just(1234), any::<u16>()],
            minor in prop_oneof![Just(0u16), 5670..5690u16, any::<u16>()],
            rest in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..400),
            cut in 0..500usize,
        ) {
            let bytes = packet([major, minor], &rest);
            fuzz_startup(&bytes);
            fuzz_startup(&bytes[..cut.min(bytes.len())]);
        }

        #[test]
        fn pairs_are_read_back(pairs in proptest::collection::vec(("[a-z_.]{1,20}", "[ -~]{0,30}"), 0..20)) {
            let mut rest: Vec<u8> = pairs
                .iter()
                .flat_map(|(name, value)| format!("{name}\0{value}\0").into_bytes())
                .collect();
            rest.push(0);
            let Ok(Parsed::Complete(Startup::Session(session))) = session(&rest) else {
                panic!("not a session");
            };
            let read: Vec<_> = session.parameters().collect();
            let sent: Vec<_> = pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
            prop_assert_eq!(read, sent);
        }
    }
}
