//! What is drawn per seed: size, durability, timings, delays, and which faults there are.

use podgres::core::lease::Durability;
use podgres::core::policy::LeaseTimes;

use crate::random::Random;

/// Microseconds of true time, which no member knows.
pub(crate) type Time = u64;

pub(crate) const MS: Time = 1_000;
pub(crate) const SECOND: Time = 1_000 * MS;

/// Faults that a schedule may have; each is switched per seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    CrashPostgres,
    CrashSidecar,
    CrashSupervisor,
    CrashPod,
    EndPod,
    EndContainer,
    FreezePod,
    PauseSidecar,
    LoseVolume,
    ApiAway,
    ApiAwayForOne,
    ApiLossy,
    CutLink,
    CutOneWay,
    Isolate,
    Switchover,
    Failover,
    PauseCluster,
    CancelJob,
    SlowDisk,
    DiskFailing,
    StartFailing,
    Scale,
    Reinit,
    DeleteLease,
}

pub(crate) const ALL_KINDS: &[Kind] = &[
    Kind::CrashPostgres,
    Kind::CrashSidecar,
    Kind::CrashSupervisor,
    Kind::CrashPod,
    Kind::EndPod,
    Kind::EndContainer,
    Kind::FreezePod,
    Kind::PauseSidecar,
    Kind::LoseVolume,
    Kind::ApiAway,
    Kind::ApiAwayForOne,
    Kind::ApiLossy,
    Kind::CutLink,
    Kind::CutOneWay,
    Kind::Isolate,
    Kind::Switchover,
    Kind::Failover,
    Kind::PauseCluster,
    Kind::CancelJob,
    Kind::SlowDisk,
    Kind::DiskFailing,
    Kind::StartFailing,
    Kind::Scale,
    Kind::Reinit,
    Kind::DeleteLease,
];

/// One schedule's settings.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) members: usize,
    pub(crate) durability: Durability,
    pub(crate) times: LeaseTimes,
    /// Parts per million and a start, per member.
    pub(crate) faults: Vec<Kind>,
    pub(crate) fault_pause: (Time, Time),
    pub(crate) fault_length: (Time, Time),
    pub(crate) link_delay: (Time, Time),
    pub(crate) api_delay: (Time, Time),
    pub(crate) fsync: (Time, Time),
    pub(crate) write_pause: (Time, Time),
    pub(crate) recovery: (Time, Time),
    /// How many times longer than it wants to an agent waits for its next turn: machines are busy.
    pub(crate) slowness: Time,
    /// Bootstrap, then faults until, then healed until.
    pub(crate) faults_from: Time,
    pub(crate) faults_until: Time,
    pub(crate) heal_bound: Time,
}

impl Config {
    /// Draws all of it. `members` and `durability` may be given.
    pub(crate) fn draw(seed: u64, members: Option<usize>, durability: Option<Durability>) -> Self {
        let mut random = Random::new(seed ^ 0xC0FF_EE00);
        let drawn = [3, 3, 3, 3, 2, 5, 7][random.below(7)];
        let members = members.unwrap_or(drawn);
        let drawn = match random.below(8) {
            0 => Durability::Async,
            1 => Durability::Preferred,
            _ => Durability::Majority,
        };
        let durability = durability.unwrap_or(drawn);
        let times = times(&mut random);
        let slow = random.chance(25);
        let kinds = random.between(1, 6);
        let mut faults: Vec<Kind> = (0..kinds)
            .map(|_| ALL_KINDS[random.below(ALL_KINDS.len())])
            .collect();
        // A deleted Lease beside members that DNS does not name leaves nobody who could know: that is the operator's.
        let absent = [Kind::CrashPod, Kind::EndPod, Kind::LoseVolume, Kind::Scale];
        if faults.contains(&Kind::DeleteLease) {
            faults.retain(|kind| !absent.contains(kind));
        }
        let lease = times.lease_duration_ms * MS;
        Self {
            seed,
            members,
            durability,
            times,
            faults,
            fault_pause: (200 * MS, [2 * SECOND, lease, 3 * lease][random.below(3)]),
            fault_length: (50 * MS, [lease / 4, lease, 2 * lease][random.below(3)]),
            link_delay: (50, if slow { 200 * MS } else { 2 * MS }),
            api_delay: (MS, [5 * MS, 50 * MS, 500 * MS][random.below(3)]),
            fsync: (100, [MS, 5 * MS, 100 * MS][random.below(3)]),
            write_pause: (20 * MS, [200 * MS, 600 * MS, 2 * SECOND][random.below(3)]),
            slowness: [1, 4, 8, 8][random.below(4)],
            recovery: (50 * MS, [200 * MS, SECOND, 10 * SECOND][random.below(3)]),
            faults_from: 20 * SECOND,
            faults_until: 300 * SECOND,
            heal_bound: 300 * SECOND,
        }
    }

    pub(crate) fn name(&self) -> String {
        format!(
            "{} members, {}, {:?}, faults {:?}",
            self.members,
            self.durability.as_str(),
            self.times,
            self.faults
        )
    }
}

/// As the relations that are checked at start-up allow them, narrow margins included.
fn times(random: &mut Random) -> LeaseTimes {
    if random.chance(20) {
        return LeaseTimes::default();
    }
    let renew_deadline_ms = random.between(1_500, 10_000);
    let stop_timeout_ms = random.between(200, 3_000);
    let margin_ms = random.skewed(50, 2_000) + renew_deadline_ms / 200;
    LeaseTimes {
        lease_duration_ms: renew_deadline_ms + stop_timeout_ms + margin_ms,
        renew_deadline_ms,
        retry_period_ms: random.between(150, renew_deadline_ms / 2 - 1),
        peer_timeout_ms: random.between(300, 2_500),
        stop_timeout_ms,
        drain_timeout_ms: 0,
        recovery_timeout_ms: random.between(2_000, 30_000),
    }
}
