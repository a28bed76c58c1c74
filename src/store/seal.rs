//! Encryption at rest: AES-256-GCM in the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár, 2015), by crate `ring`.
//!
//! `podgres-seal-1\n`, 32 bytes of salt, then segments of 64 KiB each with its tag. Every object has its own key, derived
//! with HKDF-SHA-256 from the key file and the salt. A segment's nonce is its number and whether it is the last, so that
//! a segment moved, left out or cut off at the end does not open.

use std::io::{self, Read, Write};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};

const MAGIC: &[u8; 15] = b"podgres-seal-1\n";
const SALT_BYTES: usize = 32;
const SEGMENT_BYTES: usize = 64 << 10;
const TAG_BYTES: usize = 16;

/// A key file's content.
#[derive(Clone)]
pub struct SealKey([u8; 32]);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(…)")
    }
}

/// A key file that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key file holds 64 hexadecimal digits and nothing else, as `openssl rand -hex 32` prints them")]
pub struct InvalidKey;

impl SealKey {
    /// From 64 hexadecimal digits.
    ///
    /// # Errors
    /// The text is anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let digits = text.trim();
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(InvalidKey);
        }
        let mut key = [0; 32];
        for (byte, at) in key.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| InvalidKey)?;
        }
        Ok(Self(key))
    }

    /// Tells one key from another without telling the key: 16 hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut text = b"podgres key fingerprint".to_vec();
        text.extend_from_slice(&self.0);
        let digest = ring::digest::digest(&ring::digest::SHA256, &text);
        let number = digest.as_ref()[..8]
            .iter()
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        format!("{number:016x}")
    }

    fn derive(&self, salt: &[u8]) -> io::Result<LessSafeKey> {
        let secret = Salt::new(HKDF_SHA256, salt).extract(&self.0);
        let info = [b"podgres seal".as_slice()];
        let key = secret.expand(&info, &AES_256_GCM).map_err(|_| broken("no key"))?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }
}

fn nonce(segment: u64, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[3..11].copy_from_slice(&segment.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Encrypts what is written to it.
pub struct Sealer<W> {
    inner: W,
    key: LessSafeKey,
    segment: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    /// Writes the head.
    ///
    /// # Errors
    /// The machine has no randomness, or `inner` fails.
    pub fn new(mut inner: W, key: &SealKey) -> io::Result<Self> {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new()
            .fill(&mut salt)
            .map_err(|_| broken("no randomness"))?;
        inner.write_all(MAGIC)?;
        inner.write_all(&salt)?;
        Ok(Self {
            inner,
            key: key.derive(&salt)?,
            segment: 0,
            buffer: Vec::with_capacity(SEGMENT_BYTES + TAG_BYTES),
        })
    }

    /// Writes the last segment, without which nothing opens.
    ///
    /// # Errors
    /// `inner` fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.inner)
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = nonce(self.segment, last);
        let sealed = self
            .key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut self.buffer);
        sealed.map_err(|_| broken("could not encrypt"))?;
        self.inner.write_all(&self.buffer)?;
        self.buffer.clear();
        self.segment += 1;
        Ok(())
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // A full segment waits for more, since the last one is sealed as such.
        if self.buffer.len() == SEGMENT_BYTES && !data.is_empty() {
            self.seal(false)?;
        }
        let taken = data.len().min(SEGMENT_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Decrypts what it reads; nothing comes out of it that was not checked.
pub struct Opener<R> {
    inner: R,
    key: LessSafeKey,
    segment: u64,
    /// One segment with its tag, and one byte of the next to know whether there is one.
    sealed: Vec<u8>,
    clear: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<R: Read> Opener<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// `inner` fails or is not sealed.
    pub fn new(mut inner: R, key: &SealKey) -> io::Result<Self> {
        let mut head = [0; MAGIC.len() + SALT_BYTES];
        inner.read_exact(&mut head)?;
        let (magic, salt) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(broken("it is not encrypted by podgres"));
        }
        let key = key.derive(salt)?;
        Ok(Self {
            inner,
            key,
            segment: 0,
            sealed: Vec::new(),
            clear: Vec::new(),
            at: 0,
            ended: false,
        })
    }

    fn open(&mut self) -> io::Result<()> {
        let whole = SEGMENT_BYTES + TAG_BYTES;
        let wanted = (whole + 1 - self.sealed.len()) as u64;
        (&mut self.inner).take(wanted).read_to_end(&mut self.sealed)?;
        let last = self.sealed.len() <= whole;
        let next = if last {
            Vec::new()
        } else {
            self.sealed.split_off(whole)
        };
        let opened = self
            .key
            .open_in_place(nonce(self.segment, last), Aad::empty(), &mut self.sealed);
        let length = opened
            .map_err(|_| broken("it cannot be decrypted: another key, or changed"))?
            .len();
        self.sealed.truncate(length);
        self.clear = std::mem::replace(&mut self.sealed, next);
        (self.at, self.ended) = (0, last);
        self.segment += 1;
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.clear.len() && !self.ended {
            self.open()?;
        }
        let taken = into.len().min(self.clear.len() - self.at);
        into[..taken].copy_from_slice(&self.clear[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(digit: &str) -> SealKey {
        SealKey::parse(&digit.repeat(64)).expect("a key")
    }

    fn sealed(clear: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(Vec::new(), &key("a")).expect("head");
        for piece in clear.chunks(7_777) {
            sealer.write_all(piece).expect("write");
        }
        sealer.finish().expect("last segment")
    }

    fn opened(sealed: &[u8], key: &SealKey) -> io::Result<Vec<u8>> {
        let mut clear = Vec::new();
        Opener::new(sealed, key)?.read_to_end(&mut clear)?;
        Ok(clear)
    }

    #[test]
    fn what_was_sealed_opens() {
        for bytes in [
            0,
            1,
            SEGMENT_BYTES - 1,
            SEGMENT_BYTES,
            SEGMENT_BYTES + 1,
            3 * SEGMENT_BYTES,
        ] {
            let clear: Vec<u8> = (0..bytes)
                .map(|at| u8::try_from(at % 251).expect("a byte"))
                .collect();
            assert_eq!(
                opened(&sealed(&clear), &key("a")).expect("opens"),
                clear,
                "{bytes} bytes"
            );
        }
    }

    #[test]
    fn anything_changed_does_not_open() {
        let whole = sealed(&vec![7; 2 * SEGMENT_BYTES + 9]);
        let head = MAGIC.len() + SALT_BYTES;
        let segment = SEGMENT_BYTES + TAG_BYTES;
        assert!(opened(&whole, &key("b")).is_err(), "another key");
        for cut in [whole.len() - 1, head + 2 * segment, head + segment, head, 3] {
            assert!(opened(&whole[..cut], &key("a")).is_err(), "cut to {cut} bytes");
        }
        for at in (0..whole.len()).step_by(4_099) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert!(opened(&flipped, &key("a")).is_err(), "byte {at} flipped");
        }
        let mut swapped = whole.clone();
        swapped[head..head + 2 * segment].rotate_left(segment);
        assert!(opened(&swapped, &key("a")).is_err(), "segments swapped");
        let mut longer = whole;
        longer.push(0);
        assert!(opened(&longer, &key("a")).is_err(), "a byte more");
    }

    #[test]
    fn keys() {
        assert_ne!(key("a").fingerprint(), key("b").fingerprint());
        assert_eq!(key("a").fingerprint().len(), 16);
        for text in ["", "a", &"g".repeat(64), &"a".repeat(65), &"é".repeat(32)] {
            assert!(SealKey::parse(text).is_err(), "{text:?} was taken");
        }
    }
}
