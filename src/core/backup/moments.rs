//! When backups were made, by clocks that may have been set meanwhile.
//!
//! Their order is known, so the times must not fall. Those that fit together are believed, as many as possible; a backup
//! whose clock was ahead or behind counts as made together with the next one that is believed, so never as older than it is.

/// The times of backups in their order, oldest first, such that none is before the one that was made earlier.
#[must_use]
pub fn in_order(times: &[u64]) -> Vec<u64> {
    let believed = longest_rise(times);
    let mut now = believed.last().map_or(0, |at| times[*at]);
    let mut moments = vec![now; times.len()];
    for (at, moment) in moments.iter_mut().enumerate().rev() {
        if believed.binary_search(&at).is_ok() {
            now = times[at];
        }
        *moment = now;
    }
    moments
}

/// The places of as many times as possible of which none is before another; of several such choices a late one, since
/// clocks are put right.
fn longest_rise(times: &[u64]) -> Vec<usize> {
    // For each place the length of the longest rise that ends there, and the place before it.
    let mut rises: Vec<(usize, Option<usize>)> = Vec::with_capacity(times.len());
    for (at, time) in times.iter().enumerate() {
        let before = (0..at)
            .filter(|earlier| times[*earlier] <= *time)
            .max_by_key(|earlier| rises[*earlier].0);
        rises.push((before.map_or(1, |before| rises[before].0 + 1), before));
    }
    let mut places = Vec::new();
    let mut next = (0..times.len()).max_by_key(|at| rises[*at].0);
    while let Some(at) = next {
        places.push(at);
        next = rises[at].1;
    }
    places.reverse();
    places
}

#[cfg(test)]
mod tests {
    use super::in_order;

    #[test]
    fn times_follow_the_order() {
        let cases: [(&[u64], &[u64]); 8] = [
            (&[], &[]),
            (&[5], &[5]),
            (&[1, 2, 2, 4], &[1, 2, 2, 4]),
            // Ahead once, or behind.
            (&[1, 2, 900, 4, 5], &[1, 2, 4, 4, 5]),
            (&[101, 102, 3, 104], &[101, 102, 104, 104]),
            // Set back a moment ago: the new ones count as made with the last that fits.
            (&[101, 102, 103, 4, 5], &[101, 102, 103, 103, 103]),
            // For a while: by now that is the clock.
            (&[101, 102, 3, 4, 5], &[3, 3, 3, 4, 5]),
            (&[900, 4], &[4, 4]),
        ];
        for (times, expected) in cases {
            assert_eq!(in_order(times), expected, "{times:?}");
        }
    }
}
