//! Durations and sizes as PostgreSQL writes them: `500ms`, `10s`, `2min`, `16MB`.

use std::time::Duration;

/// Reads a duration: a number with `ms`, `s`, `min`, `h` or `d`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "min" | "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(format!(
                "\"{text}\" is no duration; write e.g. 500ms, 10s or 2min"
            ));
        }
    };
    number
        .checked_mul(ms)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("\"{text}\" is too long"))
}

/// The whole milliseconds of a duration, or as many as fit.
#[must_use]
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes a duration as [`duration`] reads it, in the largest unit that needs no fraction up to minutes.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    match duration.as_millis() {
        0 => "0s".to_owned(),
        ms if ms % 60_000 == 0 => format!("{}min", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// Reads a size in bytes: a number with `B`, `kB`, `MB`, `GB` or `TB` (powers of 1024, as PostgreSQL has it).
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "kB" | "KB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return Err(format!("\"{text}\" is no size; write e.g. 16MB")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("\"{text}\" is too large"))
}

fn split(text: &str) -> Result<(u64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end]
        .parse()
        .map_err(|_| format!("\"{text}\" does not start with a number"))?;
    Ok((number, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration(" 2 min "), Ok(Duration::from_mins(2)));
        for bad in [
            "",
            "s",
            "-1s",
            "1.5s",
            "10 parsecs",
            "99999999999999999999",
            "18446744073709551615d",
        ] {
            assert!(duration(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["0s", "500ms", "10s", "2min", "1500ms", "90s"] {
            assert_eq!(duration(text).map(duration_text).as_deref(), Ok(text));
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("16MB"), Ok(16 << 20));
        assert_eq!(bytes("1kB"), Ok(1024));
        assert_eq!(bytes("7"), Ok(7));
        for bad in ["", "MB", "1 mb", "-1", "18446744073709551615TB"] {
            assert!(bytes(bad).is_err(), "{bad:?} was taken");
        }
    }
}
