//! Names of files in `pg_wal` that PostgreSQL archives (manual, "Continuous Archiving"; `xlog_internal.h`).

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::core::wal::{Lsn, TimelineId};

/// A file that `archive_command` or `restore_command` is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalFile {
    /// `0000000100000000000000A2`; `partial`: the last one of a timeline that was left.
    Segment {
        timeline: TimelineId,
        high: u32,
        low: u32,
        partial: bool,
    },
    /// `00000002.history`.
    History { timeline: TimelineId },
    /// `0000000100000000000000A2.00000028.backup`.
    Label {
        timeline: TimelineId,
        high: u32,
        low: u32,
        offset: u32,
    },
}

/// A name that PostgreSQL gives to no file it archives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL file name \"{0}\"")]
pub struct InvalidWalFile(pub String);

impl WalFile {
    /// The segment that has a position in it.
    #[must_use]
    pub fn segment(timeline: TimelineId, position: Lsn, segment_bytes: u64) -> Self {
        let low = (position.0 & u64::from(u32::MAX)) / segment_bytes.max(1);
        Self::Segment {
            timeline,
            // Both halves have 32 bits.
            high: u32::try_from(position.0 >> 32).unwrap_or(u32::MAX),
            low: u32::try_from(low).unwrap_or(u32::MAX),
            partial: false,
        }
    }

    #[must_use]
    pub fn timeline(self) -> TimelineId {
        match self {
            Self::Segment { timeline, .. } | Self::History { timeline } | Self::Label { timeline, .. } => {
                timeline
            }
        }
    }

    #[must_use]
    pub fn is_history(self) -> bool {
        matches!(self, Self::History { .. })
    }

    /// A whole segment of the same timeline that ends where `other` begins, or earlier.
    #[must_use]
    pub fn comes_before(self, other: Self) -> bool {
        let segment = |file| match file {
            Self::Segment {
                timeline,
                high,
                low,
                partial: false,
            } => Some((timeline, high, low)),
            _ => None,
        };
        match (segment(self), segment(other)) {
            (Some(first), Some(second)) => first.0 == second.0 && first < second,
            _ => false,
        }
    }

    /// The position of its first byte; `None` for a history, or a name that no segment of this size has.
    #[must_use]
    pub fn start(self, segment_bytes: u64) -> Option<Lsn> {
        match self {
            Self::Segment { high, low, .. } | Self::Label { high, low, .. } => {
                let low = u64::from(low).checked_mul(segment_bytes)?;
                (u64::from(high) << 32).checked_add(low).map(Lsn)
            }
            Self::History { .. } => None,
        }
    }

    /// The position after its last byte; `None` for a history, which is needed for ever.
    #[must_use]
    pub fn end(self, segment_bytes: u64) -> Option<Lsn> {
        let start = self.start(segment_bytes)?;
        start.0.checked_add(segment_bytes).map(Lsn)
    }

    /// The segment after this one.
    #[must_use]
    pub fn next(self, segment_bytes: u64) -> Option<Self> {
        let Self::Segment {
            timeline,
            partial: false,
            ..
        } = self
        else {
            return None;
        };
        Some(Self::segment(timeline, self.end(segment_bytes)?, segment_bytes))
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment {
                timeline,
                high,
                low,
                partial,
            } => {
                let suffix = if *partial { ".partial" } else { "" };
                write!(f, "{:08X}{high:08X}{low:08X}{suffix}", timeline.0)
            }
            Self::History { timeline } => write!(f, "{:08X}.history", timeline.0),
            Self::Label {
                timeline,
                high,
                low,
                offset,
            } => {
                write!(f, "{:08X}{high:08X}{low:08X}.{offset:08X}.backup", timeline.0)
            }
        }
    }
}

impl Serialize for WalFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for WalFile {
    type Err = InvalidWalFile;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidWalFile(text.to_owned());
        let (digits, suffix) = text.split_once('.').unwrap_or((text, ""));
        let number = |digits: Option<&str>| {
            let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
            let digits = digits
                .filter(|digits| digits.len() == 8 && digits.bytes().all(upper))
                .ok_or_else(invalid)?;
            u32::from_str_radix(digits, 16).map_err(|_| invalid())
        };
        let timeline = TimelineId(number(digits.get(..8))?);
        if suffix == "history" && digits.len() == 8 {
            return Ok(Self::History { timeline });
        }
        let (high, low) = (number(digits.get(8..16))?, number(digits.get(16..))?);
        match suffix {
            "" | "partial" if !text.ends_with('.') => Ok(Self::Segment {
                timeline,
                high,
                low,
                partial: suffix == "partial",
            }),
            _ => {
                let offset = number(suffix.strip_suffix(".backup"))?;
                Ok(Self::Label {
                    timeline,
                    high,
                    low,
                    offset,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn names_read_what_they_write() {
        for text in [
            "0000000100000000000000A2",
            "0000000100000000000000A2.partial",
            "0000000100000000000000A2.00000028.backup",
            "0000000B.history",
        ] {
            assert_eq!(
                text.parse::<WalFile>().map(|file| file.to_string()).as_deref(),
                Ok(text)
            );
        }
        for text in [
            "",
            "../etc/passwd",
            "0000000100000000000000a2",
            "0000000100000000000000A",
            "0000000100000000000000AG",
            "0000000100000000000000A2.",
            "0000000100000000000000A2.gz",
            "0000000100000000000000A2.history",
            "1.history",
            "é000000100000000000000A2",
        ] {
            assert!(text.parse::<WalFile>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn segments_have_an_end_and_a_successor() {
        let file = |text: &str| text.parse::<WalFile>().expect(text);
        let last = file("0000000100000000000000FF");
        assert_eq!(last.start(SEGMENT), Some(Lsn(0xFF00_0000)));
        assert_eq!(last.end(SEGMENT), Some(Lsn(1 << 32)));
        assert_eq!(last.next(SEGMENT), Some(file("000000010000000100000000")));
        assert_eq!(file("00000002.history").end(SEGMENT), None);
        assert!(last.comes_before(file("000000010000000100000000")));
        for other in [last, file("000000020000000100000000"), file("00000002.history")] {
            assert!(!last.comes_before(other), "{other}");
        }
        assert_eq!(file("0000000100000000000000A2.partial").next(SEGMENT), None);
    }
}
