//! The demo's DNS server: what a Kubernetes cluster's DNS says of one headless Service.
//!
//! Authoritative for the cluster domain, over UDP and TCP: addresses of each pod and of the Service
//! (`publishNotReadyAddresses`: a pod has its name as long as it exists), SRV records of the Service's
//! PostgreSQL port, NXDOMAIN with SOA for the rest. Source: "Kubernetes DNS-Based Service Discovery", 1.1.0.
//! Never asks another server, never answers what is not a question.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{SOA, SRV};
use hickory_proto::rr::{DNSClass, LowerName, Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::core::member::{Ordinal, Topology};

/// The default of `CoreDNS`; short, so that a client with a cache sees a moved pod soon.
const TTL_SECONDS: u32 = 5;
/// The largest answer over UDP to a client that says nothing of its own limit (RFC 1035).
const UDP_LIMIT_BYTES: u16 = 512;
/// The largest answer over UDP at all, so that none is fragmented.
const UDP_EDNS_LIMIT_BYTES: u16 = 1232;
const TCP_CONNECTIONS: usize = 32;
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The records; clones share them.
#[derive(Clone)]
pub struct Zone {
    domain: Name,
    topology: Arc<Topology>,
    postgres_port: u16,
    records: Arc<RwLock<BTreeMap<LowerName, Vec<RData>>>>,
}

impl Zone {
    /// The zone of a Service without pods.
    ///
    /// # Errors
    /// A part of the topology cannot be part of a DNS name.
    pub fn new(topology: Topology, postgres_port: u16) -> Result<Self, ProtoError> {
        let zone = Self {
            domain: absolute(&topology.cluster_domain)?,
            topology: Arc::new(topology),
            postgres_port,
            records: Arc::default(),
        };
        zone.set_pods(&BTreeMap::new())?;
        Ok(zone)
    }

    /// From now on exactly these pods exist.
    ///
    /// # Errors
    /// A pod's name is too long for DNS; the records stay as they were.
    pub fn set_pods(&self, pods: &BTreeMap<Ordinal, IpAddr>) -> Result<(), ProtoError> {
        let service = absolute(&self.topology.service_host())?;
        let mut records = BTreeMap::new();
        let mut listed = Vec::new();
        for (ordinal, address) in pods {
            let host = absolute(&self.topology.pod_host(*ordinal))?;
            records.insert(LowerName::new(&host), vec![RData::from(*address)]);
            let weight = u16::try_from(100 / pods.len()).unwrap_or(1).max(1);
            listed.push(RData::SRV(SRV::new(0, weight, self.postgres_port, host)));
        }
        let port = absolute(&format!("{}.{service}", crate::dns::SRV_PORT_NAME))?;
        records.insert(LowerName::new(&port), listed);
        let addresses = pods.values().map(|address| RData::from(*address)).collect();
        records.insert(LowerName::new(&service), addresses);
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = records;
        Ok(())
    }

    /// Leaves the Service's port without a name until the pods change next, as many manifests do. For tests of the client.
    pub fn drop_service_port(&self) {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        records.retain(|_, data| !data.iter().any(|one| matches!(one, RData::SRV(_))));
    }

    /// The answer to one packet; `None` if it is not to be answered at all.
    ///
    /// Over UDP an answer that is too long is marked as truncated, and the client comes back over TCP.
    #[must_use]
    pub fn answer(&self, packet: &[u8], udp: bool) -> Option<Vec<u8>> {
        let request = Message::from_vec(packet).ok()?;
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.add_queries(request.queries.iter().cloned());
        response.edns = request.edns.as_ref().map(|_| edns());
        match request.queries.as_slice() {
            _ if request.metadata.op_code != OpCode::Query => {
                response.metadata.response_code = ResponseCode::NotImp;
            }
            [query] => self.fill(&mut response, query),
            _ => response.metadata.response_code = ResponseCode::FormErr,
        }
        let bytes = response.to_vec().ok()?;
        let limit = request.edns.as_ref().map_or(UDP_LIMIT_BYTES, |edns| {
            edns.max_payload().clamp(UDP_LIMIT_BYTES, UDP_EDNS_LIMIT_BYTES)
        });
        if udp && bytes.len() > usize::from(limit) {
            return response.truncate().to_vec().ok();
        }
        Some(bytes)
    }

    fn fill(&self, response: &mut Message, query: &Query) {
        let name = LowerName::new(query.name());
        if query.query_class() != DNSClass::IN || !self.domain.zone_of(&name) {
            response.metadata.response_code = ResponseCode::Refused;
            return;
        }
        response.metadata.authoritative = true;
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let known = records.get(&name);
        let wanted = known
            .into_iter()
            .flatten()
            .filter(|data| data.record_type() == query.query_type());
        for data in wanted {
            response.add_answer(Record::from_rdata(
                query.name().clone(),
                TTL_SECONDS,
                data.clone(),
            ));
            if let RData::SRV(service) = data {
                let addresses = records
                    .get(&LowerName::new(&service.target))
                    .into_iter()
                    .flatten();
                response.add_additionals(
                    addresses
                        .map(|data| Record::from_rdata(service.target.clone(), TTL_SECONDS, data.clone())),
                );
            }
        }
        if response.answers.is_empty() {
            let exists = known.is_some() || records.keys().any(|other| name.zone_of(other));
            if !exists {
                response.metadata.response_code = ResponseCode::NXDomain;
            }
            response.add_authority(self.start_of_authority());
        }
    }

    fn start_of_authority(&self) -> Record {
        let label = |text: &str| {
            self.domain
                .prepend_label(text)
                .unwrap_or_else(|_| self.domain.clone())
        };
        let soa = SOA::new(
            label("ns"),
            label("hostmaster"),
            1,
            7200,
            1800,
            86400,
            TTL_SECONDS,
        );
        Record::from_rdata(self.domain.clone(), TTL_SECONDS, RData::SOA(soa))
    }
}

/// A running server; ends soon after it is dropped.
pub struct Server {
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Server {
    /// Takes UDP and TCP of `address` and answers from `zone`.
    ///
    /// # Errors
    /// The address is in use or not ours.
    pub async fn bind(address: SocketAddr, zone: Zone) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let address = tcp.local_addr()?;
        let udp = UdpSocket::bind(address).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, zone.clone()));
        tasks.spawn(serve_tcp(tcp, zone));
        Ok(Self { address, tasks })
    }

    /// Ends it; its address is free when this returns.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve_udp(socket: UdpSocket, zone: Zone) {
    let mut packet = [0; 4096];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut packet).await else {
            // The kernel hands errors of earlier sends to the next receive; more than one in a row is rare.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        if let Some(answer) = zone.answer(&packet[..length], true) {
            // A client that has gone is its own loss: it asks again.
            drop(socket.send_to(&answer, client).await);
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Zone) {
    let places = Arc::new(Semaphore::new(TCP_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let zone = zone.clone();
        connections.spawn(async move {
            // An error ends this connection and nothing else.
            drop(serve_connection(stream, &zone).await);
            drop(place);
        });
    }
}

/// Messages with a length of two bytes before each (RFC 1035, 4.2.2).
async fn serve_connection(mut stream: TcpStream, zone: &Zone) -> io::Result<()> {
    loop {
        let packet = tokio::time::timeout(TCP_IDLE_TIMEOUT, read_message(&mut stream)).await??;
        let Some(answer) = zone.answer(&packet, false) else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let mut message = length.to_be_bytes().to_vec();
        message.extend(answer);
        tokio::time::timeout(TCP_IDLE_TIMEOUT, stream.write_all(&message)).await??;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut packet = vec![0; usize::from(length)];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

fn edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_EDNS_LIMIT_BYTES);
    edns
}

fn absolute(host: &str) -> Result<Name, ProtoError> {
    let mut name = Name::from_ascii(host)?;
    name.set_fqdn(true);
    Ok(name)
}
