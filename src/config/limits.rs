//! What names may be and what times must have to do with each other, beyond the Lease's own: told before anything begins.

use std::time::Duration;

use super::InvalidSetting;
use super::units::duration_text;

/// Members send a line four times in the peer timeout, and look after each other as often.
const LEAST_PEER_TIMEOUT: Duration = Duration::from_millis(100);
/// Where no Lease sets a limit: as long as one's right lasts by default.
const LONGEST_PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// Positions are asked for every 50 ms at most: a stricter bound would never be met.
pub(super) const LEAST_STALENESS: Duration = Duration::from_millis(100);
/// RFC 1035: a label of a name in DNS.
const LONGEST_LABEL: usize = 63;

/// Open files of a process that routes which are not its sessions': peers, HTTP, PostgreSQL, the API server, pipes.
const OTHER_FILES: u64 = 400;

/// How many sessions each of so many endpoints can have at once: a session has a socket to its client and one to its server.
#[must_use]
pub fn sessions_within(open_files: u64, endpoints: usize) -> usize {
    let sessions = open_files.saturating_sub(OTHER_FILES) / 2;
    let each = usize::try_from(sessions).unwrap_or(usize::MAX) / endpoints.max(1);
    each.max(1)
}

/// A silent peer is to be noticed while there is still something to do about it. `renew_deadline`: with a Lease.
pub fn check_peer_timeout(given: Duration, renew_deadline: Option<Duration>) -> Result<(), InvalidSetting> {
    let (longest, name) = match renew_deadline {
        Some(deadline) => (deadline, "the renew deadline"),
        None => (LONGEST_PEER_TIMEOUT, "the limit"),
    };
    if (LEAST_PEER_TIMEOUT..=longest).contains(&given) {
        return Ok(());
    }
    let text = duration_text(given);
    let problem = if given < LEAST_PEER_TIMEOUT {
        format!("{text} is too short for an answer")
    } else {
        format!("{text} is longer than {name} of {}", duration_text(longest))
    };
    let hint = format!(
        "give {} to {}; the default is 2s",
        duration_text(LEAST_PEER_TIMEOUT),
        duration_text(longest)
    );
    Err(InvalidSetting::new("PODGRES_PEER_TIMEOUT", problem, &hint))
}

/// Names that become part of a name in DNS: of the StatefulSet, its Service, its namespace.
pub fn check_label(key: &str, given: &str) -> Result<(), InvalidSetting> {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = given.starts_with('-') || given.ends_with('-');
    if !given.is_empty() && given.len() <= LONGEST_LABEL && given.bytes().all(letters) && !ends {
        return Ok(());
    }
    let problem = format!("\"{given}\" cannot be part of a name in DNS");
    let hint = "lower case letters, digits, and dashes between them, at most 63";
    Err(InvalidSetting::new(key, problem, hint))
}

/// `cluster.local` and the like: labels with dots between.
pub fn check_domain(key: &str, given: &str) -> Result<(), InvalidSetting> {
    if given.split('.').all(|label| check_label(key, label).is_ok()) {
        return Ok(());
    }
    let problem = format!("\"{given}\" is no domain");
    Err(InvalidSetting::new(
        key,
        problem,
        "write it without a dot at either end, e.g. cluster.local",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_took_the_open_files_of_all_else() {
        for (open_files, endpoints, expected) in [
            (1_024, 2, 156),
            (1_048_576, 2, 262_044),
            (1_048_576, 5, 104_817),
            (256, 2, 1),
            (u64::MAX, 0, usize::MAX / 2 - 200),
        ] {
            assert_eq!(
                sessions_within(open_files, endpoints),
                expected,
                "{open_files} {endpoints}"
            );
        }
    }

    #[test]
    fn a_peer_timeout_that_nobody_could_keep_is_refused_with_its_value() {
        let check = |ms| {
            let checked = check_peer_timeout(Duration::from_millis(ms), Some(Duration::from_secs(10)));
            checked.err().map(|error| (error.to_string(), error.hint))
        };
        for fine in [100, 2_000, 10_000] {
            assert_eq!(check(fine), None, "{fine}");
        }
        let hint = "give 100ms to 10s; the default is 2s".to_owned();
        for (ms, problem) in [
            (0, "0s is too short for an answer"),
            (99, "99ms is too short for an answer"),
            (60_000, "1min is longer than the renew deadline of 10s"),
        ] {
            let told = format!("invalid value for PODGRES_PEER_TIMEOUT: {problem}");
            assert_eq!(check(ms), Some((told, hint.clone())));
        }
        let without_lease = |seconds| check_peer_timeout(Duration::from_secs(seconds), None);
        assert!(without_lease(10).is_ok() && without_lease(11).is_err());
    }

    #[test]
    fn names_that_dns_does_not_take_are_refused() {
        for fine in ["pg", "a", "0", "pg-main", &"p".repeat(63)] {
            assert!(check_label("PODGRES_CLUSTER", fine).is_ok(), "{fine}");
        }
        for bad in ["", "a b", "-a", "a-", "A", "a.b", "a_b", "é", &"p".repeat(64)] {
            let error = check_label("PODGRES_CLUSTER", bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("\"{bad}\"")), "{error}");
        }
        assert!(check_domain("PODGRES_CLUSTER_DOMAIN", "k8s.example.com").is_ok());
        for bad in ["", "cluster.local.", ".local", "a b"] {
            assert!(check_domain("PODGRES_CLUSTER_DOMAIN", bad).is_err(), "{bad}");
        }
    }
}
