//! What must hold of each decision under a Lease, said again without looking at how it is decided.

mod case;
mod claims;
mod following;
mod office;

pub(crate) use case::Case;
use claims::{claims, hands_over, records, terms_grow, timelines_grow};
use following::{follows, foreign, former_primary, jobs};
use office::{
    disk, gate, idle_hands, only_the_holder, opens, paused, promises, reports, states, told_covers,
    writes_in_order,
};

type Rule = (&'static str, fn(&Case<'_>) -> bool);

/// Each rule by the sentence that a failure prints.
pub(crate) const RULES: &[Rule] = &[
    (
        "the gate is open only in the holder's running primary, and no longer than the right",
        gate,
    ),
    (
        "opens for writes only as the holder, within the right, and in its own term",
        opens,
    ),
    (
        "what commits wait for covers every record that may be in the Lease",
        told_covers,
    ),
    (
        "nothing is done without a supervisor, beside a job that reads from the holder, or to begin anything in a pod that ends",
        idle_hands,
    ),
    (
        "only what runs is stopped, only what is stopped is started",
        states,
    ),
    (
        "one write at a time, over the version that was seen",
        writes_in_order,
    ),
    (
        "terms never go down, a claim's goes up, and a system identifier stays",
        terms_grow,
    ),
    ("a number for a timeline is never given twice", timelines_grow),
    (
        "only the holder renews, records, answers, releases or hands over",
        only_the_holder,
    ),
    ("a claim takes the proof for it", claims),
    (
        "a hand-over follows a clean stop and names one that has everything",
        hands_over,
    ),
    (
        "a set is recorded only once it is covered and its members have what was acknowledged",
        records,
    ),
    (
        "WAL is taken only from the holder, whose history contains one's own, and never against a promise",
        follows,
    ),
    (
        "a former primary's directory becomes a standby's only if it is contained, or is a witness",
        former_primary,
    ),
    ("a job fits the directory", jobs),
    (
        "a foreign directory is neither started, nor replaced, nor rewound",
        foreign,
    ),
    ("promises never go down", promises),
    ("what is told of oneself is true", reports),
    (
        "paused: nobody takes over, nothing that others stopped is opened, nothing is rewound or replaced",
        paused,
    ),
    ("a failing disk does not renew", disk),
];

/// The first rule that a case breaks.
pub(crate) fn broken(case: &Case<'_>) -> Option<&'static str> {
    RULES
        .iter()
        .find(|(_, holds)| !holds(case))
        .map(|(rule, _)| *rule)
}
