//! The metrics page: `OpenMetrics`, or the text format before it, made from the view at each scrape, so that nothing can be out of step with `/cluster`.
//!
//! `pg_…` names are those of `postgres_exporter` where the meaning is the same; ours begin with `podgres_`.

mod classic;
mod exporter;
mod families;
mod family;
mod leadership;
mod routes;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::core::cluster::ClusterView;
use crate::core::cluster::verdict::LoopAge;
use crate::core::supervision::CloneReason;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use family::Family;
pub use routes::{RouteCounters, ServerCounters};

/// The content type of the page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the page shows beyond the view; counts since the process started.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Every name that a situation can have, for a complete state set; empty shows the current one only.
    pub situations: Vec<&'static str>,
    pub clones: Vec<(CloneReason, u64)>,
    pub routes: Vec<RouteCounters>,
    /// With `leadership=lease`.
    pub lease: Option<LeaseCounters>,
    /// Commits and bytes that were kept aside when this member was last rewound or replaced.
    pub diverged: Option<(u64, u64)>,
}

/// How this member stands with the Lease, at the time of the scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeaseCounters {
    /// Since the record was last seen to change.
    pub age_ms: Option<u64>,
    /// Since the API server was last asked with success.
    pub answered_ms_ago: Option<u64>,
    /// How long the gate may go on confirming without another renewal; `None`: it may not.
    pub right_ms: Option<u64>,
    pub gate_attached: Option<bool>,
    pub errors_total: u64,
}

/// The whole page; `registry` holds what others keep themselves.
///
/// # Errors
/// Only if a metric of `registry` cannot be written.
pub fn page(
    view: &ClusterView,
    counters: &Counters,
    turned: LoopAge,
    registry: &Registry,
) -> Result<String, std::fmt::Error> {
    let mut own = Registry::default();
    own.register_collector(Box::new(Page(families::families(view, counters, turned))));
    let mut text = String::new();
    encode_registry(&mut text, &own)?;
    encode_registry(&mut text, registry)?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// The page of a process that has routing endpoints and is no member.
///
/// # Errors
/// Only if a metric cannot be written.
pub fn page_of_routes(counters: &[RouteCounters]) -> Result<String, std::fmt::Error> {
    let mut own = Registry::default();
    own.register_collector(Box::new(Page(routes::families(counters))));
    let mut text = String::new();
    encode_registry(&mut text, &own)?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// A page in the format that the client asks for.
pub(super) fn answer(page: Result<String, std::fmt::Error>, headers: &HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    match page {
        Ok(text) if classic::takes_openmetrics(accept) => {
            ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
        }
        Ok(text) => {
            let text = classic::from_openmetrics(&text);
            ([(header::CONTENT_TYPE, classic::CONTENT_TYPE)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "could not write the metrics page");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[derive(Debug)]
struct Page(Vec<Family>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for sample in &family.samples {
                match (family.kind, sample.labels.is_empty()) {
                    (MetricType::Info, _) => metric.encode_info(&sample.labels)?,
                    // A family without labels would be written with an empty pair of braces.
                    (_, true) => sample.encode(family.kind, &mut metric)?,
                    (_, false) => sample.encode(family.kind, &mut metric.encode_family(&sample.labels)?)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::fixtures::{cut_off, led, peer, primary, standby, view};
    use crate::core::status::SlotStatus;
    use crate::core::wal::Lsn;

    fn text(view: &ClusterView, counters: &Counters) -> String {
        let turned = LoopAge {
            age_ms: 250,
            limit_ms: 10_000,
        };
        page(view, counters, turned, &Registry::default()).expect("page")
    }

    fn line<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(start)).unwrap_or("")
    }

    /// No number twice, so that two that are swapped are seen.
    fn route() -> RouteCounters {
        RouteCounters {
            route: "read_write".to_owned(),
            sessions: 3,
            held: 4,
            sessions_total: 110,
            held_total: 111,
            held_microseconds_total: 112,
            bytes_to_server_total: 113,
            bytes_to_client_total: 114,
            refused_total: vec![("too_many_connections", 115), ("no_server", 116)],
            cut_total: 117,
            drained_total: 118,
            connect_failures_total: 119,
            cancel_requests_total: 120,
            servers: vec![ServerCounters {
                server: "pg-0".to_owned(),
                sessions_total: 121,
                connect_microseconds_total: 122,
                staleness_milliseconds_total: 123,
            }],
        }
    }

    #[test]
    fn the_page_of_a_primary() {
        let mut me = primary(0);
        me.server.as_mut().expect("server").slots = vec![SlotStatus {
            slot_name: "podgres_pg_1".to_owned(),
            active: true,
            restart_lsn: Some(Lsn(0x300_0000)),
            lost: false,
            safe_wal_size_bytes: Some(-5),
        }];
        let counters = Counters {
            situations: vec!["primary_running", "standby_streaming"],
            clones: vec![(CloneReason::Empty, 1), (CloneReason::WalGone, 2)],
            routes: vec![route()],
            lease: Some(LeaseCounters {
                age_ms: Some(1_500),
                answered_ms_ago: Some(500),
                right_ms: Some(8_500),
                gate_attached: Some(true),
                errors_total: 2,
            }),
            diverged: Some((3, 4096)),
        };
        let seen = led(view(me, vec![peer(standby(1))]), "pg-0", &[0, 1, 2]);
        insta::assert_snapshot!(text(&seen, &counters));
    }

    #[test]
    fn the_page_of_a_standby() {
        insta::assert_snapshot!(text(
            &view(standby(1), vec![peer(primary(0))]),
            &Counters::default()
        ));
    }

    #[test]
    fn hazard_5_a_cut_off_standby_shows_more_than_a_lag_of_zero() {
        let mut ahead = primary(0);
        ahead.server.as_mut().expect("server").flush_lsn = Lsn(0x310_0100);
        let page = text(
            &view(cut_off(standby(1)), vec![peer(ahead)]),
            &Counters::default(),
        );
        assert_eq!(
            line(&page, "pg_replication_lag_seconds"),
            "pg_replication_lag_seconds 0.0"
        );
        assert_eq!(
            line(&page, "podgres_receiver_connected"),
            "podgres_receiver_connected 0"
        );
        assert_eq!(line(&page, "podgres_lag_bytes"), "podgres_lag_bytes 1048576");
        assert_eq!(line(&page, "podgres_ready"), "podgres_ready 0");
    }

    #[test]
    fn row_69_two_writable_members_raise_the_alarm_on_each_of_them() {
        let alarm = "podgres_other_writable_members";
        for (me, peers, expected) in [
            (
                primary(0),
                vec![primary(1), standby(2)],
                "podgres_other_writable_members 1",
            ),
            (
                standby(2),
                vec![primary(0), primary(1)],
                "podgres_other_writable_members 1",
            ),
            (
                standby(2),
                vec![primary(0), standby(1)],
                "podgres_other_writable_members 0",
            ),
        ] {
            let page = text(
                &view(me, peers.into_iter().map(peer).collect()),
                &Counters::default(),
            );
            assert_eq!(line(&page, alarm), expected);
        }
    }

    #[test]
    fn a_hostile_name_cannot_break_the_page() {
        let mut hostile = peer(standby(1));
        hostile.name = "a\"} 1\npodgres_writable 1\\".to_owned();
        let page = text(&view(cut_off(standby(2)), vec![hostile]), &Counters::default());
        assert_eq!(
            page.lines()
                .filter(|l| l.starts_with("podgres_writable "))
                .count(),
            1
        );
    }
}
