//! From options to a prepared demo: directory locked, names checked, programs, password and addresses in place.

use std::fs::{OpenOptions, Permissions};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::addresses::{self, MAX_REPLICAS, host_of_place};
use super::api::{ApiServer, write_kubeconfig};
use super::dns::{Server, Zone};
use super::layout::Layout;
use super::state::{DemoState, Network, PodState, Ports};
use super::{DemoError, Options, orphans, programs, secret};
use crate::core::member::{MemberName, Ordinal, Topology};
use crate::core::policy::Leadership;
use crate::core::units::milliseconds;
use crate::postgres::user::server_user;

const DEFAULT_REPLICAS: u32 = 3;
const DEFAULT_CLUSTER: &str = "demo";
const SUPERUSER: &str = "postgres";

/// A demo that could begin to make pods.
pub(super) struct Prepared {
    pub layout: Layout,
    /// What `demo.json` says, in memory.
    pub state: DemoState,
    pub zone: Zone,
    /// The podgres binary that the pods run.
    pub program: PathBuf,
    /// The directory is to be removed at the end.
    pub temporary: bool,
    pub server: Server,
    /// With a Lease.
    pub api: Option<ApiServer>,
    /// Held, and thereby locked, until dropped.
    pub _lock: OwnedFd,
}

/// Prepares everything but the pods.
///
/// # Errors
/// See [`DemoError`]; a directory that is in use is left as it is.
pub(super) async fn prepare(options: &Options) -> Result<Prepared, DemoError> {
    let Some(directory) = &options.directory else {
        let directory = temporary_directory()?;
        let prepared = prepare_in(&directory, options).await;
        if prepared.is_err() {
            // The error that is there already says more.
            drop(std::fs::remove_dir_all(&directory));
        }
        return prepared;
    };
    prepare_in(directory, options).await
}

/// A new directory that nobody else has made.
fn temporary_directory() -> Result<PathBuf, DemoError> {
    let path = std::env::temp_dir().join(format!("podgres-demo-{:08x}", fastrand::u32(..)));
    std::fs::create_dir(&path)
        .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o755)))
        .map_err(DemoError::file("create", &path))?;
    Ok(path)
}

async fn prepare_in(directory: &Path, options: &Options) -> Result<Prepared, DemoError> {
    let user = server_user()?;
    let earlier = DemoState::load(directory)?;
    let topology = topology(options, earlier.as_ref(), directory)?;
    let replicas = replicas(options, earlier.as_ref(), &topology)?;
    let longest_pod = topology.pod_name(Ordinal(topology.first_ordinal.0 + MAX_REPLICAS));
    let layout = Layout::prepare(directory, &longest_pod, user.clone())?;
    let lock = lock(&layout)?;
    if let Some(earlier) = &earlier {
        let folders = ["pods", "volumes"].map(|folder| layout.directory().join(folder));
        orphans::kill_leftovers(&folders, &layout.binary(), &earlier.program_directory).await;
    }
    let program = programs::install(&options.binary, &layout)?;
    let program_directory =
        programs::reachable(&options.program_directory, layout.directory(), user.as_ref())?;
    secret::ensure_password(&layout, user.as_ref(), SUPERUSER)?;
    let claim = claim(&layout, &topology, replicas, earlier.as_ref()).await?;
    let mut state = DemoState {
        replicas,
        leadership: leadership(options.leadership, earlier.as_ref().map(|state| state.leadership)),
        api_server: None,
        network: claim.network,
        ports: claim.ports,
        superuser: SUPERUSER.to_owned(),
        database: SUPERUSER.to_owned(),
        password_file: layout.password_file(),
        program_directory,
        user,
        control_socket: layout.control_socket(),
        grace_ms: milliseconds(options.grace),
        pods: Vec::new(),
        cluster: topology.cluster,
        service: topology.service,
        namespace: topology.namespace,
        cluster_domain: topology.cluster_domain,
        first_ordinal: topology.first_ordinal,
    };
    state.pods = pods(&state, earlier.as_ref());
    let api = match state.leadership {
        Leadership::Lease => Some(api_server(&layout, &mut state, earlier.as_ref()).await?),
        Leadership::Fixed => None,
    };
    Ok(Prepared {
        temporary: options.directory.is_none(),
        zone: claim.zone,
        server: claim.server,
        api,
        _lock: lock,
        layout,
        state,
        program,
    })
}

/// What is asked for, else what the demo in that directory had.
fn leadership(asked: Option<Leadership>, kept: Option<Leadership>) -> Leadership {
    asked.or(kept).unwrap_or(Leadership::Lease)
}

/// The Lease API on the DNS server's address, on the port of the earlier run if that is free, and a kubeconfig for it.
async fn api_server(
    layout: &Layout,
    state: &mut DemoState,
    earlier: Option<&DemoState>,
) -> Result<ApiServer, DemoError> {
    let any = SocketAddr::new(state.dns_server().ip(), 0);
    let kept = earlier
        .filter(|earlier| earlier.network == state.network)
        .and_then(|earlier| earlier.api_server);
    let path = layout.directory().join("api.json");
    let server = match kept {
        Some(address) => match ApiServer::start(address, Some(path.clone())).await {
            Err(DemoError::Address { .. }) => ApiServer::start(any, Some(path)).await?,
            started => started?,
        },
        None => ApiServer::start(any, Some(path)).await?,
    };
    state.api_server = Some(server.address());
    let kubeconfig = layout.kubeconfig();
    write_kubeconfig(&kubeconfig, &server.url(), &state.namespace, None)?;
    if let Some(user) = &state.user {
        std::os::unix::fs::chown(&kubeconfig, Some(user.uid), Some(user.gid))
            .map_err(DemoError::file("give away", &kubeconfig))?;
    }
    Ok(server)
}

/// The pod in a place as it was in the earlier run, if the network is still the same, or as it is at first.
fn pods(state: &DemoState, earlier: Option<&DemoState>) -> Vec<PodState> {
    let earlier = earlier.filter(|earlier| earlier.network == state.network);
    (0..state.replicas)
        .map(|place| {
            let ordinal = Ordinal(state.first_ordinal.0 + place);
            let kept = earlier.and_then(|earlier| earlier.pod(ordinal)).cloned();
            kept.unwrap_or_else(|| new_pod(state, ordinal))
        })
        .collect()
}

/// A pod with its first address.
pub(super) fn new_pod(state: &DemoState, ordinal: Ordinal) -> PodState {
    let place = ordinal.0.saturating_sub(state.first_ordinal.0);
    PodState {
        name: state.topology().pod_name(ordinal),
        ordinal,
        address: state.network.host(host_of_place(place)),
    }
}

async fn claim(
    layout: &Layout,
    topology: &Topology,
    replicas: u32,
    earlier: Option<&DemoState>,
) -> Result<addresses::Claim, DemoError> {
    let hosts: Vec<u8> = (0..replicas).map(host_of_place).collect();
    let kept: Option<(Network, Ports)> = earlier.map(|state| (state.network, state.ports));
    addresses::claim(kept, layout.hash(), &hosts, |port| {
        Zone::new(topology.clone(), port).map_err(|_| DemoError::Setting {
            setting: "service, namespace or cluster domain",
            value: topology.service_host(),
            expected: "together they must be a DNS name",
        })
    })
    .await
}

fn topology(options: &Options, earlier: Option<&DemoState>, directory: &Path) -> Result<Topology, DemoError> {
    let kept = |wanted: &Option<String>, found: fn(&DemoState) -> &String, default: &str| {
        let found = || earlier.map(|state| found(state).clone());
        wanted
            .clone()
            .or_else(found)
            .unwrap_or_else(|| default.to_owned())
    };
    let cluster = kept(&options.cluster, |state| &state.cluster, DEFAULT_CLUSTER);
    let first = options
        .first_ordinal
        .or(earlier.map(|state| state.first_ordinal.0))
        .unwrap_or(0);
    if let Some(earlier) = earlier
        && (earlier.cluster != cluster || earlier.first_ordinal.0 != first)
    {
        return Err(DemoError::OtherCluster {
            directory: directory.to_owned(),
            found: earlier.topology().pod_name(earlier.first_ordinal),
            wanted: format!("{cluster}-{first}"),
        });
    }
    check_label("cluster", &cluster)?;
    let topology = Topology {
        service: kept(&options.service, |state| &state.service, &cluster),
        namespace: kept(&options.namespace, |state| &state.namespace, "default"),
        cluster_domain: kept(
            &options.cluster_domain,
            |state| &state.cluster_domain,
            "cluster.local",
        ),
        first_ordinal: Ordinal(first.min(u32::MAX - 2 * MAX_REPLICAS)),
        cluster,
    };
    check_label("service", &topology.service)?;
    check_label("namespace", &topology.namespace)?;
    for label in topology.cluster_domain.split('.') {
        check_label("cluster domain", label)?;
    }
    Ok(topology)
}

/// A DNS label (RFC 1123), which is also a name that is safe in a path; a pod's name is one too.
fn check_label(setting: &'static str, label: &str) -> Result<(), DemoError> {
    let plain = label
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let ends = label.starts_with('-') || label.ends_with('-');
    // A pod's name, a label too, has a dash and a digit more.
    let longest = if setting == "cluster" { 61 } else { 63 };
    let member = setting != "cluster" || MemberName::parse(&format!("{label}-0")).is_ok();
    if label.is_empty() || label.len() > longest || !plain || ends || !member {
        return Err(DemoError::Setting {
            setting,
            value: label.to_owned(),
            expected: "lower-case letters, digits and inner dashes, at most 63 (a cluster: 61), are allowed",
        });
    }
    Ok(())
}

fn replicas(options: &Options, earlier: Option<&DemoState>, topology: &Topology) -> Result<u32, DemoError> {
    let replicas = options
        .replicas
        .or(earlier.map(|state| state.replicas))
        .unwrap_or(DEFAULT_REPLICAS);
    check_replicas(topology, replicas)?;
    Ok(replicas)
}

/// Whether a demo may have so many pods: each needs an address, and a name that is a DNS label.
pub(super) fn check_replicas(topology: &Topology, replicas: u32) -> Result<(), DemoError> {
    let last = Ordinal(topology.first_ordinal.0 + replicas.min(MAX_REPLICAS));
    if topology.pod_name(Ordinal(last.0.saturating_sub(1))).len() > 63 {
        return Err(DemoError::Setting {
            setting: "number of replicas",
            value: replicas.to_string(),
            expected: "the last pod's name would have more than 63 letters",
        });
    }
    if replicas > MAX_REPLICAS {
        return Err(DemoError::Setting {
            setting: "number of replicas",
            value: replicas.to_string(),
            expected: "0 to 50 are possible",
        });
    }
    Ok(())
}

/// The lock lasts as long as the descriptor; children do not inherit it.
fn lock(layout: &Layout) -> Result<OwnedFd, DemoError> {
    let path = layout.directory().join("demo.lock");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(DemoError::file("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file.into()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DemoError::InUse {
            directory: layout.directory().to_owned(),
        }),
        Err(error) => Err(DemoError::file("lock", &path)(error.into())),
    }
}

/// The environment of every process in a pod.
pub(super) fn environment(
    state: &DemoState,
    pod: &PodState,
    uid: &str,
    layout: &Layout,
    more: &std::collections::BTreeMap<String, String>,
) -> std::collections::BTreeMap<String, String> {
    let path = |path: PathBuf| path.display().to_string();
    let run = path(layout.run(&pod.name));
    let own = [
        ("POD_NAME", pod.name.clone()),
        ("POD_NAMESPACE", state.namespace.clone()),
        ("POD_UID", uid.to_owned()),
        ("POD_IP", pod.address.to_string()),
        ("PODGRES_SERVICE", state.service.clone()),
        ("PODGRES_CLUSTER_DOMAIN", state.cluster_domain.clone()),
        ("PODGRES_FIRST_ORDINAL", state.first_ordinal.to_string()),
        ("PODGRES_RUN_DIR", run.clone()),
        ("PODGRES_SOCKET_DIRECTORIES", run),
        ("PODGRES_LISTEN_ADDRESS", pod.address.to_string()),
        ("PODGRES_POSTGRES_PORT", state.ports.postgres.to_string()),
        ("PODGRES_READ_WRITE_PORT", state.ports.read_write.to_string()),
        ("PODGRES_READ_ONLY_PORT", state.ports.read_only.to_string()),
        ("PODGRES_HTTP_PORT", state.ports.http.to_string()),
        ("PODGRES_DNS_SERVER", state.dns_server().to_string()),
        ("PODGRES_REPORT_PIDS", "true".to_owned()),
        ("PODGRES_END_WITH_PARENT", "1".to_owned()),
        ("PG_BINDIR", path(state.program_directory.clone())),
        ("PGDATA", path(layout.volume(&pod.name).join("pgdata"))),
        ("POSTGRES_USER", state.superuser.clone()),
        ("POSTGRES_PASSWORD_FILE", path(state.password_file.clone())),
        // As the official image sets it; without it initdb would choose SQL_ASCII.
        ("LANG", "C.UTF-8".to_owned()),
    ];
    let leadership = match state.leadership {
        Leadership::Fixed => vec![("PODGRES_LEADERSHIP", "fixed".to_owned())],
        Leadership::Lease => vec![
            ("PODGRES_LEADERSHIP", "lease".to_owned()),
            ("PODGRES_KUBECONFIG", path(layout.kubeconfig())),
        ],
    };
    let kept = ["PATH", "TZ", "RUST_LOG", "RUST_BACKTRACE", "NO_COLOR"];
    let kept = kept
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), std::env::var(key).ok()?)));
    let own = own.into_iter().chain(leadership);
    kept.chain(own.map(|(key, value)| (key.to_owned(), value)))
        .chain(more.iter().map(|(key, value)| (key.clone(), value.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_has_a_lease_unless_it_was_made_or_is_asked_for_without() {
        use Leadership::{Fixed, Lease};
        assert_eq!(leadership(None, None), Lease);
        assert_eq!(leadership(None, Some(Fixed)), Fixed);
        assert_eq!(leadership(Some(Lease), Some(Fixed)), Lease);
        assert_eq!(leadership(Some(Fixed), None), Fixed);
    }
}
