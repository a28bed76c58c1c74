//! Where the loop publishes after each turn, and the ends of it that the rest of the process holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::core::cluster::ClusterView;
use crate::core::routing::RouteTable;
use crate::http::Beat;
use crate::peers::Way;
use crate::postgres::routed::RoutedServer;

use super::counters::Counters;
use super::journal::Journal;
use super::office::{Office, Requests};
use super::operator::Operator;
use super::positions::Positions;
use super::switch::Switchboard;
use super::visitors::Visitors;
use super::{Published, Settings, publish};

/// A loop that has not turned for this long is stuck: every wait in it is shorter.
const LOOP_LIMIT: Duration = Duration::from_secs(30);

/// The loop's own ends.
pub(super) struct Outlets {
    pub(super) view: watch::Sender<Arc<ClusterView>>,
    pub(super) routes: watch::Sender<Arc<RouteTable>>,
    pub(super) beat: Beat,
    pub(super) counters: Counters,
}

impl Outlets {
    /// Both ends, with what is known before the first turn; the journal is for the loop's recorder.
    pub(super) fn open(
        settings: &Settings,
        office: Option<&Office>,
        requests: &Requests,
        switch: &Switchboard,
        way: &Way,
    ) -> (Self, Published, Journal) {
        let (view, view_receiver) = watch::channel(Arc::new(publish::first_view(settings)));
        let (routes, routes_receiver) = watch::channel(Arc::new(RouteTable::default()));
        let (beat, journal, counters) = (Beat::new(LOOP_LIMIT), Journal::default(), Counters::default());
        let routed = || RoutedServer::new(settings.server_address, Arc::clone(&settings.logins));
        // Without a gate nothing else ends the acknowledgements with the right.
        let right = (settings.gate && settings.policy.gate && office.is_some()).then(|| counters.clone());
        let positions = Positions::new([routed(), routed()], view_receiver.clone(), right);
        let operator = Operator {
            routed: routed(),
            switch: switch.clone(),
            visitors: Visitors::default(),
            view: view_receiver.clone(),
            lease: office.map(Office::store),
            requests: requests.clone(),
            logins: Arc::clone(&settings.logins),
            member: settings.member.clone(),
            way: way.clone(),
        };
        let published = Published {
            view: view_receiver,
            routes: routes_receiver,
            journal: journal.clone(),
            beat: beat.clone(),
            counters: counters.clone(),
            visited: Arc::default(),
            operator: Arc::new(operator),
            positions,
            routes_left: watch::Sender::new(None),
            routes_term: watch::Sender::new(None),
            way: way.clone(),
        };
        let outlets = Self {
            view,
            routes,
            beat,
            counters,
        };
        (outlets, published, journal)
    }
}
