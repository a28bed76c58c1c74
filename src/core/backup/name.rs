//! Names of backups and the calendar in them: `000017-20261121T171530Z-physical`.
//!
//! The sequence number comes first, so that `ls` shows the order even where a clock was set back.

use std::str::FromStr;

use jiff::SignedDuration;
use jiff::civil::DateTime;

use super::Kind;

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// What clocks in UTC show so many seconds after the beginning of 1970; the calendar's last moment for all that come later.
#[must_use]
pub fn utc(seconds: u64) -> DateTime {
    EPOCH.saturating_add(SignedDuration::from_secs(
        i64::try_from(seconds).unwrap_or(i64::MAX),
    ))
}

/// `2026-11-21 17:15:30`.
#[must_use]
pub fn utc_text(seconds: u64) -> String {
    let utc = utc(seconds);
    format!("{} {:.0}", utc.date(), utc.time())
}

/// The name of a backup.
#[must_use]
pub fn name(sequence: u64, started_at: u64, kind: Kind) -> String {
    let moment = utc_text(started_at).replace(['-', ':'], "").replace(' ', "T");
    let kind = kind.as_str();
    format!("{sequence:06}-{moment}Z-{kind}")
}

/// The number that a name begins with; `None` if it is no backup's name.
#[must_use]
pub fn sequence_of(name: &str) -> Option<u64> {
    let (digits, _) = name.split_once('-')?;
    digits.parse().ok()
}

/// Seconds since 1970 of `2026-11-21 17:15:30`, with an offset (`+01`, `-05:30`, `Z`) or in UTC. Fractions are cut.
///
/// # Errors
/// The text is no such moment.
pub fn parse_moment(text: &str) -> Result<u64, String> {
    let invalid = || format!("\"{text}\" is no time; write e.g. '2026-11-21 17:15:30+00'");
    let text_only = text.trim().trim_end_matches("UTC").trim();
    let (date, rest) = text_only.split_once([' ', 'T']).ok_or_else(invalid)?;
    let offset_at = rest.find(['+', '-', 'Z']).unwrap_or(rest.len());
    let (time, offset) = (
        rest[..offset_at].trim(),
        rest[offset_at..].trim_start_matches('Z'),
    );
    let local = local_seconds(date, time).ok_or_else(invalid)?;
    let shift = offset_seconds(offset).ok_or_else(invalid)?;
    u64::try_from(local - shift).map_err(|_| invalid())
}

/// `2026-11-21` and `17:15:30.7`, `17:15:30` or `17:15`.
fn local_seconds(date: &str, time: &str) -> Option<i64> {
    let date: Vec<i16> = numbers(date.split('-'))?;
    let time: Vec<i8> = numbers(time.split('.').next()?.split(':'))?;
    let ([year, month, day], [hour, minute, second @ ..]) = (date.as_slice(), time.as_slice()) else {
        return None;
    };
    // A leap second is the next minute's first.
    let second = match second {
        [] => 0,
        [second @ 0..=60] => *second,
        _ => return None,
    };
    let (month, day) = (i8::try_from(*month).ok()?, i8::try_from(*day).ok()?);
    let minute = DateTime::new(*year, month, day, *hour, *minute, 0, 0).ok()?;
    (minute >= EPOCH).then(|| minute.duration_since(EPOCH).as_secs() + i64::from(second))
}

fn numbers<'a, T: FromStr>(parts: impl Iterator<Item = &'a str>) -> Option<Vec<T>> {
    parts.map(|part| part.parse().ok()).collect()
}

/// `+01`, `-0530`, `+05:30`, or nothing.
fn offset_seconds(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first() {
        None => return Some(0),
        Some(b'+') => (1, &text[1..]),
        Some(b'-') => (-1, &text[1..]),
        Some(_) => return None,
    };
    let digits = digits.replace(':', "");
    let (hours, minutes) = match digits.len() {
        1 | 2 => (digits.parse().ok()?, 0),
        4 => {
            let (hours, minutes) = digits.split_at_checked(2)?;
            (hours.parse::<i64>().ok()?, minutes.parse::<i64>().ok()?)
        }
        _ => return None,
    };
    (hours < 16 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_order_time_and_kind() {
        let name = name(17, 1_795_281_330, Kind::Physical);
        assert_eq!(name, "000017-20261121T171530Z-physical");
        assert_eq!(sequence_of(&name), Some(17));
        assert_eq!(sequence_of("lost+found"), None);
    }

    #[test]
    fn the_calendar_goes_both_ways() {
        for seconds in [
            0,
            951_782_400,
            951_868_799,
            1_795_281_330,
            4_102_444_799,
            253_402_300_799,
        ] {
            assert_eq!(parse_moment(&utc_text(seconds)), Ok(seconds));
        }
        assert_eq!(utc_text(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(utc_text(u64::MAX), "9999-12-31 23:59:59");
    }

    #[test]
    fn moments_as_people_and_postgresql_write_them() {
        let noon = parse_moment("2026-11-21 12:00:00").expect("noon");
        for text in [
            "2026-11-21T12:00:00Z",
            "2026-11-21 12:00",
            "2026-11-21 12:00:00.734+00",
            "2026-11-21 13:00:00+01",
            "2026-11-21 06:30:00-05:30",
            "2026-11-21 12:00:00 UTC",
        ] {
            assert_eq!(parse_moment(text), Ok(noon), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "2026-11-21",
            "2026-13-01 00:00:00",
            "2026-02-30 00:00:00",
            "1969-12-31 23:59:59",
            "1970-01-01 00:00:00+01",
            "2026-11-21 25:00:00",
            "2026-11-21 12:00:00+x",
            "2026-11-21 12:00:00+1é2",
        ] {
            assert!(parse_moment(text).is_err(), "{text:?} was taken");
        }
    }
}
