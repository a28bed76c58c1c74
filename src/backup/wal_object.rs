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
const LEVEL: i32 = 1;
const BUFFER_BYTES: usize = 256 << 10;

/// Who archived a file, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tag {
    pub file: String,
    pub system_identifier: SystemIdentifier,
    /// The member whose primary wrote it, and in which term of the Lease; 0 without one.
    pub member: String,
    pub term: u64,
    pub bytes: u64,
    /// Of the file itself.
    pub sha256: String,
}

/// Length and SHA-256 of what a reader gives.
pub(super) fn sum(content: &mut dyn Read) -> io::Result<(u64, String)> {
    let mut hashed = Hashed::new(io::sink());
    let bytes = copy(content, &mut hashed)?;
    Ok((bytes, hashed.sha256()))
}

/// The object of a file, whose sum is in the tag already.
pub(super) fn pack(tag: &Tag, content: &mut dyn Read, key: Option<&SealKey>) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(tag)?;
    let mut packed = Vec::with_capacity(usize::try_from(tag.bytes / 4).unwrap_or(0) + text.len());
    packed.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    packed.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    packed.extend_from_slice(&text);
    let mut encoder = zstd::Encoder::new(packed, LEVEL)?;
    encoder.include_checksum(true)?;
    copy(content, &mut encoder)?;
    let packed = encoder.finish()?;
    let Some(key) = key else {
        return Ok(packed);
    };
    let mut sealer = Sealer::new(Vec::with_capacity(packed.len()), key)?;
    sealer.write_all(&packed)?;
    sealer.finish()
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
    if hashed.sha256() != tag.sha256 {
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

    fn sha256(self) -> String {
        hex(self.digest.finish().as_ref())
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

    fn tag(content: &[u8]) -> Tag {
        Tag {
            file: "000000010000000000000001".to_owned(),
            system_identifier: SystemIdentifier(7),
            member: "pg-0".to_owned(),
            term: 3,
            bytes: content.len() as u64,
            sha256: sum(&mut &*content).expect("a sum").1,
        }
    }

    #[test]
    fn what_was_packed_comes_back_and_anything_changed_does_not() {
        let content = b"wal ".repeat(5_000);
        let key = SealKey::parse(&"a".repeat(64)).expect("a key");
        for key in [None, Some(&key)] {
            let packed = pack(&tag(&content), &mut &content[..], key).expect("packed");
            assert!(packed.len() < content.len() / 4);
            assert_eq!(
                unpacked(&packed, key).expect("unpacked"),
                (tag(&content), content.clone())
            );
            for at in 0..packed.len() {
                let mut flipped = packed.clone();
                flipped[at] ^= 1;
                let same = unpacked(&flipped, key).is_ok_and(|(_, found)| found != content);
                assert!(!same, "byte {at} flipped gave other content");
            }
            assert!(unpacked(&packed[..packed.len() / 2], key).is_err());
        }
        let packed = pack(&tag(&content), &mut &content[..], Some(&key)).expect("packed");
        assert!(unpacked(&packed, None).is_err(), "no key");
    }
}
