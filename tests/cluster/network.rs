//! A network of one cluster for pods started by hand: loopback addresses, a folder, and the demo's DNS server, which
//! can be away.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use podgres::core::member::{Ordinal, Topology};
use podgres::demo::dns::{Server, Zone};

use crate::hand::Pod;
use crate::harness::{LIMIT, programs, wait_for};
use crate::plain::{give_away, open_to_all};
use crate::relay::Relay;

/// The superuser's and the replication role's, in every pod.
pub(crate) const PASSWORD: &str = "correct-horse";
const DNS_PORT: u16 = 5300;

/// Loopback addresses, a folder and a DNS server of one cluster named `pg`.
pub(crate) struct Network {
    pub(crate) version: u32,
    zone: Zone,
    listed: BTreeMap<Ordinal, IpAddr>,
    runtime: tokio::runtime::Runtime,
    dns: Dns,
    /// The addresses begin with 127 and these.
    prefix: [u8; 2],
    folder: tempfile::TempDir,
}

enum Dns {
    /// Takes questions and never answers.
    Silent(UdpSocket),
    Answering(#[expect(dead_code, reason = "ends when dropped")] Server),
    Changing,
}

impl Network {
    /// A network whose DNS server does not answer yet.
    pub(crate) fn silent(version: u32) -> Self {
        let (prefix, socket) = claim();
        let folder = tempfile::Builder::new()
            .prefix("pg")
            .tempdir()
            .expect("temporary folder");
        open_to_all(folder.path());
        let binary = folder.path().join("podgres");
        let original = env!("CARGO_BIN_EXE_podgres");
        if fs::hard_link(original, &binary).is_err() {
            fs::copy(original, &binary).expect("copy of podgres");
        }
        let topology = Topology {
            cluster: "pg".to_owned(),
            service: "pg".to_owned(),
            namespace: "default".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            first_ordinal: Ordinal(0),
        };
        Self {
            version,
            zone: Zone::new(topology, 5432).expect("zone"),
            listed: BTreeMap::new(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("runtime"),
            dns: Dns::Silent(socket),
            prefix,
            folder,
        }
    }

    /// A network with DNS, and no pod in it.
    pub(crate) fn new(version: u32) -> Self {
        let mut network = Self::silent(version);
        network.answer();
        network
    }

    /// From now on DNS answers.
    pub(crate) fn answer(&mut self) {
        let Dns::Silent(socket) = std::mem::replace(&mut self.dns, Dns::Changing) else {
            panic!("DNS answers already");
        };
        drop(socket);
        let address = self.dns_address();
        // A child that another test has just forked holds the socket until it is another program.
        let mut bound = None;
        let free = || {
            bound = self
                .runtime
                .block_on(Server::bind(address, self.zone.clone()))
                .ok();
            bound.is_some()
        };
        assert!(wait_for(LIMIT, free), "could not bind {address}");
        self.dns = Dns::Answering(bound.expect("DNS server"));
    }

    fn dns_address(&self) -> SocketAddr {
        SocketAddr::new(self.host(1), DNS_PORT)
    }

    fn host(&self, last: u8) -> IpAddr {
        let [a, b] = self.prefix;
        IpAddr::V4(Ipv4Addr::new(127, a, b, last))
    }

    pub(crate) fn address(&self, ordinal: u8) -> IpAddr {
        self.host(10 + ordinal)
    }

    /// Puts a pod's name into DNS.
    pub(crate) fn list(&mut self, ordinal: u8) {
        self.list_at(ordinal, self.address(ordinal));
    }

    /// Leads those who ask for a pod to PostgreSQL behind a slow network; its HTTP is out of reach there.
    pub(crate) fn list_behind_relay(&mut self, ordinal: u8, bytes_per_second: u32) -> Relay {
        let relay = self.host(60 + ordinal);
        self.list_at(ordinal, relay);
        let postgres = |address| SocketAddr::new(address, 5432);
        Relay::start(postgres(relay), postgres(self.address(ordinal)), bytes_per_second)
    }

    fn list_at(&mut self, ordinal: u8, address: IpAddr) {
        self.listed.insert(Ordinal(ordinal.into()), address);
        self.zone.set_pods(&self.listed).expect("names");
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        programs(self.version).join(name)
    }

    /// A file that the pods can read, with the parents that it needs.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(&path, content).expect("file");
        give_away(&path);
        path
    }

    /// A pod in DNS, with an empty volume.
    pub(crate) fn pod(&mut self, ordinal: u8) -> Pod {
        self.list(ordinal);
        self.unnamed_pod(ordinal)
    }

    /// A pod that DNS does not know.
    pub(crate) fn unnamed_pod(&self, ordinal: u8) -> Pod {
        let name = format!("pg-{ordinal}");
        let directory = self.path().join(&name);
        let volume = directory.join("volume");
        for folder in ["", "volume", "run"] {
            let folder = directory.join(folder);
            fs::create_dir_all(&folder).expect("folder");
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("mode");
            give_away(&folder);
        }
        let password = self.file("secret/password", &format!("{PASSWORD}\n"));
        let address = self.address(ordinal);
        let text = |path: &Path| path.to_str().expect("utf-8").to_owned();
        let run = text(&directory.join("run"));
        let environment = [
            ("POD_NAME", name.clone()),
            ("POD_NAMESPACE", "default".to_owned()),
            ("POD_UID", format!("{name}-{:08x}", fastrand::u32(..))),
            ("POD_IP", address.to_string()),
            ("PODGRES_LISTEN_ADDRESS", address.to_string()),
            ("PODGRES_RUN_DIR", run.clone()),
            ("PODGRES_SOCKET_DIRECTORIES", run),
            ("PODGRES_DNS_SERVER", self.dns_address().to_string()),
            ("PODGRES_REPORT_PIDS", "true".to_owned()),
            ("PODGRES_END_WITH_PARENT", "1".to_owned()),
            ("PODGRES_INITDB_SCRIPTS", text(&directory.join("no-scripts"))),
            ("PG_BINDIR", text(&programs(self.version))),
            ("PGDATA", text(&volume.join("pgdata"))),
            ("POSTGRES_PASSWORD_FILE", text(&password)),
            ("LANG", "C.UTF-8".to_owned()),
            ("PATH", std::env::var("PATH").expect("PATH")),
        ];
        let environment = environment.map(|(key, value)| (key.to_owned(), value));
        Pod {
            name,
            address,
            binary: self.path().join("podgres"),
            psql: self.program("psql"),
            directory,
            volume,
            environment: environment.into(),
            containers: Vec::new(),
        }
    }
}

/// A network that nobody else uses: its first address takes the DNS port.
fn claim() -> ([u8; 2], UdpSocket) {
    for _ in 0..200 {
        let network = [fastrand::u8(2..250), fastrand::u8(1..)];
        let address = Ipv4Addr::new(127, network[0], network[1], 1);
        if let Ok(socket) = UdpSocket::bind((address, DNS_PORT)) {
            return (network, socket);
        }
    }
    panic!("no free loopback network");
}
