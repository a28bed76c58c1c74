//! What the metrics page shows of the routing endpoints: each one, and the servers behind each.

use prometheus_client::metrics::MetricType;

use super::family::{Family, Labels, Value, family, gauges};

/// One routing endpoint.
#[derive(Clone, Debug, Default)]
pub struct RouteCounters {
    /// `read_write`, `read_only`, or the name of a further listener.
    pub route: String,
    /// Open now.
    pub sessions: u64,
    /// Clients that wait for a server now.
    pub held: u64,
    pub sessions_total: u64,
    pub held_total: u64,
    pub held_microseconds_total: u64,
    pub bytes_to_server_total: u64,
    pub bytes_to_client_total: u64,
    /// By reason.
    pub refused_total: Vec<(&'static str, u64)>,
    /// Ended at once because the server behind them was lost, or at the drain timeout.
    pub cut_total: u64,
    /// Ended between two transactions.
    pub drained_total: u64,
    pub connect_failures_total: u64,
    pub cancel_requests_total: u64,
    pub servers: Vec<ServerCounters>,
}

/// A server behind an endpoint.
#[derive(Clone, Debug, Default)]
pub struct ServerCounters {
    pub server: String,
    pub sessions_total: u64,
    /// Until it had answered.
    pub connect_microseconds_total: u64,
    /// Of its data when sessions began, added up.
    pub staleness_milliseconds_total: u64,
}

pub(super) fn families(routes: &[RouteCounters]) -> Vec<Family> {
    let mut families = now(routes);
    families.extend(totals(routes));
    families.extend(servers(routes));
    families
}

fn each(routes: &[RouteCounters], value: impl Fn(&RouteCounters) -> Value) -> Vec<(Labels, Value)> {
    let sample = |route: &RouteCounters| (vec![("route", route.route.clone())], value(route));
    routes.iter().map(sample).collect()
}

fn now(routes: &[RouteCounters]) -> Vec<Family> {
    let whole = |value: fn(&RouteCounters) -> u64| each(routes, |route| Value::Whole(value(route)));
    vec![
        gauges(
            "podgres_route_sessions",
            "Client sessions now",
            whole(|route| route.sessions),
        ),
        gauges(
            "podgres_route_held",
            "Clients that wait for a server now",
            whole(|route| route.held),
        ),
    ]
}

fn totals(routes: &[RouteCounters]) -> Vec<Family> {
    let counter = |name, help, value: fn(&RouteCounters) -> u64| {
        family(
            name,
            help,
            MetricType::Counter,
            each(routes, |route| Value::Whole(value(route))),
        )
    };
    let refused = routes.iter().flat_map(|route| {
        route.refused_total.iter().map(|(reason, count)| {
            let labels = vec![("route", route.route.clone()), ("reason", (*reason).to_owned())];
            (labels, Value::Whole(*count))
        })
    });
    vec![
        counter(
            "podgres_route_sessions_opened",
            "Client sessions that reached a server",
            |route| route.sessions_total,
        ),
        family(
            "podgres_route_refused",
            "Clients that were refused, by reason",
            MetricType::Counter,
            refused.collect(),
        ),
        counter(
            "podgres_route_waited",
            "Clients that had to wait for a server",
            |route| route.held_total,
        ),
        counter(
            "podgres_route_waited_microseconds",
            "How long clients waited for a server",
            |route| route.held_microseconds_total,
        ),
        counter(
            "podgres_route_bytes_to_server",
            "Bytes relayed to servers",
            |route| route.bytes_to_server_total,
        ),
        counter(
            "podgres_route_bytes_to_client",
            "Bytes relayed to clients",
            |route| route.bytes_to_client_total,
        ),
        counter(
            "podgres_route_drained",
            "Sessions ended between two transactions because their server no longer fitted",
            |route| route.drained_total,
        ),
        counter(
            "podgres_route_cut",
            "Sessions ended at once, or at the drain timeout, because their server no longer fitted",
            |route| route.cut_total,
        ),
        counter(
            "podgres_route_connect_failures",
            "Attempts to reach a server that failed",
            |route| route.connect_failures_total,
        ),
        counter(
            "podgres_route_cancel_requests",
            "Cancel requests passed on",
            |route| route.cancel_requests_total,
        ),
    ]
}

fn servers(routes: &[RouteCounters]) -> Vec<Family> {
    let counter = |name, help, value: fn(&ServerCounters) -> u64| {
        let samples = routes.iter().flat_map(|route| {
            route.servers.iter().map(move |server| {
                let labels = vec![("route", route.route.clone()), ("server", server.server.clone())];
                (labels, Value::Whole(value(server)))
            })
        });
        family(name, help, MetricType::Counter, samples.collect())
    };
    vec![
        counter(
            "podgres_route_server_sessions_opened",
            "Client sessions that began on the server",
            |server| server.sessions_total,
        ),
        counter(
            "podgres_route_server_connect_microseconds",
            "How long the server took to take sessions and to begin to answer",
            |server| server.connect_microseconds_total,
        ),
        counter(
            "podgres_route_server_staleness_milliseconds",
            "Age of the server's data at the beginning of its sessions, added up",
            |server| server.staleness_milliseconds_total,
        ),
    ]
}
