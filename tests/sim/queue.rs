//! What happens when: the earliest first, and of one time what was ordered first.

use crate::config::Time;
use crate::event::Event;

/// Events lie still in their places; only their times are sorted.
#[derive(Default)]
pub(crate) struct Queue {
    /// Times and places, the last to come first, and of one time the last to be ordered: most of what is ordered comes
    /// soon and has few behind it to move.
    times: Vec<(Time, usize)>,
    places: Vec<Option<Event>>,
    free: Vec<usize>,
}

impl Queue {
    pub(crate) fn push(&mut self, at: Time, event: Event) {
        let place = self.free.pop().unwrap_or(self.places.len());
        match self.places.get_mut(place) {
            Some(there) => *there = Some(event),
            None => self.places.push(Some(event)),
        }
        let later = self.times.partition_point(|(other, _)| *other > at);
        self.times.insert(later, (at, place));
    }

    pub(crate) fn next_at(&self) -> Option<Time> {
        self.times.last().map(|(at, _)| *at)
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, Event)> {
        let (at, place) = self.times.pop()?;
        self.free.push(place);
        self.places[place].take().map(|event| (at, event))
    }
}
