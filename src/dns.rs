//! Asks DNS who the members are and where: the addresses of a name, the pods of a headless Service.
//!
//! Every answer is fresh: nothing is remembered here, since a remembered "does not exist" would hide a
//! pod that has just come. Names are asked as they are, never completed from a search list, and
//! `/etc/hosts` is not read. Never connects to a member and never waits for a name to appear.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use crate::core::member::{Ordinal, Topology};

mod error;

pub use error::{DnsError, ResolverError};
use error::{explain, unreachable};

/// The name of the headless Service's port that carries PostgreSQL, as SRV spells it.
pub const SRV_PORT_NAME: &str = "_postgresql._tcp";

/// How long one server may take for one try.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);
/// Tries after the first.
const RETRIES: usize = 1;
/// How long one question may take with all its tries, TCP included.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// How much longer to wait for addresses of the other family once one family has answered.
const OTHER_FAMILY_TIMEOUT: Duration = Duration::from_millis(300);
/// Names asked at once; below hickory's own limit of questions under way.
const NAMES_AT_ONCE: usize = 8;
/// Where probing by ordinal ends, whatever DNS says (a wildcard record would have no end).
const MAX_PROBED: u32 = 1000;
/// Ordinals in a row without a name after which probing ends.
const MISSING_IN_A_ROW: usize = 2;

/// One pod that DNS knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub ordinal: Ordinal,
    /// The pod's name.
    pub name: String,
    /// In ascending order. Empty if the Service lists the pod but its own name did not resolve.
    pub addresses: Vec<IpAddr>,
}

/// The DNS client; cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    resolver: TokioResolver,
}

impl Resolver {
    /// A client of `server`, or of the servers in `/etc/resolv.conf`, which is read once, here.
    ///
    /// # Errors
    /// The file is not readable or names no server.
    pub fn new(server: Option<SocketAddr>) -> Result<Self, ResolverError> {
        let config = server.map_or_else(system_config, |server| Ok(one_server(server)))?;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        set_options(builder.options_mut());
        let resolver = builder.build().map_err(ResolverError::Client)?;
        Ok(Self { resolver })
    }

    /// The IPv4 and IPv6 addresses of `host`, ascending, at least one; an address is its own answer.
    ///
    /// `host` is a full name, with or without the trailing dot.
    ///
    /// # Errors
    /// See [`DnsError`]. An answer for one family outweighs an error for the other.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let v4 = self.records(host, RecordType::A, "address");
        let v6 = self.records(host, RecordType::AAAA, "address");
        tokio::pin!(v4, v6);
        let (first, other) = tokio::select! {
            first = &mut v4 => {
                let other = after(first.is_ok(), v6).await;
                (first, other)
            }
            first = &mut v6 => {
                let other = after(first.is_ok(), v4).await;
                (first, other)
            }
        };
        union_of_families(first, other)
    }

    /// The pods of the headless Service, by ordinal.
    ///
    /// Asks for the SRV records of the Service's port; if there are none (a port without that name), asks
    /// for each pod's name from the first ordinal on, until two in a row past `highest_known` are missing.
    /// No pod at all is an empty list, not an error.
    ///
    /// # Errors
    /// DNS did not answer, so that a missing pod would mean nothing.
    pub async fn members(&self, topology: &Topology, highest_known: Ordinal) -> Result<Vec<Found>, DnsError> {
        let service = format!("{SRV_PORT_NAME}.{}", topology.service_host());
        match self.records(&service, RecordType::SRV, "SRV").await {
            Ok(records) => {
                let listed = ordinals_listed(&records, topology);
                if listed.is_empty() {
                    self.probe(topology, highest_known).await
                } else {
                    self.locate(topology, &listed).await
                }
            }
            Err(absent) if absent.absent() => self.probe(topology, highest_known).await,
            Err(error) => Err(error),
        }
    }

    /// The addresses of pods that the Service lists.
    async fn locate(&self, topology: &Topology, listed: &BTreeSet<Ordinal>) -> Result<Vec<Found>, DnsError> {
        let listed: Vec<Ordinal> = listed.iter().copied().collect();
        let answers = self.ask_pods(topology, &listed).await;
        Ok(answers
            .into_iter()
            .map(|(ordinal, answer)| Found {
                ordinal,
                name: topology.pod_name(ordinal),
                addresses: answer.unwrap_or_default(),
            })
            .collect())
    }

    /// The pods whose names exist, found by asking for one ordinal after the other.
    async fn probe(&self, topology: &Topology, highest_known: Ordinal) -> Result<Vec<Found>, DnsError> {
        let first = topology.first_ordinal.0;
        let end = first.saturating_add(MAX_PROBED);
        let mut found = Vec::new();
        let mut highest = highest_known.0;
        let mut missing = 0;
        let mut next = first;
        while next < end {
            let known = highest.saturating_add(1).saturating_sub(next) as usize;
            let wanted = (known + MISSING_IN_A_ROW - missing).clamp(1, NAMES_AT_ONCE);
            let batch: Vec<Ordinal> = (next..end).take(wanted).map(Ordinal).collect();
            for (ordinal, answer) in self.ask_pods(topology, &batch).await {
                match answer {
                    Ok(addresses) => {
                        highest = highest.max(ordinal.0);
                        missing = 0;
                        found.push(Found {
                            ordinal,
                            name: topology.pod_name(ordinal),
                            addresses,
                        });
                    }
                    Err(error) if error.absent() => missing += usize::from(ordinal.0 > highest),
                    Err(error) => return Err(error),
                }
            }
            if missing >= MISSING_IN_A_ROW {
                break;
            }
            next = next.saturating_add(u32::try_from(batch.len()).unwrap_or(1));
        }
        Ok(found)
    }

    async fn ask_pods(
        &self,
        topology: &Topology,
        ordinals: &[Ordinal],
    ) -> BTreeMap<Ordinal, Result<Vec<IpAddr>, DnsError>> {
        let mut answers = BTreeMap::new();
        for batch in ordinals.chunks(NAMES_AT_ONCE) {
            let hosts: Vec<String> = batch.iter().map(|o| topology.pod_host(*o)).collect();
            let asked = join_all(hosts.iter().map(|host| self.addresses(host))).await;
            answers.extend(batch.iter().copied().zip(asked));
        }
        answers
    }

    /// The records of one type; an answer without any is an error.
    async fn records(
        &self,
        host: &str,
        record_type: RecordType,
        kind: &'static str,
    ) -> Result<Vec<Record>, DnsError> {
        let name = absolute(host)?;
        let asked = self.resolver.lookup(name, record_type);
        let answer = match tokio::time::timeout(LOOKUP_TIMEOUT, asked).await {
            Ok(Ok(lookup)) => lookup.answers().to_vec(),
            Ok(Err(error)) => return Err(explain(host, kind, &error)),
            Err(_) => return Err(unreachable(host, "timed out")),
        };
        let records: Vec<Record> = answer
            .into_iter()
            .filter(|record| record.record_type() == record_type)
            .collect();
        if records.is_empty() {
            return Err(DnsError::NoRecords {
                host: host.to_owned(),
                records: kind,
            });
        }
        Ok(records)
    }
}

fn system_config() -> Result<ResolverConfig, ResolverError> {
    let (system, _) = hickory_resolver::system_conf::read_system_conf().map_err(ResolverError::Settings)?;
    let servers = system.name_servers().to_vec();
    if servers.is_empty() {
        return Err(ResolverError::NoServer);
    }
    // Neither domain nor search list: names are asked as they are.
    Ok(ResolverConfig::from_parts(None, Vec::new(), servers))
}

fn one_server(server: SocketAddr) -> ResolverConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
        .into_iter()
        .map(|mut connection| {
            connection.port = server.port();
            connection
        })
        .collect();
    let server = NameServerConfig::new(server.ip(), true, connections);
    ResolverConfig::from_parts(None, Vec::new(), vec![server])
}

fn set_options(options: &mut ResolverOpts) {
    options.cache_size = 0;
    options.timeout = TRY_TIMEOUT;
    options.attempts = RETRIES;
    options.use_hosts_file = ResolveHosts::Never;
    options.try_tcp_on_error = true;
    options.edns0 = true;
}

/// The other family's answer; if the first one answered, only if it comes soon.
async fn after<T>(
    first_answered: bool,
    other: impl Future<Output = Result<T, DnsError>>,
) -> Option<Result<T, DnsError>> {
    if first_answered {
        tokio::time::timeout(OTHER_FAMILY_TIMEOUT, other).await.ok()
    } else {
        Some(other.await)
    }
}

fn union_of_families(
    first: Result<Vec<Record>, DnsError>,
    other: Option<Result<Vec<Record>, DnsError>>,
) -> Result<Vec<IpAddr>, DnsError> {
    match (first, other) {
        (Ok(first), Some(Ok(other))) => Ok(addresses_in(first.iter().chain(&other))),
        (Ok(found), _) | (Err(_), Some(Ok(found))) => Ok(addresses_in(&found)),
        // That one family is absent says nothing while the question about the other went unanswered.
        (Err(first), Some(Err(other))) if first.absent() && !other.absent() => Err(other),
        (Err(first), _) => Err(first),
    }
}

fn addresses_in<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<IpAddr> {
    let addresses: BTreeSet<IpAddr> = records
        .into_iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .collect();
    addresses.into_iter().collect()
}

fn ordinals_listed(records: &[Record], topology: &Topology) -> BTreeSet<Ordinal> {
    records
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(service) => topology.ordinal_of_host(&service.target.to_ascii()),
            _ => None,
        })
        .collect()
}

fn absolute(host: &str) -> Result<Name, DnsError> {
    let invalid = || DnsError::InvalidName {
        host: host.to_owned(),
    };
    let mut name = Name::from_ascii(host).map_err(|_| invalid())?;
    name.set_fqdn(true);
    if name.is_root() { Err(invalid()) } else { Ok(name) }
}
