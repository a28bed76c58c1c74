//! What can go wrong, drawn from the seed alone, and how it is done to a demo.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Demo, member};
use crate::kit::family;

/// One fault with everything that is drawn for it.
#[derive(Debug)]
pub(super) enum Fault {
    /// A signal to `supervisor`, `postgres` or `sidecar` of a pod.
    Signal(u32, &'static str, Signal),
    /// KILL to a child of the postmaster whose title holds these words.
    KillChild(u32, &'static str),
    DeletePod(u32, &'static [&'static str]),
    Freeze(u32, Duration),
    /// To four pods, and back to three after this time.
    Scale(Duration),
}

impl Fault {
    pub(super) fn draw(random: &mut fastrand::Rng) -> Self {
        let (kind, pod) = (random.u32(0..16), random.u32(0..3));
        let standby = pod.max(1);
        let time = Duration::from_millis(random.u64(500..8000));
        match kind {
            0 | 1 => Self::Signal(pod, "postgres", Signal::KILL),
            2 | 3 => Self::Signal(pod, "sidecar", Signal::KILL),
            4 | 5 => Self::Signal(pod, "supervisor", Signal::KILL),
            6 => Self::Signal(pod, "supervisor", Signal::TERM),
            7 => Self::DeletePod(pod, &[]),
            8 => Self::DeletePod(pod, &["--force"]),
            // The first pod's volume is the only one that cannot come back.
            9 => Self::DeletePod(standby, &["--wipe-volume"]),
            10 => Self::DeletePod(standby, &["--force", "--wipe-volume"]),
            11 => Self::DeletePod(pod, &["--move-address"]),
            12 | 13 => Self::Freeze(pod, time),
            14 if random.bool() => Self::KillChild(standby, "walreceiver"),
            14 => Self::KillChild(pod, "postgres"),
            _ => Self::Scale(time),
        }
    }

    /// Does it; what came of it, since an earlier fault may have left nothing to do it to.
    pub(super) fn happen(&self, demo: &Demo) -> String {
        match *self {
            Self::Signal(pod, process, signal) => match pid(demo, pod, process) {
                Some(pid) => send(demo, pid, signal),
                None => "no such process".to_owned(),
            },
            Self::KillChild(pod, title) => kill_child(demo, pod, title),
            Self::DeletePod(pod, how) => {
                let pod = pod.to_string();
                ask(demo, &[&["delete-pod", &pod], how].concat())
            }
            Self::Freeze(pod, time) => {
                let pod = pod.to_string();
                let frozen = ask(demo, &["freeze", &pod]);
                std::thread::sleep(time);
                format!("{frozen}; {}", ask(demo, &["thaw", &pod]))
            }
            Self::Scale(time) => {
                let more = ask(demo, &["scale", "4"]);
                std::thread::sleep(time);
                format!("{more}; {}", ask(demo, &["scale", "3"]))
            }
        }
    }
}

pub(crate) fn ask(demo: &Demo, words: &[&str]) -> String {
    let output = demo.try_ask(words);
    let said = if output.status.success() {
        output.stdout
    } else {
        output.stderr
    };
    String::from_utf8_lossy(&said).trim_end().to_owned()
}

fn pid(demo: &Demo, pod: u32, process: &str) -> Option<u32> {
    let status = demo.status()?;
    let pid = member(&status, &format!("demo-{pod}"))["pids"][process].as_u64()?;
    u32::try_from(pid).ok()
}

fn kill_child(demo: &Demo, pod: u32, title: &str) -> String {
    let Some(postmaster) = pid(demo, pod, "postgres") else {
        return "no postmaster".to_owned();
    };
    let mut children = family(postmaster).into_iter().map(|process| process.pid);
    let child = children.find(|pid| *pid != postmaster && file(*pid, "cmdline").contains(title));
    match child {
        Some(child) => send(demo, child, Signal::KILL),
        None => "no such child".to_owned(),
    }
}

/// Signals only what works for this demo: what a status says may be a moment old.
pub(crate) fn send(demo: &Demo, pid: u32, signal: Signal) -> String {
    let ours = |text: &str| text.contains(&demo.directory.display().to_string());
    let cwd = std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("cwd"));
    let works = cwd.is_ok_and(|cwd| ours(&cwd.display().to_string())) || ours(&file(pid, "environ"));
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match process.filter(|_| works) {
        Some(process) => format!("{:?}", kill_process(process, signal)),
        None => "has ended".to_owned(),
    }
}

/// A file of a process in `/proc`; empty if it has ended.
fn file(pid: u32, name: &str) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
