//! The client's address as a balancer in front tells it: PROXY protocol, versions 1 and 2, from trusted networks only.
//!
//! Pure, but for the reading: bounded, and not one byte beyond the header. PostgreSQL itself does not understand it,
//! so it is never passed on. Source: HAProxy's "The PROXY protocol", 2.1 and 2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest line of version 1, its end included.
const MAX_LINE_BYTES: usize = 107;
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const HEADER_BYTES: usize = 16;
/// Addresses and whatever else a balancer likes to add.
const MAX_BODY_BYTES: usize = 2048;

/// Addresses whose first bits are the same: `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u32,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no network: write e.g. 10.0.0.0/8");
        let (address, bits) = text
            .split_once('/')
            .map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if prefix_bits > most {
            return Err(wrong());
        }
        Ok(Self { address, prefix_bits })
    }
}

impl Network {
    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |ours: u128, theirs: u128, width: u32| {
            self.prefix_bits == 0 || (ours ^ theirs) >> (width - self.prefix_bits) == 0
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same(u128::from(ours.to_bits()), u128::from(theirs.to_bits()), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same(ours.to_bits(), theirs.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// What a header says of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forwarded {
    From(IpAddr),
    /// The balancer itself, e.g. its health check, or an address that is none.
    Unknown,
}

/// The header is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid PROXY protocol header")]
pub struct InvalidHeader;

/// Whether a connection that begins with this byte begins with a header; no PostgreSQL client begins so.
pub(super) fn begins_header(byte: u8) -> bool {
    byte == b'P' || byte == b'\r'
}

/// Any bytes at all, for a fuzzer: reads a header from them, and holds what is promised of the result.
///
/// # Panics
/// If a promise is broken.
pub fn fuzz_forwarded(bytes: &[u8]) {
    let read = |bytes: &[u8]| {
        let mut rest = bytes;
        // Bytes that are all there are never waited for.
        let read = read_header(&mut rest).now_or_never();
        (read, bytes.len() - rest.len())
    };
    let (header, taken) = read(bytes);
    assert!(header.is_some(), "waited for bytes that were there");
    assert!(taken <= HEADER_BYTES + MAX_BODY_BYTES);
    if let Some(Ok(Some(_))) = header {
        assert!(begins_header(bytes[0]), "was not taken for a header");
        assert_eq!(read(&bytes[..taken]), (header, taken), "what follows it was read");
        assert_eq!(
            read(&bytes[..taken - 1]),
            (Some(Ok(None)), taken - 1),
            "more than the header was read"
        );
    }
}

/// Reads one header; `Ok(None)` if the connection ends.
pub(super) async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Forwarded>, InvalidHeader> {
    let mut bytes = vec![0; HEADER_BYTES];
    // The shortest line of version 1, "PROXY UNKNOWN\r\n", is one byte shorter.
    if stream.read_exact(&mut bytes[..HEADER_BYTES - 1]).await.is_err() {
        return Ok(None);
    }
    if bytes.starts_with(b"PROXY ") {
        bytes.truncate(HEADER_BYTES - 1);
        while !bytes.ends_with(b"\r\n") {
            let next = stream.read_u8().await;
            let Ok(next) = next else { return Ok(None) };
            bytes.push(next);
            if bytes.len() > MAX_LINE_BYTES {
                return Err(InvalidHeader);
            }
        }
        return line(&bytes).map(Some);
    }
    let Ok(last) = stream.read_u8().await else {
        return Ok(None);
    };
    bytes[HEADER_BYTES - 1] = last;
    let length = body_length(&bytes)?;
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).await.is_err() {
        return Ok(None);
    }
    binary(&bytes, &body).map(Some)
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 40000 5432\r\n`.
fn line(bytes: &[u8]) -> Result<Forwarded, InvalidHeader> {
    let text = std::str::from_utf8(bytes).map_err(|_| InvalidHeader)?;
    let mut words = text.trim_end_matches("\r\n").split(' ');
    let (_proxy, family) = (words.next(), words.next());
    if family == Some("UNKNOWN") {
        return Ok(Forwarded::Unknown);
    }
    let words: Vec<&str> = words.collect();
    let [source, _destination, source_port, _port] = words[..] else {
        return Err(InvalidHeader);
    };
    source_port.parse::<u16>().map_err(|_| InvalidHeader)?;
    let source: IpAddr = source.parse().map_err(|_| InvalidHeader)?;
    match (family, source) {
        (Some("TCP4"), IpAddr::V4(_)) | (Some("TCP6"), IpAddr::V6(_)) => {
            Ok(Forwarded::From(source.to_canonical()))
        }
        _ => Err(InvalidHeader),
    }
}

fn body_length(header: &[u8]) -> Result<usize, InvalidHeader> {
    match header {
        [signature @ .., version, _family, high, low] if *signature == SIGNATURE && version >> 4 == 2 => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if length > MAX_BODY_BYTES {
                Err(InvalidHeader)
            } else {
                Ok(length)
            }
        }
        _ => Err(InvalidHeader),
    }
}

/// Version 2: command 0 is the balancer's own connection; family 1 is IPv4 and 2 is IPv6, transport 1 is TCP.
fn binary(header: &[u8], body: &[u8]) -> Result<Forwarded, InvalidHeader> {
    let [.., version, family, _, _] = header else {
        return Err(InvalidHeader);
    };
    match (version & 0x0f, family) {
        (0, _) | (1, 0x00) => Ok(Forwarded::Unknown),
        (1, 0x11) => {
            let (source, _) = body
                .split_first_chunk::<4>()
                .filter(|_| body.len() >= 12)
                .ok_or(InvalidHeader)?;
            Ok(Forwarded::From(Ipv4Addr::from(*source).into()))
        }
        (1, 0x21) => {
            let (source, _) = body
                .split_first_chunk::<16>()
                .filter(|_| body.len() >= 36)
                .ok_or(InvalidHeader)?;
            Ok(Forwarded::From(
                IpAddr::from(Ipv6Addr::from(*source)).to_canonical(),
            ))
        }
        _ => Err(InvalidHeader),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> (Result<Option<Forwarded>, InvalidHeader>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("runtime");
        let mut rest = bytes;
        let read = runtime.block_on(read_header(&mut rest));
        (read, rest.len())
    }

    fn version_2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("short");
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn both_versions_tell_the_client_and_leave_what_follows() {
        let from = |text: &str| Ok(Some(Forwarded::From(text.parse().expect("address"))));
        let unknown = Ok(Some(Forwarded::Unknown));
        let four = [192, 0, 2, 1, 192, 0, 2, 2, 0x9c, 0x40, 0x15, 0x38];
        let mut six = [0_u8; 36];
        six[..16].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
        for (bytes, expected) in [
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 5432\r\n".to_vec(),
                from("192.0.2.1"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::1 40000 5432\r\n".to_vec(),
                from("2001:db8::1"),
            ),
            (
                b"PROXY TCP6 ::ffff:192.0.2.1 ::1 40000 5432\r\n".to_vec(),
                from("192.0.2.1"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), unknown),
            (b"PROXY UNKNOWN whatever else\r\n".to_vec(), unknown),
            (version_2(1, 0x11, &four), from("192.0.2.1")),
            (
                version_2(1, 0x11, &[&four[..], &[3, 0, 1, 7]].concat()),
                from("192.0.2.1"),
            ),
            (version_2(1, 0x21, &six), from("::1")),
            (version_2(0, 0x11, &four), unknown),
            (version_2(1, 0x00, &[]), unknown),
        ] {
            let length = bytes.len();
            let followed = [&bytes[..], b"\0\0\0\x08"].concat();
            assert_eq!(
                read(&followed),
                (expected, 4),
                "{:?}",
                String::from_utf8_lossy(&bytes)
            );
            assert_eq!(read(&bytes[..length - 1]).0, Ok(None), "cut off");
        }
    }

    #[test]
    fn anything_else_is_no_header() {
        for bytes in [
            b"PROXY TCP4 192.0.2.1 192.0.2.2 40000\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 2\r\nrest".to_vec(),
            b"PROXY TCP4 a b c d\r\nrest".to_vec(),
            b"POST / HTTP/1.1\r\nrest".to_vec(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat(),
            version_2(1, 0x11, &[1, 2, 3]),
            version_2(2, 0x11, &[0; 12]),
            version_2(1, 0x31, &[0; 216]),
            [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat(),
        ] {
            assert_eq!(
                read(&bytes).0,
                Err(InvalidHeader),
                "{:?}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }

    #[test]
    fn networks() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.0/24", "::ffff:192.0.2.9", "::1"),
            ("2001:db8::/32", "2001:db8:1::", "2001:db9::"),
            ("0.0.0.0/0", "203.0.113.1", "::1"),
        ] {
            let network: Network = network.parse().expect(network);
            assert!(network.contains(inside.parse().expect(inside)));
            assert!(!network.contains(outside.parse().expect(outside)));
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/x"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..3_usize) {
            let start: &[u8] = [&b""[..], b"PROXY ", &SIGNATURE[..]][kind];
            fuzz_forwarded(&[start, &bytes].concat());
        }
    }
}
