//! What can go wrong, drawn from the seed alone, and how it is done to a demo. Half of it falls on whoever is primary.

use std::time::Duration;

use podgres::demo::container::Container;
use rustix::process::Signal;

use crate::chaos::checks::controller;
use crate::chaos::faults::{ask, send};
use crate::harness::Demo;
use crate::kit::family;
use crate::namespaces;
use crate::preloaded::Disturbed;

use super::hardware::Hardware;
use super::network::From;
use super::{checks, disk, network};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// Who holds the Lease when it happens.
    Primary,
    Ordinal(u32),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Postmaster,
    /// The postmaster and all that descends from it.
    Server,
    Sidecar,
    Supervisor,
    /// Sidecar and supervisor: nobody is left who could stop the server.
    Agents,
}

/// One fault with everything that is drawn for it.
#[derive(Debug)]
pub(super) enum Fault {
    Kill(Whom, Part),
    Freeze(Whom, Part, Duration),
    FreezePod(Whom, Duration),
    DeletePod(Whom, &'static [&'static str]),
    ApiDown(Duration),
    Switchover,
    /// To so many pods, and back to three after this time.
    Scale(u32, Duration),
    Cut(Whom, From, Duration),
    /// Each write and flush takes the first time longer.
    SlowDisk(Whom, Duration, Duration),
    HangingDisk(Whom, Duration),
    FullDisk(Whom, Duration),
    /// So many milliseconds off, and back.
    Clock(Whom, i64, Duration),
}

/// Draws without a fault that is asked for, after which there is none.
const DRAWS: u32 = 100_000;

/// Where faults come from.
pub(super) struct Draw {
    pub(super) random: fastrand::Rng,
    only: Option<String>,
}

impl Draw {
    pub(super) fn new(seed: u64, only: Option<String>) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, only }
    }

    /// One or two that happen together; no volume is lost while members come and go.
    pub(super) fn round(&mut self) -> Vec<Fault> {
        let first = self.fault();
        if self.random.bool() {
            return vec![first];
        }
        let second = self.fault();
        let heavy = |fault: &Fault| fault.takes_a_volume() || matches!(fault, Fault::Scale(..));
        let one = heavy(&first) && heavy(&second);
        if one { vec![first] } else { vec![first, second] }
    }

    fn fault(&mut self) -> Fault {
        for _ in 0..DRAWS {
            let fault = Fault::draw(&mut self.random);
            let kind = fault.kind();
            let wanted = |only: &String| only.split(',').any(|word| kind.contains(word));
            let possible = namespaces::inside() || !fault.needs_namespaces();
            if possible && self.only.as_ref().is_none_or(wanted) {
                return fault;
            }
        }
        panic!("no fault is named {:?}", self.only);
    }
}

impl Fault {
    fn draw(random: &mut fastrand::Rng) -> Self {
        let whom = if random.bool() {
            Whom::Primary
        } else {
            Whom::Ordinal(random.u32(0..3))
        };
        let parts = [
            Part::Postmaster,
            Part::Server,
            Part::Sidecar,
            Part::Supervisor,
            Part::Agents,
        ];
        let part = parts[random.usize(0..parts.len())];
        let longest = [2000, 6000, 20000][random.usize(0..3)];
        let time = Duration::from_millis(random.u64(300..longest));
        match random.u32(0..36) {
            0..5 => Self::Kill(whom, part),
            5..9 => Self::Freeze(whom, part, time),
            9..12 => Self::FreezePod(whom, time),
            12 | 13 => Self::DeletePod(whom, &["--force"]),
            14 => Self::DeletePod(whom, &[]),
            15 => Self::DeletePod(whom, &["--move-address"]),
            16 => Self::DeletePod(
                whom,
                if random.bool() {
                    &["--wipe-volume"]
                } else {
                    &["--force", "--wipe-volume"]
                },
            ),
            17 => Self::ApiDown(time),
            18 => Self::Switchover,
            19 => Self::Scale(random.u32(4..6), time),
            20..29 => Self::Cut(whom, From::draw(random), time),
            29 | 30 => Self::SlowDisk(whom, Duration::from_millis(random.u64(5..300)), time),
            31 => Self::HangingDisk(whom, time),
            32 | 33 => Self::FullDisk(whom, time.clamp(Duration::from_secs(1), Duration::from_secs(15))),
            _ => {
                let far = [1000, 60_000, 3_600_000][random.usize(0..3)];
                Self::Clock(whom, if random.bool() { far } else { -far }, time)
            }
        }
    }

    fn needs_namespaces(&self) -> bool {
        matches!(self, Self::Cut(..) | Self::FullDisk(..))
    }

    fn takes_a_volume(&self) -> bool {
        matches!(self, Self::DeletePod(_, how) if how.contains(&"--wipe-volume"))
    }

    /// What a table counts together.
    pub(super) fn kind(&self) -> String {
        let of = |whom: &Whom| match whom {
            Whom::Primary => "primary",
            Whom::Ordinal(_) => "any",
        };
        match self {
            Self::Kill(whom, part) => format!("kill {part:?} of {}", of(whom)).to_lowercase(),
            Self::Freeze(whom, part, _) => format!("freeze {part:?} of {}", of(whom)).to_lowercase(),
            Self::FreezePod(whom, _) => format!("freeze pod of {}", of(whom)),
            Self::DeletePod(whom, how) => format!("delete pod of {} {}", of(whom), how.join(" ")),
            Self::ApiDown(_) => "api down".to_owned(),
            Self::Switchover => "switchover".to_owned(),
            Self::Scale(..) => "scale".to_owned(),
            Self::Cut(whom, from, _) => format!("cut ({}) of {}", from.kind(), of(whom)),
            Self::SlowDisk(whom, ..) => format!("slow disk of {}", of(whom)),
            Self::HangingDisk(whom, _) => format!("hanging disk of {}", of(whom)),
            Self::FullDisk(whom, _) => format!("full disk of {}", of(whom)),
            Self::Clock(whom, step_ms, _) => {
                let way = if *step_ms < 0 { "back" } else { "on" };
                format!("clock {way} of {}", of(whom))
            }
        }
    }

    /// Does it and takes it back; what came of it. `begins` is told on whom it falls, before.
    pub(super) fn happen(&self, demo: &Demo, hardware: &Hardware, begins: &dyn Fn(&str)) -> String {
        let pod = match self {
            Self::Kill(whom, _)
            | Self::Freeze(whom, ..)
            | Self::FreezePod(whom, _)
            | Self::DeletePod(whom, _)
            | Self::Cut(whom, ..)
            | Self::SlowDisk(whom, ..)
            | Self::HangingDisk(whom, _)
            | Self::FullDisk(whom, _)
            | Self::Clock(whom, ..) => ordinal(demo, *whom),
            Self::ApiDown(_) | Self::Switchover | Self::Scale(..) => None,
        };
        let pod = pod.unwrap_or(0);
        let (name, number) = (format!("demo-{pod}"), pod.to_string());
        if self.takes_a_volume() && !checks::everybody_has_everything(demo) {
            begins("nobody");
            return "not now: another copy may be needed".to_owned();
        }
        begins(&name);
        let disturb = |what, value, time| {
            let pids = [Part::Postmaster, Part::Agents].map(|part| pids(demo, &name, part));
            disk::disturb(hardware, &name, &pids.concat(), (what, value), time)
        };
        let done = match *self {
            Self::Kill(_, part) => signal(demo, &pids(demo, &name, part), Signal::KILL),
            Self::Freeze(_, part, time) => {
                let pids = pids(demo, &name, part);
                let frozen = signal(demo, &pids, Signal::STOP);
                std::thread::sleep(time);
                format!("{frozen}; {}", signal(demo, &pids, Signal::CONT))
            }
            Self::FreezePod(_, time) => {
                let frozen = ask(demo, &["freeze", &number]);
                std::thread::sleep(time);
                format!("{frozen}; {}", ask(demo, &["thaw", &number]))
            }
            Self::DeletePod(_, how) => ask(demo, &[&["delete-pod", &number], how].concat()),
            Self::ApiDown(time) => {
                let down = ask(demo, &["api", "down"]);
                std::thread::sleep(time);
                format!("{down}; {}", ask(demo, &["api", "up"]))
            }
            Self::Switchover => switchover(demo),
            Self::Scale(to, time) => {
                let more = ask(demo, &["scale", &to.to_string()]);
                std::thread::sleep(time);
                format!("{more}; {}", ask(demo, &["scale", "3"]))
            }
            Self::Cut(_, from, time) => network::cut(demo, pod, from, time),
            Self::SlowDisk(_, delay, time) => {
                let delay_us = i64::try_from(delay.as_micros()).expect("short");
                disturb(Disturbed::DiskDelay, delay_us, time)
            }
            Self::HangingDisk(_, time) => disturb(Disturbed::DiskHangs, 1, time),
            Self::FullDisk(_, time) => disk::fill(hardware, pod, time),
            Self::Clock(_, step_ms, time) => disturb(Disturbed::ClockStep, step_ms * 1000, time),
        };
        format!("{name}: {done}")
    }
}

fn ordinal(demo: &Demo, whom: Whom) -> Option<u32> {
    match whom {
        Whom::Ordinal(ordinal) => Some(ordinal),
        Whom::Primary => checks::holder(demo),
    }
}

/// The processes of a part of a pod, as the demo knows them: a frozen sidecar says nothing.
fn pids(demo: &Demo, pod: &str, part: Part) -> Vec<u32> {
    let controller = controller(demo);
    let known = controller.pods.iter().find(|known| known.name == pod);
    let of = |container: Container| -> Vec<u32> {
        let pids = known.into_iter().flat_map(|pod| &pod.pids);
        let chosen = pids.filter(move |(found, _)| *found == container);
        chosen.map(|(_, pid)| *pid).collect()
    };
    let postmaster = || {
        let text = std::fs::read_to_string(demo.data_directory(pod).join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse::<u32>().ok()
    };
    match part {
        Part::Sidecar => of(Container::Sidecar),
        Part::Supervisor => of(Container::Postgres),
        Part::Agents => [of(Container::Sidecar), of(Container::Postgres)].concat(),
        Part::Postmaster => postmaster().into_iter().collect(),
        Part::Server => {
            let family = postmaster().into_iter().flat_map(family);
            family.map(|process| process.pid).collect()
        }
    }
}

fn signal(demo: &Demo, pids: &[u32], signal: Signal) -> String {
    let done: Vec<String> = pids.iter().map(|pid| send(demo, *pid, signal)).collect();
    let well = done.iter().filter(|done| *done == "Ok(())").count();
    format!("{signal:?} to {well} of {}", done.len())
}

fn switchover(demo: &Demo) -> String {
    let output = crate::harness::podgres()
        .args(["switchover", "--dir"])
        .arg(&demo.directory)
        .output()
        .expect("podgres switchover");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    format!("{} {}", output.status, text.lines().next().unwrap_or_default())
}
