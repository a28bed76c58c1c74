//! The tar format as `BASE_BACKUP` writes it (POSIX ustar; `src/port/tar.c`): headers, read and written, and where one member
//! ends.

use std::fmt;

/// Headers and bodies come in blocks of this size.
pub const BLOCK_BYTES: usize = 512;

/// What stands after the last member.
pub const ARCHIVE_END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];
/// The largest size that twelve octal digits' place can say.
const MOST_OCTAL_BYTES: u64 = 0o777_7777_7777;

/// One member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Relative, without `..`.
    pub path: String,
    pub mode: u32,
    pub kind: MemberKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    File { bytes: u64 },
    Directory,
    Link { target: String },
}

/// A header that no PostgreSQL writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid tar header: {0}")]
pub struct InvalidHeader(String);

impl InvalidHeader {
    fn new(what: impl fmt::Display) -> Self {
        Self(what.to_string())
    }
}

impl Member {
    /// Reads one block; `None` for the zeros at an archive's end.
    ///
    /// # Errors
    /// The checksum or a number is wrong, or the path leads out of the directory.
    pub fn parse(block: &[u8; BLOCK_BYTES]) -> Result<Option<Self>, InvalidHeader> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stored = number(&block[148..156])?;
        let blank = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        if blank.map(u64::from).sum::<u64>() != stored {
            return Err(InvalidHeader::new("the checksum differs"));
        }
        let kind = match block[156] {
            b'0' | 0 => MemberKind::File {
                bytes: number(&block[124..136])?,
            },
            b'5' => MemberKind::Directory,
            b'2' => MemberKind::Link {
                target: text(&block[157..257])?,
            },
            other => return Err(InvalidHeader::new(format!("unknown type {other}"))),
        };
        let mode = u32::try_from(number(&block[100..108])? & 0o7777).unwrap_or(0o600);
        Ok(Some(Self {
            path: inner_path(&text(&block[..100])?)?,
            mode,
            kind,
        }))
    }

    /// The block that stands before a file's content.
    ///
    /// # Errors
    /// The path does not fit, or it is no file.
    pub fn header(&self) -> Result<[u8; BLOCK_BYTES], InvalidHeader> {
        let MemberKind::File { bytes } = self.kind else {
            return Err(InvalidHeader::new("only files are written"));
        };
        if self.path.len() > 99 {
            return Err(InvalidHeader::new(format!("\"{}\" is too long", self.path)));
        }
        let mut block = [0; BLOCK_BYTES];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, &self.path);
        put(100, &format!("{:07o}", self.mode));
        put(108, "0000000");
        put(116, "0000000");
        put(136, "00000000000");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        if bytes <= MOST_OCTAL_BYTES {
            put(124, &format!("{bytes:011o}"));
        } else {
            block[124] = 0x80;
            block[128..136].copy_from_slice(&bytes.to_be_bytes());
        }
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        Ok(block)
    }

    /// Bytes after the header until the next one.
    #[must_use]
    pub fn padded_bytes(&self) -> u64 {
        match self.kind {
            MemberKind::File { bytes } => bytes.next_multiple_of(BLOCK_BYTES as u64),
            MemberKind::Directory | MemberKind::Link { .. } => 0,
        }
    }
}

fn text(field: &[u8]) -> Result<String, InvalidHeader> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8(field[..end].to_vec()).map_err(InvalidHeader::new)
}

fn inner_path(path: &str) -> Result<String, InvalidHeader> {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if path.starts_with('/') || parts.contains(&"..") {
        return Err(InvalidHeader::new(format!(
            "\"{path}\" leads out of the directory"
        )));
    }
    Ok(parts.join("/"))
}

/// Octal digits, or big-endian bytes after one with the highest bit set.
fn number(field: &[u8]) -> Result<u64, InvalidHeader> {
    if let Some((0x80, rest)) = field.split_first() {
        return rest.iter().try_fold(0_u64, |sum, byte| {
            let shifted = sum
                .checked_mul(256)
                .ok_or_else(|| InvalidHeader::new("a number is too large"))?;
            Ok(shifted + u64::from(*byte))
        });
    }
    let text = text(field)?;
    u64::from_str_radix(text.trim(), 8)
        .map_err(|_| InvalidHeader::new(format!("\"{text}\" is no octal number")))
}

/// Finds places to cut an archive between two members, once a piece is large enough.
#[derive(Debug)]
pub struct Cutter {
    piece_limit_bytes: u64,
    piece_bytes: u64,
    body_left: u64,
    header: Vec<u8>,
}

impl Cutter {
    #[must_use]
    pub fn new(piece_limit_bytes: u64) -> Self {
        Self {
            piece_limit_bytes,
            piece_bytes: 0,
            body_left: 0,
            header: Vec::with_capacity(BLOCK_BYTES),
        }
    }

    /// Goes on through `data`. `Some(n)`: a new piece begins after its first `n` bytes; call again with the rest.
    ///
    /// # Errors
    /// The data is no archive.
    pub fn cut(&mut self, data: &[u8]) -> Result<Option<usize>, InvalidHeader> {
        let mut at = 0;
        while at < data.len() {
            let between = self.body_left == 0 && self.header.is_empty();
            if between && self.piece_bytes >= self.piece_limit_bytes {
                self.piece_bytes = 0;
                return Ok(Some(at));
            }
            let left = data.len() - at;
            let taken = if self.body_left > 0 {
                let taken = usize::try_from(self.body_left).map_or(left, |body| body.min(left));
                self.body_left -= taken as u64;
                taken
            } else {
                let taken = left.min(BLOCK_BYTES - self.header.len());
                self.header.extend_from_slice(&data[at..at + taken]);
                self.end_header()?;
                taken
            };
            at += taken;
            self.piece_bytes += taken as u64;
        }
        Ok(None)
    }

    fn end_header(&mut self) -> Result<(), InvalidHeader> {
        if let Ok(block) = <&[u8; BLOCK_BYTES]>::try_from(self.header.as_slice()) {
            self.body_left = Member::parse(block)?.map_or(0, |member| member.padded_bytes());
            self.header.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as `tar` writes it.
    fn header(path: &str, kind: u8, bytes: u64) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[100..107].copy_from_slice(b"0000600");
        block[124..135].copy_from_slice(format!("{bytes:011o}").as_bytes());
        block[156] = kind;
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        block[154] = 0;
        block
    }

    #[test]
    fn headers() {
        let member = Member::parse(&header("./base/1/2619", b'0', 8192))
            .expect("valid")
            .expect("a member");
        assert_eq!((member.path.as_str(), member.mode), ("base/1/2619", 0o600));
        assert_eq!(member.kind, MemberKind::File { bytes: 8192 });
        assert_eq!(Member::parse(&[0; BLOCK_BYTES]), Ok(None));
        for path in ["/etc/passwd", "base/../../x"] {
            let error = Member::parse(&header(path, b'0', 0)).expect_err("leads out");
            assert!(error.to_string().contains("leads out"), "{error}");
        }
        let mut flipped = header("a", b'0', 1);
        flipped[3] ^= 1;
        assert!(Member::parse(&flipped).is_err());
    }

    #[test]
    fn what_is_written_is_read() {
        for bytes in [0, 1, 8_192, MOST_OCTAL_BYTES, MOST_OCTAL_BYTES + 1, u64::MAX >> 1] {
            let member = Member {
                path: "3456.dat.gz".to_owned(),
                mode: 0o600,
                kind: MemberKind::File { bytes },
            };
            let block = member.header().expect("a header");
            assert_eq!(Member::parse(&block), Ok(Some(member)), "{bytes}");
        }
        let long = Member {
            path: "x".repeat(100),
            mode: 0o600,
            kind: MemberKind::File { bytes: 1 },
        };
        assert!(long.header().is_err());
    }

    #[test]
    fn large_numbers() {
        let mut field = [0; 12];
        field[0] = 0x80;
        field[7] = 3;
        assert_eq!(number(&field), Ok(3 << 32));
        assert_eq!(number(b"00000010000 "), Ok(4096));
        assert!(number(b"9").is_err());
    }

    #[test]
    fn an_archive_is_cut_between_members_whatever_the_reads() {
        let mut archive = Vec::new();
        for (path, bytes) in [("a", 700_u64), ("b", 0), ("c", 512), ("d", 1)] {
            archive.extend_from_slice(&header(path, b'0', bytes));
            let padded = usize::try_from(bytes.next_multiple_of(512)).expect("small");
            archive.resize(archive.len() + padded, b'x');
        }
        archive.resize(archive.len() + 1024, 0);
        for read_bytes in [1, 511, 512, 513, 100_000] {
            let mut cutter = Cutter::new(1024);
            let mut pieces = vec![0_usize];
            for mut data in archive.chunks(read_bytes) {
                while let Some(at) = cutter.cut(data).expect("an archive") {
                    *pieces.last_mut().expect("a piece") += at;
                    pieces.push(0);
                    data = &data[at..];
                }
                *pieces.last_mut().expect("a piece") += data.len();
            }
            assert_eq!(pieces, [1536, 1536, 1024, 1024], "reads of {read_bytes}");
            assert!(
                cutter.body_left == 0 && cutter.header.is_empty(),
                "not between members"
            );
        }
    }
}
