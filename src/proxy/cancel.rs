//! Cancel requests: sent to every member, because only the owner of the key reacts.
//!
//! The key may come from a login through any endpoint of any pod; nobody has to remember it. One that came in TLS which
//! ended here goes on in TLS.
//! Source: the manual's "Canceling Requests in Progress".

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::connection::Endpoint;
use super::encryption::Encryption;
use super::stats::count_one;

/// Sent at a time; each is a connection to every member.
pub(super) const MAX_CANCELS: usize = 16;
/// For a turn to send, and again for all members to take the packet and close.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// A member that has not taken the packet by then holds up nobody else's.
const TURN_TIMEOUT: Duration = Duration::from_millis(200);

impl Endpoint {
    /// Sends the packet to all members and waits until they have closed, as libpq does: then the signal is sent.
    pub(super) async fn forward_cancel(&self, packet: &[u8], by: Option<&Encryption>) {
        let members = self.member_addresses();
        let Ok(Ok(turn)) = timeout(CANCEL_TIMEOUT, self.cancels.acquire()).await else {
            return;
        };
        count_one(&self.stats.cancels_total);
        // Over with the last of these: once all have the packet, or have had their time.
        let turn = Arc::new(turn);
        let sent = members
            .iter()
            .map(|(name, member)| send(Arc::clone(&turn), name, *member, packet, by));
        let sent = join_all(sent);
        drop(turn);
        let _in_time = timeout(CANCEL_TIMEOUT, sent).await;
    }

    fn member_addresses(&self) -> BTreeMap<String, SocketAddr> {
        let table = self.knowledge.table.borrow();
        let mut members = table.members.clone();
        let servers = table.servers.iter();
        members.extend(servers.map(|server| (server.name.clone(), server.address)));
        members
    }
}

async fn send(
    turn: Arc<SemaphorePermit<'_>>,
    name: &str,
    member: SocketAddr,
    packet: &[u8],
    by: Option<&Encryption>,
) -> io::Result<()> {
    let mut telling = pin!(tell(name, member, packet, by));
    let told = timeout(TURN_TIMEOUT, &mut telling).await;
    drop(turn);
    let mut member = match told {
        Ok(told) => told?,
        Err(_elapsed) => telling.await?,
    };
    let _end = member.read(&mut [0_u8; 1]).await?;
    Ok(())
}

/// What is read from and written to, encrypted or not.
trait Line: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Line for T {}

/// Connects and says it all.
async fn tell(
    name: &str,
    member: SocketAddr,
    packet: &[u8],
    by: Option<&Encryption>,
) -> io::Result<Box<dyn Line>> {
    let stream = TcpStream::connect(member).await?;
    let mut line: Box<dyn Line> = match by {
        None => Box::new(stream),
        Some(by) => Box::new(by.encrypt(stream, name).await?),
    };
    line.write_all(packet).await?;
    line.flush().await?;
    Ok(line)
}
