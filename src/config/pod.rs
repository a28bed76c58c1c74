//! Who this pod is, where it listens, and how it behaves in the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::lease::{LeaseArguments, Switch};
use super::limits::{check_domain, check_label, check_peer_timeout};
use super::units::milliseconds;
use super::{Environment, InvalidSetting, units};
use crate::core::member::{MemberName, Ordinal};
use crate::core::policy::{Leadership, Policy};
use crate::core::supervision::SOCKET_NAME;

/// How members are found and asked, and where clients come: in a pod, and of `podgres route` beside none.
#[derive(Args, Clone, Debug)]
pub struct NetworkArguments {
    #[arg(long, env = "PODGRES_READ_WRITE_PORT", default_value_t = 6432)]
    pub read_write_port: u16,
    #[arg(long, env = "PODGRES_READ_ONLY_PORT", default_value_t = 6433)]
    pub read_only_port: u16,
    #[arg(long, env = "PODGRES_HTTP_PORT", default_value_t = 8008)]
    pub http_port: u16,
    /// DNS server to ask instead of resolv.conf's
    #[arg(long, env = "PODGRES_DNS_SERVER")]
    pub dns_server: Option<SocketAddr>,
    /// Silence after which a peer counts as unreachable
    #[arg(long, env = "PODGRES_PEER_TIMEOUT", value_parser = units::duration, default_value = "2s")]
    pub peer_timeout: Duration,
}

/// Flags of every command that runs in a pod.
#[derive(Args, Clone, Debug)]
pub struct PodArguments {
    /// Pod name, CLUSTER-ORDINAL [default: the host name]
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Namespace [default: the service account's, or "default"]
    #[arg(short, long, env = "POD_NAMESPACE")]
    pub namespace: Option<String>,
    /// The pod's UID, as Kubernetes gave it
    #[arg(long, env = "POD_UID", hide = true)]
    pub pod_uid: Option<String>,
    /// The pod's address
    #[arg(long, env = "POD_IP", hide = true)]
    pub pod_ip: Option<IpAddr>,
    /// Headless Service [default: the cluster's name]
    #[arg(long, env = "PODGRES_SERVICE")]
    pub service: Option<String>,
    /// DNS domain of the Kubernetes cluster
    #[arg(long, env = "PODGRES_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Lowest ordinal (spec.ordinals.start)
    #[arg(long, env = "PODGRES_FIRST_ORDINAL", default_value_t = 0)]
    pub first_ordinal: u32,
    /// Who is primary
    #[arg(long, env = "PODGRES_LEADERSHIP", value_enum, default_value_t = LeadershipArgument::Fixed)]
    pub leadership: LeadershipArgument,
    /// What a commit waits for [default: async with fixed leadership, majority with a Lease]
    #[arg(long, env = "PODGRES_DURABILITY", value_enum)]
    pub durability: Option<DurabilityArgument>,
    #[command(flatten)]
    pub lease: LeaseArguments,
    /// Folder shared by the pod's containers, in memory
    #[arg(long, env = "PODGRES_RUN_DIR", default_value = "/run/podgres")]
    pub run_dir: PathBuf,
    /// The one address to listen on [default: all]
    #[arg(long, env = "PODGRES_LISTEN_ADDRESS")]
    pub listen_address: Option<IpAddr>,
    #[arg(long, env = "PODGRES_POSTGRES_PORT", default_value_t = 5432)]
    pub postgres_port: u16,
    #[command(flatten)]
    pub network: NetworkArguments,
    /// Fast stop, then immediate stop after this long, where a deadline presses
    #[arg(long, env = "PODGRES_STOP_TIMEOUT", value_parser = units::duration, default_value = "3s")]
    pub stop_timeout: Duration,
    /// How long an empty first ordinal asks peers that do not answer
    #[arg(long, env = "PODGRES_DISCOVERY_TIMEOUT", value_parser = units::duration, default_value = "10s")]
    pub discovery_timeout: Duration,
    /// How long a standby may stand still before its position is judged
    #[arg(long, env = "PODGRES_STALL_TIMEOUT", value_parser = units::duration, default_value = "5s")]
    pub stall_timeout: Duration,
    /// How long the slot of a member that DNS no longer lists is kept
    #[arg(long, env = "PODGRES_SLOT_RETENTION", value_parser = units::duration, default_value = "10min")]
    pub slot_retention: Duration,
    /// While the cluster is switched to read-only, sessions that connect to the primary directly begin read-only too
    #[arg(long, env = "PODGRES_READ_ONLY_DEFAULT", value_enum, default_value_t = Switch::Off)]
    pub read_only_default: Switch,
    /// Make a new cluster on an empty first ordinal although a peer holds data
    #[arg(long, env = "PODGRES_NEW_CLUSTER", default_value_t = false)]
    pub new_cluster: bool,
    /// Clone a standby afresh by itself when it can never follow again
    #[arg(long, env = "PODGRES_RECLONE", default_value_t = true, action = clap::ArgAction::Set)]
    pub reclone: bool,
    /// File with the bearer token that operators' requests over TCP must carry
    #[arg(long, env = "PODGRES_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Show process ids in the status (for `podgres demo`)
    #[arg(long, env = "PODGRES_REPORT_PIDS", hide = true, default_value_t = false)]
    pub report_pids: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LeadershipArgument {
    /// The first ordinal, for ever; no API rights needed
    Fixed,
    /// The holder of the Lease named as the cluster
    Lease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DurabilityArgument {
    /// The primary's own disk
    Async,
    /// Standbys too, while there are any
    Preferred,
    /// Half of the members, rounded down
    Majority,
}

/// What is known of this pod, checked.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: MemberName,
    pub namespace: String,
    pub uid: String,
    pub service: String,
    /// Where others reach this pod.
    pub host: IpAddr,
    /// Where this pod's own clients reach its PostgreSQL.
    pub local_address: IpAddr,
    pub arguments: PodArguments,
}

const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

impl PodArguments {
    /// Checks the flags and finds what was left to defaults.
    pub fn resolve(self) -> Result<Pod, InvalidSetting> {
        let text = match &self.pod_name {
            Some(name) => name.clone(),
            None => host_name(),
        };
        let name = MemberName::parse(&text).map_err(|error| {
            InvalidSetting::new(
                "POD_NAME",
                error.to_string(),
                "a StatefulSet names its pods <set>-<ordinal>, e.g. pg-0",
            )
        })?;
        if name.ordinal < Ordinal(self.first_ordinal) {
            return Err(InvalidSetting::new(
                "PODGRES_FIRST_ORDINAL",
                format!(
                    "{} is above this pod's own ordinal {}",
                    self.first_ordinal, name.ordinal
                ),
                "it must equal spec.ordinals.start of the StatefulSet",
            ));
        }
        self.check_leadership()?;
        self.lease.check_tags(&name)?;
        let lease = self.leadership == LeadershipArgument::Lease;
        let renew_deadline = lease.then_some(self.lease.renew_deadline);
        check_peer_timeout(self.network.peer_timeout, renew_deadline)?;
        let namespace = self
            .namespace
            .clone()
            .or_else(|| {
                std::fs::read_to_string(NAMESPACE_FILE)
                    .ok()
                    .map(|text| text.trim().to_owned())
            })
            .unwrap_or_else(|| "default".to_owned());
        let service = self.service.clone().unwrap_or_else(|| name.cluster.clone());
        check_label("PODGRES_SERVICE", &service)?;
        check_label("POD_NAMESPACE", &namespace)?;
        check_domain("PODGRES_CLUSTER_DOMAIN", &self.cluster_domain)?;
        let host = self.pod_ip.or(self.listen_address).unwrap_or_else(own_address);
        let loopback = match host {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        Ok(Pod {
            uid: self.pod_uid.clone().unwrap_or_else(|| name.to_string()),
            service,
            namespace,
            host,
            local_address: self.listen_address.unwrap_or(loopback),
            name,
            arguments: self,
        })
    }
}

impl Pod {
    /// What decisions need of the settings.
    pub fn policy(&self) -> Policy {
        let arguments = &self.arguments;
        Policy {
            leadership: match arguments.leadership {
                LeadershipArgument::Fixed => Leadership::Fixed,
                LeadershipArgument::Lease => Leadership::Lease,
            },
            cluster: self.name.cluster.clone(),
            ordinal: self.name.ordinal,
            first_ordinal: Ordinal(arguments.first_ordinal),
            new_cluster: arguments.new_cluster,
            reclone: arguments.reclone,
            discovery_timeout_ms: milliseconds(arguments.discovery_timeout),
            stall_timeout_ms: milliseconds(arguments.stall_timeout),
            slot_retention_ms: milliseconds(arguments.slot_retention),
            identity: self.identity(),
            durability: arguments.durability(),
            gate: arguments.lease.gate == Switch::On,
            read_only_default: arguments.read_only_default == Switch::On,
            priority: (!arguments.lease.never_primary.is_of(&self.name))
                .then(|| arguments.lease.priority.of(&self.name)),
            times: arguments
                .lease
                .times(arguments.network.peer_timeout, arguments.stop_timeout),
        }
    }

    /// The addresses to bind a port on: the given one, or IPv6 and IPv4 wildcard.
    pub fn bind_address(&self, port: u16) -> SocketAddr {
        let any = if ipv6_available() {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        SocketAddr::new(self.arguments.listen_address.unwrap_or(any), port)
    }

    pub fn supervisor_socket(&self) -> PathBuf {
        self.arguments.run_dir.join(SOCKET_NAME)
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The address that this host would use towards others; nothing is sent.
fn own_address() -> IpAddr {
    let towards = |local: &str, remote: &str| {
        let socket = UdpSocket::bind(local).ok()?;
        socket.connect(remote).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    towards("0.0.0.0:0", "192.0.2.1:9")
        .or_else(|| towards("[::]:0", "[2001:db8::1]:9"))
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn ipv6_available() -> bool {
    UdpSocket::bind("[::]:0").is_ok()
}

/// Reads a variable through an environment, for settings that no flag carries.
pub fn variable(environment: &impl Environment, key: &str) -> Option<String> {
    environment.get(key).filter(|value| !value.is_empty())
}
