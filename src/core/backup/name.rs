//! Names of backups and the calendar in them: `000017-20261121T171530Z-physical`.
//!
//! The sequence number comes first, so that `ls` shows the order even where a clock was set back.

use super::Kind;

const DAY_SECONDS: u64 = 86_400;

/// A moment in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Utc {
    pub year: u64,
    pub month: u64,
    pub day: u64,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
}

impl Utc {
    /// From seconds since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        let (days, rest) = (seconds / DAY_SECONDS + 719_468, seconds % DAY_SECONDS);
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * shifted_month + 2) / 5 + 1,
            hour: rest / 3_600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    /// `2026-11-21 17:15:30`.
    #[must_use]
    pub fn text(self) -> String {
        let Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = self;
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}

/// The name of a backup.
#[must_use]
pub fn name(sequence: u64, started_at: u64, kind: Kind) -> String {
    let Utc {
        year,
        month,
        day,
        hour,
        minute,
        second,
    } = Utc::from_unix(started_at);
    let kind = kind.as_str();
    format!("{sequence:06}-{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z-{kind}")
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
    let numbers = |text: &str, separator| -> Option<Vec<u64>> {
        text.split(separator).map(|part| part.parse().ok()).collect()
    };
    let date = numbers(date, '-')
        .filter(|date| date.len() == 3)
        .ok_or_else(invalid)?;
    let whole = time.split('.').next().unwrap_or(time);
    let time = numbers(whole, ':')
        .filter(|time| (2..=3).contains(&time.len()))
        .ok_or_else(invalid)?;
    let second = time.get(2).copied().unwrap_or(0);
    let in_range = (1970..=9999).contains(&date[0])
        && (1..=12).contains(&date[1])
        && (1..=31).contains(&date[2])
        && time[0] < 24
        && time[1] < 60
        && second <= 60;
    let days = days_since_1970(date[0], date[1], date[2])
        .filter(|_| in_range)
        .ok_or_else(invalid)?;
    let local = days * DAY_SECONDS + time[0] * 3_600 + time[1] * 60 + second;
    let shift = offset_seconds(offset).ok_or_else(invalid)?;
    local.checked_add_signed(-shift).ok_or_else(invalid)
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
        4 => (digits[..2].parse::<i64>().ok()?, digits[2..].parse::<i64>().ok()?),
        _ => return None,
    };
    (hours < 16 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
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
            assert_eq!(parse_moment(&Utc::from_unix(seconds).text()), Ok(seconds));
        }
        assert_eq!(Utc::from_unix(951_782_400).text(), "2000-02-29 00:00:00");
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
            "2026-11-21 25:00:00",
            "2026-11-21 12:00:00+x",
        ] {
            assert!(parse_moment(text).is_err(), "{text:?} was taken");
        }
    }
}
