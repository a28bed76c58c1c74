//! Links between members, the streams in which they tell each other of themselves, and what a member hears.

use std::rc::Rc;

use podgres::core::cluster::PeerContact;
use podgres::core::member::Ordinal;
use podgres::core::observation::PeerView;

use crate::config::{MS, SECOND, Time};
use crate::event::Event;
use crate::world::World;

/// How often a stream says that it is there; part of the peer timeout.
const BEATS_PER_TIMEOUT: u64 = 4;

/// Which links are cut, one way each; several faults may cut the same.
#[derive(Debug)]
pub(crate) struct Network {
    members: usize,
    cuts: Vec<u32>,
}

impl Network {
    pub(crate) fn new(members: usize) -> Self {
        Self {
            members,
            cuts: vec![0; members * members],
        }
    }

    pub(crate) fn up(&self, from: usize, to: usize) -> bool {
        self.cuts[from * self.members + to] == 0
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cuts[from * self.members + to] += 1;
    }

    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        let cuts = &mut self.cuts[from * self.members + to];
        *cuts = cuts.saturating_sub(1);
    }

    pub(crate) fn mend_all(&mut self) {
        self.cuts.fill(0);
    }
}

/// One stream from a peer.
#[derive(Debug, Default)]
pub(crate) struct Ear {
    open: bool,
    stream: u64,
    ever: bool,
    last_line: Time,
    /// Since when no beat has come.
    quiet_since: Option<Time>,
    arrives: Time,
    beat: Time,
}

impl Ear {
    /// The listener itself is held up: what comes meanwhile is heard later.
    pub(crate) fn hold(&mut self, now: Time) {
        if self.open {
            self.quiet_since.get_or_insert(now);
        }
    }

    /// Beats are not simulated one by one: while a stream is well, the last one is as old as the phase says.
    pub(crate) fn heard_ms_ago(&self, now: Time) -> Option<u64> {
        if !self.ever {
            return None;
        }
        let beat = match self.quiet_since {
            Some(since) => since,
            None if self.open => now - now % self.beat.max(MS),
            None => 0,
        };
        Some(now.saturating_sub(beat.max(self.last_line)) / MS)
    }
}

/// What was told, in place of what was known: a name that is still the same stays where it is.
fn take_words(known: &mut PeerView, told: &PeerView, named: bool) {
    let mut uid = std::mem::take(&mut known.uid);
    uid.clone_from(&told.uid);
    *known = PeerView {
        named,
        uid,
        slot: told.slot.clone(),
        slots: told.slots.clone(),
        leadership: told.leadership.clone(),
        ..*told
    };
}

/// How one member stands to another, as the network has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Well,
    Silent,
    /// The pod is there and nobody listens.
    Refused,
    /// There is no such pod.
    Gone,
}

impl World {
    fn way(&self, observer: usize, of: usize) -> Way {
        let there = &self.members[of];
        if !there.exists {
            return Way::Gone;
        }
        if !self.network.up(observer, of) || !self.network.up(of, observer) || there.frozen {
            return Way::Silent;
        }
        match (&there.sidecar, there.sidecar_paused) {
            (None, _) => Way::Refused,
            (Some(_), true) => Way::Silent,
            (Some(_), false) => Way::Well,
        }
    }

    /// Something about a member has changed: both directions of all its streams are looked at.
    pub(crate) fn touch(&mut self, member: usize) {
        for other in 0..self.members.len() {
            if other != member {
                self.touch_pair(member, other);
                self.touch_pair(other, member);
            }
        }
    }

    pub(crate) fn touch_pair(&mut self, observer: usize, of: usize) {
        let way = self.way(observer, of);
        let now = self.now;
        let timeout = self.members[observer].policy.times.peer_timeout_ms * MS;
        let first = self.random.skewed(200, 20 * MS);
        let again = self.random.between(10 * MS, 600 * MS);
        let Some(sidecar) = &mut self.members[observer].sidecar else {
            return;
        };
        let (epoch, ear) = (sidecar.epoch, &mut sidecar.ears[of]);
        ear.beat = (timeout / BEATS_PER_TIMEOUT).min(SECOND / 2);
        let delay = match (ear.open, way) {
            (true, Way::Well | Way::Refused) => first,
            (true, Way::Silent | Way::Gone) => {
                let phase = now - now % ear.beat;
                ear.quiet_since.get_or_insert(phase.max(ear.last_line));
                (ear.quiet_since.unwrap_or(now) + timeout).saturating_sub(now)
            }
            (false, Way::Well | Way::Refused | Way::Gone) => again,
            (false, Way::Silent) => again + timeout,
        };
        self.after(delay, Event::Hear { observer, epoch, of });
    }

    /// A stream, or the attempt at one, shows what has become of it.
    pub(crate) fn hear(&mut self, observer: usize, epoch: u64, of: usize) {
        let way = self.way(observer, of);
        let (now, stream) = (self.now, self.name());
        let timeout = self.members[observer].policy.times.peer_timeout_ms * MS;
        let vague = self.random.chance(50);
        let published = self.members[of]
            .sidecar
            .as_ref()
            .and_then(|sidecar| sidecar.published.clone());
        let exists = self.members[of].exists;
        if self.members[observer].frozen || self.members[observer].sidecar_paused {
            return;
        }
        let Some(sidecar) = self.sidecar(observer, epoch) else {
            return;
        };
        let ordinal = Ordinal(u32::try_from(of).unwrap_or(0));
        let ear = &mut sidecar.ears[of];
        let Some(view) = sidecar.observation.peers.get_mut(&ordinal) else {
            if exists {
                sidecar.observation.peers.insert(ordinal, PeerView::untried());
                self.after(MS, Event::Hear { observer, epoch, of });
            }
            return;
        };
        view.named = exists;
        let before = view.contact;
        let mut lines = false;
        match (ear.open, way) {
            (_, Way::Well) => {
                let anew = !ear.open || ear.quiet_since.is_some();
                // The first line comes with the connection.
                if !ear.open && published.is_none() {
                    return self.after(20 * MS, Event::Hear { observer, epoch, of });
                }
                if !ear.open {
                    ear.stream = stream;
                    ear.arrives = now;
                }
                ear.open = true;
                ear.quiet_since = None;
                ear.ever = true;
                lines = anew;
            }
            (true, Way::Silent | Way::Gone) => {
                let since = *ear.quiet_since.get_or_insert(now);
                if now < since + timeout {
                    return self.at(since + timeout, Event::Hear { observer, epoch, of });
                }
                ear.open = false;
                view.contact = PeerContact::TimedOut;
            }
            (true, Way::Refused) => {
                ear.open = false;
                ear.last_line = now;
                ear.quiet_since = Some(now);
                view.contact = PeerContact::Closed;
                let again = self.random.between(5 * MS, 300 * MS);
                self.after(again, Event::Hear { observer, epoch, of });
            }
            (false, Way::Refused) => view.contact = PeerContact::Refused,
            (false, Way::Gone) if exists || vague => view.contact = PeerContact::Unreachable,
            (false, Way::Gone | Way::Silent) => view.contact = PeerContact::TimedOut,
        }
        let Some(sidecar) = self.sidecar(observer, epoch) else {
            return;
        };
        let contact = sidecar.observation.peers.get_mut(&ordinal).map(|view| {
            if view.contact != PeerContact::Connected {
                view.writable = false;
                view.running = false;
            }
            view.contact
        });
        if contact != Some(before) {
            self.log(observer, || format!("hears pg-{of}: {contact:?}"));
            self.wake(observer, 200);
        }
        if lines && let Some(view) = published {
            self.send_line(of, observer, &view, true);
        }
    }

    pub(crate) fn send_lines(&mut self, from: usize, view: &Rc<PeerView>, news: bool) {
        for observer in 0..self.members.len() {
            if observer != from {
                self.send_line(from, observer, view, news);
            }
        }
    }

    fn send_line(&mut self, from: usize, observer: usize, view: &Rc<PeerView>, news: bool) {
        if self.way(observer, from) != Way::Well {
            return;
        }
        let (low, high) = self.config.link_delay;
        let delay = self.random.skewed(low, high);
        let now = self.now;
        let Some(sidecar) = &mut self.members[observer].sidecar else {
            return;
        };
        let (epoch, ear) = (sidecar.epoch, &mut sidecar.ears[from]);
        if !ear.open {
            return;
        }
        ear.arrives = (now + delay).max(ear.arrives + 1);
        let (at, stream) = (ear.arrives, ear.stream);
        let view = Rc::clone(view);
        self.at(
            at,
            Event::Line {
                observer,
                epoch,
                from,
                stream,
                view,
                news,
            },
        );
    }

    pub(crate) fn line(
        &mut self,
        observer: usize,
        epoch: u64,
        (from, stream): (usize, u64),
        view: &Rc<PeerView>,
        news: bool,
    ) {
        let (now, up) = (self.now, self.network.up(from, observer));
        let named = self.members[from].exists;
        let Some(sidecar) = self.sidecar(observer, epoch) else {
            return;
        };
        let ear = &mut sidecar.ears[from];
        if !ear.open || ear.stream != stream || !up {
            return;
        }
        ear.last_line = now;
        let ordinal = Ordinal(u32::try_from(from).unwrap_or(0));
        let known = sidecar.observation.peers.entry(ordinal);
        take_words(known.or_insert_with(PeerView::untried), view, named);
        if news {
            self.wake(observer, 200);
        }
    }

    /// Streams of WAL between two members end or go on, when the link between them is cut or mended.
    pub(crate) fn touch_wal(&mut self, one: usize, two: usize) {
        for (standby, upstream) in [(one, two), (two, one)] {
            let up = self.network.up(standby, upstream)
                && self.network.up(upstream, standby)
                && !self.members[upstream].frozen
                && !self.members[standby].frozen;
            let now = self.now;
            let Some(postgres) = &mut self.members[standby].postgres else {
                continue;
            };
            let pg = postgres.pg;
            let Some(receiver) = postgres.receiver.as_mut().filter(|r| r.upstream == upstream) else {
                continue;
            };
            let (conn, upstream_pg) = (receiver.conn, receiver.upstream_pg);
            if up {
                receiver.cut_at = None;
                let known = self.postgres(upstream, upstream_pg);
                let there = known.is_some_and(|p| p.senders.iter().any(|sender| sender.conn == conn));
                if there {
                    self.retransmit(upstream, conn);
                } else {
                    self.after(
                        MS,
                        Event::ReceiverEnd {
                            member: standby,
                            pg,
                            conn,
                        },
                    );
                }
            } else if receiver.cut_at.is_none() {
                receiver.cut_at = Some(now);
                self.after(
                    5 * SECOND,
                    Event::CutLook {
                        member: standby,
                        pg,
                        conn,
                        cut_at: now,
                    },
                );
            }
        }
    }
}
