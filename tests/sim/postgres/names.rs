//! `synchronous_standby_names`, as each process of PostgreSQL has read it last.

use std::rc::Rc;

use podgres::core::supervision::GATE_NAME;
use podgres::core::synchronous_names;

use crate::config::Time;

/// `synchronous_standby_names` as it was read.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) text: String,
    pub(super) listed: Vec<String>,
    pub(super) needed: usize,
}

impl Names {
    pub(crate) fn read(text: &str) -> Rc<Self> {
        let names = synchronous_names::parse(text).unwrap_or_default();
        let mut listed = names.members;
        let mut needed = names.quorum as usize;
        if names.gate {
            listed.push(GATE_NAME.to_owned());
            needed += 1;
        }
        Rc::new(Self {
            text: text.to_owned(),
            listed,
            needed,
        })
    }
}

/// A process's view of a setting.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(super) known: Rc<Names>,
    pub(super) next: Option<(Time, Rc<Names>)>,
}

impl View {
    pub(crate) fn new(names: &Rc<Names>) -> Self {
        Self {
            known: Rc::clone(names),
            next: None,
        }
    }

    pub(crate) fn at(&mut self, now: Time) -> Rc<Names> {
        if let Some((_, names)) = self.next.take_if(|(at, _)| *at <= now) {
            self.known = names;
        }
        Rc::clone(&self.known)
    }
}
