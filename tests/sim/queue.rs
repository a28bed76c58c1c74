//! What happens when: the earliest first, and of one time what was ordered first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::config::Time;
use crate::event::Event;

/// Events lie still in their places; only their keys are sorted.
#[derive(Default)]
pub(crate) struct Queue {
    /// Time, order and place.
    keys: BinaryHeap<Reverse<(Time, u64, u32)>>,
    ordered: u64,
    places: Vec<Option<Event>>,
    free: Vec<u32>,
}

impl Queue {
    pub(crate) fn push(&mut self, at: Time, event: Event) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        self.places[place as usize] = Some(event);
        self.ordered += 1;
        self.keys.push(Reverse((at, self.ordered, place)));
    }

    pub(crate) fn next_at(&self) -> Option<Time> {
        self.keys.peek().map(|Reverse((at, ..))| *at)
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, Event)> {
        let Reverse((at, _, place)) = self.keys.pop()?;
        self.free.push(place);
        self.places[place as usize].take().map(|event| (at, event))
    }
}
