//! What the pods run on, for faults that no process of theirs causes: network, disks, clocks.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::harness::{Demo, LIMIT, wait_for};
use crate::namespaces;
use crate::plain::run;
use crate::preloaded::{Disturbed, Preloaded};
use crate::volume::Volume;

/// Much more than the rows and the WAL of a run need; tmpfs takes memory for what is used.
pub(super) const SIZE: &str = "1500m";
/// A commit takes milliseconds; a primary that writes nothing for seconds would be replaced.
const HANG: Duration = Duration::from_millis(700);
/// Little is written.
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'test', '')";
/// Pods whose volumes can be full.
const VOLUMES: u32 = 3;

pub(super) struct Hardware {
    pub(super) preloaded: Preloaded,
    /// Each is filled by one fault at a time.
    volumes: Vec<Mutex<Volume>>,
}

impl Hardware {
    /// Under a folder where no demo has been yet: a disk for each pod, if this is in namespaces of its own.
    pub(super) fn new(folder: &Path, demo: &Path) -> Self {
        let pods = 0..if namespaces::inside() { VOLUMES } else { 0 };
        let volumes = pods.map(|pod| {
            let path = demo.join(format!("volumes/data-demo-{pod}"));
            std::fs::create_dir_all(&path).expect("a mount point");
            Mutex::new(Volume::mount(&path, SIZE))
        });
        Self {
            preloaded: Preloaded::new(&folder.join("faults")),
            volumes: volumes.collect(),
        }
    }

    /// The volume of a pod, if it is a disk of its own.
    pub(super) fn volume(&self, pod: u32) -> Option<&Mutex<Volume>> {
        self.volumes.get(usize::try_from(pod).expect("small"))
    }

    /// Takes everything back.
    pub(super) fn heal(&self) {
        self.preloaded.heal();
        for volume in &self.volumes {
            // Who held it may have failed a check.
            volume.lock().unwrap_or_else(PoisonError::into_inner).resize(SIZE);
        }
    }

    /// After a run that failed, and its demo's end: what the disks hold, for whoever looks at it.
    pub(super) fn keep(self, demo: &Path) {
        for (pod, volume) in self.volumes.iter().enumerate() {
            let kept = demo.join(format!("volumes/kept-demo-{pod}"));
            let volume = volume.lock().unwrap_or_else(PoisonError::into_inner);
            run(Command::new("cp").arg("-a").arg(volume.path()).arg(kept));
        }
    }

    /// A fault that does not bite would be a check that cannot fail.
    pub(super) fn check_that_it_bites(&self, demo: &Demo, primary: &str) {
        let (member, pod) = (["--member", primary], format!("demo-{primary}"));
        let now = "SELECT extract(epoch FROM clock_timestamp())::bigint";
        let asked = || demo.sql(&member, now).parse::<i64>().expect("a time");
        let before = asked();
        self.preloaded.add(&pod, Disturbed::ClockStep, 3_600_000_000);
        assert!(asked() >= before + 3600, "the clock was not set");
        self.preloaded.heal();

        self.preloaded.add(&pod, Disturbed::DiskDelay, 200_000);
        let began = Instant::now();
        demo.sql(&member, COMMIT);
        assert!(
            began.elapsed() >= Duration::from_millis(200),
            "the disk is not slow"
        );
        self.preloaded.heal();

        self.preloaded.add(&pod, Disturbed::DiskHangs, 1);
        std::thread::scope(|scope| {
            let commit = scope.spawn(|| demo.sql(&member, COMMIT));
            std::thread::sleep(HANG);
            assert!(!commit.is_finished(), "the disk does not hang");
            self.preloaded.heal();
        });

        if namespaces::inside() {
            let sources = "SELECT string_agg(host(client_addr), ' ' ORDER BY client_addr) \
                           FROM pg_stat_replication WHERE application_name LIKE 'demo-%'";
            let others = demo.deployed().pods.into_iter().filter(|other| other.name != pod);
            let others: Vec<String> = others.map(|other| other.address.to_string()).collect();
            let came = wait_for(LIMIT, || demo.sql(&member, sources) == others.join(" "));
            assert!(came, "standbys do not speak from {others:?}");
        }
    }
}
