//! Cancel requests: sent to every member, because only the owner of the key reacts.
//!
//! The key may come from a login through any endpoint of any pod; nobody has to remember it. One that came in TLS which
//! ended here goes on in TLS.
//! Source: the manual's "Canceling Requests in Progress".

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection::Endpoint;
use super::encryption::Encryption;
use super::stats::count_one;

/// Forwarded at a time; each is a connection to every member.
pub(super) const MAX_CANCELS: usize = 16;
/// For one cancel request, its wait for a turn included.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

impl Endpoint {
    /// Sends the packet to all members and waits until they have closed, as libpq does: then the signal is sent.
    pub(super) async fn forward_cancel(&self, packet: &[u8], by: Option<&Encryption>) {
        let members = self.member_addresses();
        let _in_time = timeout(CANCEL_TIMEOUT, async {
            let _turn = self.cancels.acquire().await;
            count_one(&self.stats.cancels_total);
            let sent = members
                .iter()
                .map(|(name, member)| send(name, *member, packet, by));
            join_all(sent).await
        })
        .await;
    }

    fn member_addresses(&self) -> BTreeMap<String, SocketAddr> {
        let table = self.knowledge.table.borrow();
        let mut members = table.members.clone();
        let servers = table.servers.iter();
        members.extend(servers.map(|server| (server.name.clone(), server.address)));
        members
    }
}

async fn send(name: &str, member: SocketAddr, packet: &[u8], by: Option<&Encryption>) -> io::Result<()> {
    let stream = TcpStream::connect(member).await?;
    match by {
        None => say(stream, packet).await,
        Some(by) => say(by.encrypt(stream, name).await?, packet).await,
    }
}

async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, packet: &[u8]) -> io::Result<()> {
    stream.write_all(packet).await?;
    stream.flush().await?;
    let _end = stream.read(&mut [0_u8; 1]).await?;
    Ok(())
}
