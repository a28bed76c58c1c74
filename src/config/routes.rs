//! The routing endpoints: which ports, what each promises, how much it takes on.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::lease::Switch;
use super::limits::LEAST_STALENESS;
use super::units::{duration_text, milliseconds};
use super::{InvalidSetting, units};
use crate::core::routing::listen::{Listen, on_primary_loss};
use crate::core::routing::{Affinity, OnPrimaryLoss, ReadOnlyFallback, RouteMode, RoutePolicy};
use crate::proxy::{Limits, Network, TotalConnections};

/// Flags of the routing endpoints.
#[derive(Args, Clone, Debug)]
pub struct RouteArguments {
    /// Age of its data up to which a standby serves reads
    #[arg(long, env = "PODGRES_MAX_STALENESS", value_parser = units::duration, default_value = "10s")]
    pub max_staleness: Duration,
    /// Bytes behind the primary up to which a standby serves reads
    #[arg(long, env = "PODGRES_MAX_LAG", value_parser = units::bytes, default_value = "16MB")]
    pub max_lag: u64,
    /// Who serves reads while no standby is fit
    #[arg(long, env = "PODGRES_READ_ONLY_FALLBACK", value_enum, default_value_t = FallbackArgument::Primary)]
    pub read_only_fallback: FallbackArgument,
    /// What the standbys do while the primary is known to be gone, not merely silent: serve, serve-for:5min, refuse
    #[arg(long, env = "PODGRES_ON_PRIMARY_LOSS", value_parser = on_primary_loss, default_value = "serve")]
    pub on_primary_loss: OnPrimaryLoss,
    /// What the read-write endpoint serves while there is no primary
    #[arg(long, env = "PODGRES_DEGRADE", value_enum, default_value_t = DegradeArgument::Off)]
    pub degrade: DegradeArgument,
    /// A further endpoint: PORT,name=…,mode=read-only|read-write,max_staleness=…,max_lag=…,fallback=primary|none,
    /// on_primary_loss=…,degrade=…,affinity=client|none,monotonic=on|off,max_connections=…,max_connections_per_client=…
    #[arg(
        long,
        env = "PODGRES_LISTEN",
        value_delimiter = ';',
        value_name = "PORT,KEY=VALUE,…"
    )]
    pub listen: Vec<String>,
    /// Where the encryption of routed sessions ends
    #[arg(long, env = "PODGRES_TLS", value_enum, default_value_t = TlsArgument::PassThrough)]
    pub tls: TlsArgument,
    /// Where encrypted sessions go that pass through: those of one client address together, so that their encrypted
    /// cancel requests find them, or each where there is most room
    #[arg(long, env = "PODGRES_AFFINITY", value_enum, default_value_t = AffinityArgument::Client)]
    pub affinity: AffinityArgument,
    /// Whether a client address is kept from older data than its earlier sessions may have read
    #[arg(long, env = "PODGRES_MONOTONIC", value_enum, default_value_t = Switch::Off)]
    pub monotonic: Switch,
    /// How long a new connection waits for a server
    #[arg(long, env = "PODGRES_HOLD", value_parser = units::duration, default_value = "10s")]
    pub hold: Duration,
    /// How long a session that must leave its server may take to come to the end of a transaction
    #[arg(long, env = "PODGRES_DRAIN_TIMEOUT", value_parser = units::duration, default_value = "5s")]
    pub drain_timeout: Duration,
    /// Connections per routing endpoint
    #[arg(long, env = "PODGRES_MAX_CONNECTIONS", default_value_t = 4000)]
    pub max_connections: usize,
    /// Connections of all routing endpoints of the process together [default: no limit]
    #[arg(long, env = "PODGRES_MAX_CONNECTIONS_TOTAL")]
    pub max_connections_total: Option<usize>,
    /// Connections of one client address per routing endpoint [default: no limit]
    #[arg(long, env = "PODGRES_MAX_CONNECTIONS_PER_CLIENT")]
    pub max_connections_per_client: Option<usize>,
    /// Networks of balancers that may tell the client's address by the PROXY protocol
    #[arg(
        long,
        env = "PODGRES_TRUSTED_PROXIES",
        value_delimiter = ',',
        value_name = "ADDRESS/BITS"
    )]
    pub trusted_proxies: Vec<Network>,
    /// Add the client's address to application_name, for pg_stat_activity: servers see the route's
    #[arg(long, env = "PODGRES_SHOW_CLIENTS")]
    pub show_clients: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FallbackArgument {
    Primary,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsArgument {
    /// At the servers: the endpoints pass it through unread
    PassThrough,
    /// At the endpoints, with the cluster's own certificate; the way to the servers is TLS again
    Terminate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AffinityArgument {
    Client,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DegradeArgument {
    /// Nothing: connections are held
    Off,
    /// Standbys, which refuse writes
    ReadOnly,
}

/// A bound on staleness that no standby would ever keep would send all reads to the primary, or nowhere.
fn can_be_met(listen: &Listen) -> Result<(), InvalidSetting> {
    let least_ms = milliseconds(LEAST_STALENESS);
    let given_ms = listen.policy.max_staleness_ms;
    if listen.policy.mode != RouteMode::ReadOnly || given_ms >= least_ms {
        return Ok(());
    }
    let given = duration_text(Duration::from_millis(given_ms));
    let problem = format!(
        "{given} of the {} route is shorter than staleness can be measured",
        listen.name
    );
    let hint = "give at least 100ms; for reads that see a certain commit see podgres.min_lsn";
    Err(InvalidSetting::new("PODGRES_MAX_STALENESS", problem, hint))
}

/// One of the two that every pod has may be told what to promise; its name and what it is for are known to others.
fn overrule(standard: &mut Listen, said: Listen, text: &str) -> Result<(), InvalidSetting> {
    let named = said.name != format!("port_{}", said.port);
    if named || said.policy.mode != standard.policy.mode {
        let (port, name) = (said.port, &standard.name);
        let why = format!("\"{text}\": port {port} is the {name} route's");
        let hint = "leave out its name and its mode, or give the endpoint a port of its own";
        return Err(InvalidSetting::new("PODGRES_LISTEN", why, hint));
    }
    *standard = Listen {
        name: std::mem::take(&mut standard.name),
        ..said
    };
    Ok(())
}

impl RouteArguments {
    /// What an endpoint promises unless it says otherwise.
    #[must_use]
    pub fn policy(&self, mode: RouteMode) -> RoutePolicy {
        RoutePolicy {
            mode,
            max_staleness_ms: milliseconds(self.max_staleness),
            max_lag_bytes: self.max_lag,
            fallback: match self.read_only_fallback {
                FallbackArgument::Primary => ReadOnlyFallback::Primary,
                FallbackArgument::None => ReadOnlyFallback::None,
            },
            on_primary_loss: self.on_primary_loss,
            degrade: mode == RouteMode::ReadWrite && self.degrade == DegradeArgument::ReadOnly,
            monotonic: self.monotonic == Switch::On,
            own_max_lag: false,
            affinity: match self.affinity {
                AffinityArgument::Client => Affinity::Client,
                AffinityArgument::None => Affinity::None,
            },
        }
    }

    /// All endpoints: the two that every pod has, and the further ones.
    ///
    /// # Errors
    /// A listener that cannot be read, or whose port or name another one has.
    pub fn listeners(
        &self,
        read_write_port: u16,
        read_only_port: u16,
    ) -> Result<Vec<Listen>, InvalidSetting> {
        let standard = |port, name: &str, mode| Listen {
            port,
            name: name.to_owned(),
            policy: self.policy(mode),
            max_connections: None,
            max_connections_per_client: None,
        };
        let mut listeners = vec![
            standard(read_write_port, "read_write", RouteMode::ReadWrite),
            standard(read_only_port, "read_only", RouteMode::ReadOnly),
        ];
        for text in &self.listen {
            let read = |defaults: &RoutePolicy| {
                Listen::read(text, defaults).map_err(|why| {
                    let hint = "write e.g. 6434,mode=read-only,max_staleness=1s,fallback=none";
                    InvalidSetting::new("PODGRES_LISTEN", format!("\"{text}\": {why}"), hint)
                })
            };
            let listen = read(&self.policy(RouteMode::ReadOnly))?;
            if let Some(standard) = listeners[..2].iter_mut().find(|known| known.port == listen.port) {
                let said = read(&standard.policy)?;
                overrule(standard, said, text)?;
                continue;
            }
            let taken = |known: &Listen| known.port == listen.port || known.name == listen.name;
            if listeners.iter().any(taken) {
                let (port, name) = (listen.port, &listen.name);
                let why = format!("\"{text}\": port {port} or name \"{name}\" is given twice");
                let hint = "give each endpoint a port and a name of its own";
                return Err(InvalidSetting::new("PODGRES_LISTEN", why, hint));
            }
            listeners.push(listen);
        }
        listeners.iter().try_for_each(can_be_met)?;
        Ok(listeners)
    }

    /// How much one endpoint takes on.
    #[must_use]
    pub fn limits(&self, listen: &Listen) -> Limits {
        Limits {
            max_connections: listen.max_connections.unwrap_or(self.max_connections),
            max_connections_per_client: listen
                .max_connections_per_client
                .or(self.max_connections_per_client)
                .unwrap_or(usize::MAX),
            hold: self.hold,
            drain_timeout: self.drain_timeout,
            ..Limits::default()
        }
    }

    /// How much all endpoints take on together.
    #[must_use]
    pub fn total_connections(&self) -> TotalConnections {
        self.max_connections_total
            .map_or_else(TotalConnections::default, TotalConnections::at_most)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        routes: RouteArguments,
    }

    fn listeners(words: &[&str]) -> Result<Vec<Listen>, String> {
        let words = std::iter::once(&"route").chain(words);
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.routes
            .listeners(6432, 6433)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn further_endpoints_begin_with_the_defaults() {
        let words = [
            "--max-lag",
            "1MB",
            "--listen",
            "7000,fallback=none",
            "--listen",
            "7001,mode=read-write",
        ];
        let found = listeners(&words).expect("valid");
        let ports: Vec<u16> = found.iter().map(|listen| listen.port).collect();
        assert_eq!(ports, [6432, 6433, 7000, 7001]);
        assert_eq!(found[2].policy.max_lag_bytes, 1 << 20);
        assert_eq!(found[2].policy.fallback, ReadOnlyFallback::None);
        assert_eq!(found[3].policy.mode, RouteMode::ReadWrite);
    }

    #[test]
    fn a_refusal_shows_what_was_given() {
        let told = listeners(&["--max-staleness", "0"]).expect_err("too strict");
        assert!(
            told.starts_with("invalid value for PODGRES_MAX_STALENESS: 0s of the read_only route"),
            "{told}"
        );
        let told = listeners(&["--listen", "7000,mode=fast"]).expect_err("no mode");
        assert!(
            told.starts_with("invalid value for PODGRES_LISTEN: \"7000,mode=fast\": "),
            "{told}"
        );
        let writes = ["--listen", "7000,mode=read-write,max_staleness=0s"];
        assert!(listeners(&writes).is_ok(), "a primary is never stale");
    }

    /// The line that the two endpoints' own port is most often given with was refused: "given twice".
    #[test]
    fn an_endpoint_that_every_pod_has_could_not_be_told_what_to_promise() {
        let words = [
            "--listen",
            "6433,mode=read-only,max_staleness=1s,fallback=none,max_connections=7",
        ];
        let found = listeners(&words).expect("valid");
        let ports: Vec<u16> = found.iter().map(|listen| listen.port).collect();
        assert_eq!(ports, [6432, 6433]);
        assert_eq!(found[1].name, "read_only");
        assert_eq!(
            (found[1].policy.max_staleness_ms, found[1].max_connections),
            (1_000, Some(7))
        );
        assert_eq!(found[1].policy.fallback, ReadOnlyFallback::None);
        let writes = listeners(&["--listen", "6432,mode=read-write,degrade=read-only"]).expect("valid");
        assert!(writes[0].policy.degrade);
        let kept = listeners(&["--listen", "6432,max_connections=7"]).expect("valid");
        assert_eq!(
            kept[0].policy.mode,
            RouteMode::ReadWrite,
            "what is not said stays"
        );
    }

    #[test]
    fn a_listener_has_its_own_limits_or_those_of_all() {
        let words = [
            "route",
            "--max-connections",
            "50",
            "--max-connections-per-client",
            "5",
            "--hold",
            "3s",
            "--drain-timeout",
            "4s",
            "--listen",
            "7433,mode=read-only,max_connections=7",
            "--listen",
            "7434,mode=read-only,max_connections_per_client=2",
        ];
        let routes = Line::try_parse_from(words).expect("valid").routes;
        let limits = |routes: &RouteArguments| {
            let listeners = routes.listeners(6432, 6433).expect("valid");
            let limits = listeners.iter().map(|listen| routes.limits(listen));
            let seen = limits.map(|limits| (limits.max_connections, limits.max_connections_per_client));
            seen.collect::<Vec<_>>()
        };
        assert_eq!(limits(&routes), [(50, 5), (50, 5), (7, 5), (50, 2)]);
        let first = &routes.listeners(6432, 6433).expect("valid")[0];
        let times = routes.limits(first);
        assert_eq!(
            (times.hold, times.drain_timeout),
            (Duration::from_secs(3), Duration::from_secs(4))
        );
        let plain = Line::try_parse_from(["route", "--listen", "7433,max_connections=7"]);
        let all = (4000, usize::MAX);
        assert_eq!(
            limits(&plain.expect("valid").routes),
            [all, all, (7, usize::MAX)],
            "one client address may have all by default"
        );
    }

    #[test]
    fn ports_and_names_are_given_once() {
        for words in [
            vec!["--listen", "6432,mode=read-only"],
            vec!["--listen", "6433,name=reads"],
            vec!["--listen", "7000", "--listen", "7000"],
            vec!["--listen", "7000,name=a", "--listen", "7001,name=a"],
            vec!["--listen", "7000,mode=fast"],
            vec!["--on-primary-loss", "pray"],
            vec!["--max-staleness", "0"],
            vec!["--max-staleness", "99ms"],
            vec!["--listen", "7000,max_staleness=0s"],
        ] {
            assert!(listeners(&words).is_err(), "{words:?}");
        }
    }
}
