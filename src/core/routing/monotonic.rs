//! Monotonic reads: a client does not see older data than it may have seen in an earlier session, told apart by its address.
//!
//! What is remembered of a client is where its sessions are or were, and a position that covers what it can have read. Where it was is
//! asked when its next session begins: a server that answers then is at least where it was. Of the clients that were seen longest
//! ago only one position is kept for all, so that memory has a bound and the promise has none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::freshness::Position;
use crate::core::wal::{Lsn, TimelineId};

/// Clients without a session that are remembered one by one.
const MOST_CLIENTS: usize = 10_000;

/// Where a client may have read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub server: String,
    /// After a crash a standby may begin behind where it was.
    pub incarnation: u64,
}

/// A position that covers what a client can have read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Floor {
    pub timeline: TimelineId,
    pub lsn: Lsn,
}

/// What has to be asked before a client's next session, and what is known without asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    pub places: BTreeSet<Place>,
    pub floor: Floor,
    /// Sessions that end from here on are not answered by what is asked now.
    asked: u64,
}

impl Question {
    /// The floor, from what the places and the primary have answered after the question was put; `None` if that is not enough.
    ///
    /// No standby is further than its primary has been. A floor of an earlier timeline than the primary's may lie in WAL that no
    /// longer exists anywhere: then whatever the primary has is all that is left of it.
    #[must_use]
    pub fn resolved(&self, answers: &BTreeMap<Place, Position>, primary: Option<Position>) -> Option<Floor> {
        let of = |position: &Position| Floor {
            timeline: position.timeline,
            lsn: position.lsn,
        };
        let mut floor = self.floor;
        for place in &self.places {
            let answer = answers.get(place).or(primary.as_ref())?;
            floor = floor.max(of(answer));
        }
        match primary {
            Some(primary) if primary.timeline > floor.timeline && floor != Floor::default() => Some(Floor {
                timeline: primary.timeline,
                lsn: floor.lsn.min(primary.lsn),
            }),
            _ => Some(floor),
        }
    }
}

/// One client, or all that are not remembered one by one.
#[derive(Clone, Debug, Default)]
struct Reader {
    floor: Floor,
    open: BTreeMap<Place, usize>,
    /// Where a session has ended since it was last asked, and as the how manyeth of all.
    left: BTreeMap<Place, u64>,
    /// When its last session ended, as the how manyeth of all.
    idle_since: u64,
}

/// Clients of the routes of one process.
#[derive(Debug)]
pub struct Readers {
    most: usize,
    ends: u64,
    clients: BTreeMap<IpAddr, Reader>,
    /// Those without a session, the longest without first.
    idle: BTreeMap<u64, IpAddr>,
    others: Reader,
}

impl Default for Readers {
    fn default() -> Self {
        Self::remembering(MOST_CLIENTS)
    }
}

impl Readers {
    /// That many clients without a session one by one.
    #[must_use]
    pub fn remembering(most: usize) -> Self {
        Self {
            most,
            ends: 0,
            clients: BTreeMap::new(),
            idle: BTreeMap::new(),
            others: Reader::default(),
        }
    }

    /// A session of the client begins there.
    pub fn began(&mut self, client: IpAddr, place: Place) {
        let client = client.to_canonical();
        let others = &self.others;
        // It may be one that is not remembered any more.
        let reader = self.clients.entry(client).or_insert_with(|| others.clone());
        self.idle.remove(&reader.idle_since);
        *reader.open.entry(place).or_default() += 1;
    }

    /// A session of the client has ended there.
    pub fn ended(&mut self, client: IpAddr, place: Place) {
        let client = client.to_canonical();
        self.ends += 1;
        let Some(reader) = self.clients.get_mut(&client) else {
            return;
        };
        if let Some(open) = reader.open.get_mut(&place) {
            *open -= 1;
            if *open == 0 {
                reader.open.remove(&place);
            }
        }
        reader.left.insert(place, self.ends);
        if reader.open.is_empty() {
            reader.idle_since = self.ends;
            self.idle.insert(self.ends, client);
            self.forget_the_oldest();
        }
    }

    fn forget_the_oldest(&mut self) {
        while self.idle.len() > self.most {
            let Some((_, client)) = self.idle.pop_first() else {
                return;
            };
            let Some(reader) = self.clients.remove(&client) else {
                continue;
            };
            self.others.floor = self.others.floor.max(reader.floor);
            for (place, end) in reader.left {
                let known = self.others.left.entry(place).or_default();
                *known = end.max(*known);
            }
        }
    }

    /// What to ask before the client's next session.
    #[must_use]
    pub fn question(&self, client: IpAddr) -> Question {
        let reader = self.clients.get(&client.to_canonical()).unwrap_or(&self.others);
        Question {
            places: reader.open.keys().chain(reader.left.keys()).cloned().collect(),
            floor: reader.floor,
            asked: self.ends,
        }
    }

    /// Keeps what was found out.
    pub fn answered(&mut self, client: IpAddr, question: &Question, floor: Floor) {
        let reader = self.clients.get_mut(&client.to_canonical());
        let reader = reader.unwrap_or(&mut self.others);
        reader.floor = reader.floor.max(floor);
        reader.left.retain(|_, end| *end > question.asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn at(server: &str) -> Place {
        Place {
            server: server.to_owned(),
            incarnation: 1,
        }
    }

    fn position(timeline: u32, lsn: u64, primary: bool) -> Position {
        Position {
            timeline: TimelineId(timeline),
            lsn: Lsn(lsn),
            primary,
            streaming: !primary,
            measured: None,
        }
    }

    fn floor(timeline: u32, lsn: u64) -> Floor {
        Floor {
            timeline: TimelineId(timeline),
            lsn: Lsn(lsn),
        }
    }

    /// Asks, and every place answers with that position.
    fn ask(readers: &mut Readers, client: IpAddr, lsn: u64) -> Floor {
        let question = readers.question(client);
        let answers = question.places.iter().cloned();
        let answers = answers.map(|place| (place, position(1, lsn, false))).collect();
        let floor = question.resolved(&answers, None).expect("all have answered");
        readers.answered(client, &question, floor);
        floor
    }

    #[test]
    fn where_a_session_was_is_asked_once_and_where_one_is_each_time() {
        let mut readers = Readers::default();
        assert_eq!(
            ask(&mut readers, client(1), 50),
            Floor::default(),
            "it has read nothing"
        );
        readers.began(client(1), at("a"));
        assert_eq!(ask(&mut readers, client(1), 100), floor(1, 100));
        assert_eq!(
            ask(&mut readers, client(1), 120),
            floor(1, 120),
            "it may go on reading"
        );
        readers.ended(client(1), at("a"));
        assert_eq!(ask(&mut readers, client(1), 140), floor(1, 140));
        assert_eq!(readers.question(client(1)).places, BTreeSet::new());
        assert_eq!(ask(&mut readers, client(1), 999), floor(1, 140));
        let mapped = "::ffff:192.0.2.1".parse().expect("an address");
        assert_eq!(readers.question(mapped).floor, floor(1, 140), "the same client");
        assert_eq!(readers.question(client(2)).floor, Floor::default());
    }

    #[test]
    fn what_ends_after_the_question_is_asked_again() {
        let mut readers = Readers::default();
        readers.began(client(1), at("a"));
        let question = readers.question(client(1));
        readers.ended(client(1), at("a"));
        readers.answered(client(1), &question, floor(1, 100));
        assert_eq!(readers.question(client(1)).places, BTreeSet::from([at("a")]));
    }

    #[test]
    fn memory_is_bounded_and_the_forgotten_are_remembered_together() {
        let mut readers = Readers::remembering(2);
        for (last, server, lsn) in [(1, "a", 300), (2, "b", 100), (3, "b", 100), (4, "b", 100)] {
            readers.began(client(last), at(server));
            readers.ended(client(last), at(server));
            if last == 1 {
                ask(&mut readers, client(last), lsn);
            }
        }
        assert_eq!((readers.clients.len(), readers.idle.len()), (2, 2));
        let forgotten = readers.question(client(1));
        assert_eq!(forgotten.floor, floor(1, 300), "its own floor");
        assert_eq!(forgotten.places, BTreeSet::from([at("b")]), "of the second");
        readers.began(client(1), at("c"));
        let back = readers.question(client(1));
        assert_eq!(back.floor, floor(1, 300));
        assert_eq!(back.places, BTreeSet::from([at("b"), at("c")]));
        for last in 10..20 {
            readers.began(client(last), at("a"));
        }
        assert_eq!(
            readers.clients.len(),
            2 + 11,
            "nobody is forgotten who has a session"
        );
    }

    #[test]
    fn a_place_that_does_not_answer_is_behind_the_primary() {
        let mut readers = Readers::default();
        readers.began(client(1), at("a"));
        readers.began(client(1), at("b"));
        let question = readers.question(client(1));
        let one = BTreeMap::from([(at("a"), position(1, 100, false))]);
        assert_eq!(question.resolved(&one, None), None);
        let primary = position(1, 500, true);
        assert_eq!(question.resolved(&one, Some(primary)), Some(floor(1, 500)));
        let restarted = Place {
            incarnation: 2,
            ..at("b")
        };
        let again = BTreeMap::from([
            one.into_iter().next().expect("a"),
            (restarted, position(1, 90, false)),
        ]);
        assert_eq!(
            question.resolved(&again, None),
            None,
            "it may have begun further back"
        );
    }

    #[test]
    fn what_a_failover_has_lost_is_not_waited_for() {
        let question = Question {
            floor: floor(1, 900),
            ..Question::default()
        };
        let none = BTreeMap::new();
        assert_eq!(
            question.resolved(&none, Some(position(1, 100, true))),
            Some(floor(1, 900))
        );
        assert_eq!(
            question.resolved(&none, Some(position(2, 700, true))),
            Some(floor(2, 700))
        );
        assert_eq!(
            question.resolved(&none, Some(position(2, 950, true))),
            Some(floor(2, 900))
        );
        let nothing = Question::default();
        let fresh = nothing.resolved(&none, Some(position(2, 950, true)));
        assert_eq!(
            fresh,
            Some(Floor::default()),
            "who has read nothing waits for nothing"
        );
    }
}
