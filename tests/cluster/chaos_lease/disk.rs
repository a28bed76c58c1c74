//! Disks that are slow, hang or are full, and clocks that step.

use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use super::hardware::Hardware;
use crate::preloaded::Disturbed;

/// Disturbs a pod for a while; what came of it. `pids`: processes of the pod that must notice.
pub(super) fn disturb(
    hardware: &Hardware,
    pod: &str,
    pids: &[u32],
    (what, value): (Disturbed, i64),
    time: Duration,
) -> String {
    let reached: Vec<bool> = pids
        .iter()
        .filter_map(|pid| hardware.preloaded.reaches(*pid))
        .collect();
    assert!(!reached.contains(&false), "{pod} would not notice: {pids:?}");
    hardware.preloaded.add(pod, what, value);
    std::thread::sleep(time);
    hardware.preloaded.add(pod, what, -value);
    format!("{} processes", reached.len())
}

/// Leaves no room on a pod's volume for a while; what came of it.
pub(super) fn fill(hardware: &Hardware, ordinal: u32, time: Duration) -> String {
    let Some(volume) = hardware.volume(ordinal) else {
        return "not a disk of its own".to_owned();
    };
    let Ok(volume) = volume.try_lock() else {
        return "full already".to_owned();
    };
    let used = volume.fill();
    let path = volume.path().join("probe");
    let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(&vec![0; 1 << 20]));
    // Gone before this is judged.
    drop(std::fs::remove_file(&path));
    let error = written.err().map(|error| error.kind());
    assert_eq!(
        error,
        Some(ErrorKind::StorageFull),
        "{} is not full",
        path.display()
    );
    std::thread::sleep(time);
    volume.resize(super::hardware::SIZE);
    format!("full with {} MiB", used >> 20)
}
