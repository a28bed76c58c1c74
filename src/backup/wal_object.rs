//! A WAL file as it is stored: who wrote it in front, then the file compressed with zstd.
//!
//! What stands in front is one of zstd's skippable frames (RFC 8878, 3.1.2), so that `zstd -d` reads an object that is not
//! encrypted as it is.

use std::io::{self, Read, Write};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::pipeline::hex;
use crate::core::data_directory::SystemIdentifier;
use crate::store::seal::{Opener, SealKey, Sealer};

const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
const MOST_TAG_BYTES: usize = 64 << 10;
/// What the tag takes in front, whatever it says: so the file need not be read before it is compressed.
const TAG_ROOM_BYTES: usize = 1 << 10;
const LEVEL: i32 = 1;
const BUFFER_BYTES: usize = 256 << 10;

/// Who archives which file.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub file: String,
    pub system_identifier: SystemIdentifier,
    /// The member whose primary wrote it, and in which term of the Lease; 0 without one.
    pub member: String,
    pub term: u64,
}

/// Who archived a file, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tag {
    pub file: String,
    pub system_identifier: SystemIdentifier,
    pub member: String,
    pub term: u64,
    pub bytes: u64,
    /// Of the file itself.
    pub sha256: String,
}

/// The object of a file, which is read once, with its tag.
pub(super) fn pack(
    origin: Origin,
    content: &mut dyn Read,
    key: Option<&SealKey>,
) -> io::Result<(Tag, Vec<u8>)> {
    let mut packed = vec![0; TAG_ROOM_BYTES];
    let encoder = zstd::Encoder::new(&mut packed, LEVEL)?;
    let mut hashed = Hashed::new(encoder);
    hashed.inner.include_checksum(true)?;
    let bytes = copy(content, &mut hashed)?;
    let (encoder, sha256) = hashed.end();
    encoder.finish()?;
    let Origin {
        file,
        system_identifier,
        member,
        term,
    } = origin;
    let tag = Tag {
        file,
        system_identifier,
        member,
        term,
        bytes,
        sha256,
    };
    packed[..TAG_ROOM_BYTES].copy_from_slice(&head(&tag)?);
    let Some(key) = key else {
        return Ok((tag, packed));
    };
    let mut sealer = Sealer::new(Vec::with_capacity(packed.len()), key)?;
    sealer.write_all(&packed)?;
    Ok((tag, sealer.finish()?))
}

/// The skippable frame with the tag, which blanks fill.
fn head(tag: &Tag) -> io::Result<[u8; TAG_ROOM_BYTES]> {
    let mut head = [b' '; TAG_ROOM_BYTES];
    let (magic, rest) = head.split_at_mut(4);
    let (length, text) = rest.split_at_mut(4);
    magic.copy_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    length.copy_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    // A member's name has at most 253 letters.
    serde_json::to_writer(text, tag)?;
    Ok(head)
}

/// Writes the file, and gives its tag; what does not fit the tag is an error.
pub(super) fn unpack(object: &[u8], key: Option<&SealKey>, into: &mut dyn Write) -> io::Result<Tag> {
    let mut packed: Box<dyn Read + '_> = match key {
        Some(key) => Box::new(Opener::new(object, key)?),
        None => Box::new(object),
    };
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let (mut magic, mut length) = ([0; 4], [0; 4]);
    packed.read_exact(&mut magic)?;
    packed.read_exact(&mut length)?;
    if u32::from_le_bytes(magic) != SKIPPABLE_MAGIC {
        return Err(invalid("it was not written by podgres, or is encrypted"));
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    let mut text = vec![0; length.min(MOST_TAG_BYTES)];
    packed.read_exact(&mut text)?;
    let tag: Tag = serde_json::from_slice(&text)?;
    let mut hashed = Hashed::new(into);
    copy(&mut zstd::Decoder::new(packed)?, &mut hashed)?;
    if hashed.end().1 != tag.sha256 {
        return Err(invalid("its content is not what was archived"));
    }
    Ok(tag)
}

fn copy(from: &mut dyn Read, into: &mut dyn Write) -> io::Result<u64> {
    let (mut buffer, mut total) = (vec![0; BUFFER_BYTES], 0);
    loop {
        let bytes = from.read(&mut buffer)?;
        if bytes == 0 {
            return Ok(total);
        }
        into.write_all(&buffer[..bytes])?;
        total += bytes as u64;
    }
}

/// Hashes what passes.
struct Hashed<W> {
    inner: W,
    digest: Context,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            digest: Context::new(&SHA256),
        }
    }

    fn end(self) -> (W, String) {
        (self.inner, hex(self.digest.finish().as_ref()))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let bytes = self.inner.write(data)?;
        self.digest.update(&data[..bytes]);
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(object: &[u8], key: Option<&SealKey>) -> io::Result<(Tag, Vec<u8>)> {
        let mut content = Vec::new();
        Ok((unpack(object, key, &mut content)?, content))
    }

    fn origin() -> Origin {
        Origin {
            file: "000000010000000000000001".to_owned(),
            system_identifier: SystemIdentifier(7),
            member: "pg-0".to_owned(),
            term: 3,
        }
    }

    fn packed(content: &[u8], key: Option<&SealKey>) -> (Tag, Vec<u8>) {
        pack(origin(), &mut &*content, key).expect("packed")
    }

    #[test]
    fn what_was_packed_comes_back_and_anything_changed_does_not() {
        let content = b"wal ".repeat(5_000);
        let key = SealKey::parse(&"a".repeat(64)).expect("a key");
        for key in [None, Some(&key)] {
            let (tag, packed) = packed(&content, key);
            assert!(packed.len() < content.len() / 4);
            assert_eq!((tag.bytes, tag.term), (20_000, 3));
            assert_eq!(unpacked(&packed, key).expect("unpacked"), (tag, content.clone()));
            for at in 0..packed.len() {
                let mut flipped = packed.clone();
                flipped[at] ^= 1;
                let same = unpacked(&flipped, key).is_ok_and(|(_, found)| found != content);
                assert!(!same, "byte {at} flipped gave other content");
            }
            assert!(unpacked(&packed[..packed.len() / 2], key).is_err());
        }
        let (_, sealed) = packed(&content, Some(&key));
        assert!(unpacked(&sealed, None).is_err(), "no key");
    }

    #[test]
    fn a_tag_that_does_not_fit_is_an_error() {
        let origin = Origin {
            member: "m".repeat(TAG_ROOM_BYTES),
            ..origin()
        };
        assert!(pack(origin, &mut &b"wal"[..], None).is_err());
    }
}
