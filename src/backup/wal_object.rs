//! A WAL file as it is stored: who wrote it in front, then the file compressed with zstd.
//!
//! What stands in front is one of zstd's skippable frames (RFC 8878, 3.1.2), so that `zstd -d` reads an object that is not
//! encrypted as it is.

use std::io::{self, Read as _, Write as _};

use serde::{Deserialize, Serialize};

use super::pipeline::hex;
use crate::core::data_directory::SystemIdentifier;
use crate::store::seal::{Opener, SealKey, Sealer};

const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
const MOST_TAG_BYTES: usize = 64 << 10;
const LEVEL: i32 = 1;

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

pub(super) fn sha256(content: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, content).as_ref())
}

pub(super) fn pack(tag: &Tag, content: &[u8], key: Option<&SealKey>) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(tag)?;
    let mut packed = Vec::with_capacity(content.len() / 4 + text.len());
    packed.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    packed.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    packed.extend_from_slice(&text);
    let mut encoder = zstd::Encoder::new(packed, LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.write_all(content)?;
    let packed = encoder.finish()?;
    let Some(key) = key else {
        return Ok(packed);
    };
    let mut sealer = Sealer::new(Vec::with_capacity(packed.len()), key)?;
    sealer.write_all(&packed)?;
    sealer.finish()
}

/// The file and its tag; checked.
pub(super) fn unpack(object: &[u8], key: Option<&SealKey>) -> io::Result<(Tag, Vec<u8>)> {
    let opened;
    let packed = match key {
        Some(key) => {
            let mut clear = Vec::new();
            Opener::new(object, key)?.read_to_end(&mut clear)?;
            opened = clear;
            opened.as_slice()
        }
        None => object,
    };
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let number = |at: usize| {
        let bytes = packed.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(u32::from_le_bytes)
            .ok_or_else(|| invalid("it is too short"))
    };
    if number(0)? != SKIPPABLE_MAGIC {
        return Err(invalid("it was not written by podgres, or is encrypted"));
    }
    let length = usize::try_from(number(4)?).unwrap_or(usize::MAX);
    let text = packed
        .get(8..8 + length.min(MOST_TAG_BYTES))
        .ok_or_else(|| invalid("it is too short"))?;
    let tag: Tag = serde_json::from_slice(text)?;
    let mut content = Vec::with_capacity(usize::try_from(tag.bytes).unwrap_or(0).min(1 << 30));
    zstd::Decoder::new(&packed[8 + text.len()..])?.read_to_end(&mut content)?;
    if sha256(&content) != tag.sha256 {
        return Err(invalid("its content is not what was archived"));
    }
    Ok((tag, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(content: &[u8]) -> Tag {
        Tag {
            file: "000000010000000000000001".to_owned(),
            system_identifier: SystemIdentifier(7),
            member: "pg-0".to_owned(),
            term: 3,
            bytes: content.len() as u64,
            sha256: sha256(content),
        }
    }

    #[test]
    fn what_was_packed_comes_back_and_anything_changed_does_not() {
        let content = b"wal ".repeat(5_000);
        let key = SealKey::parse(&"a".repeat(64)).expect("a key");
        for key in [None, Some(&key)] {
            let packed = pack(&tag(&content), &content, key).expect("packed");
            assert!(packed.len() < content.len() / 4);
            assert_eq!(
                unpack(&packed, key).expect("unpacked"),
                (tag(&content), content.clone())
            );
            for at in 0..packed.len() {
                let mut flipped = packed.clone();
                flipped[at] ^= 1;
                let same = unpack(&flipped, key).is_ok_and(|(_, found)| found != content);
                assert!(!same, "byte {at} flipped gave other content");
            }
            assert!(unpack(&packed[..packed.len() / 2], key).is_err());
        }
        let packed = pack(&tag(&content), &content, Some(&key)).expect("packed");
        assert!(unpack(&packed, None).is_err(), "no key");
    }
}
