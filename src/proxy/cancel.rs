//! Cancel requests: sent to every member, because only the owner of the key reacts.
//!
//! The key may come from a login through any endpoint of any pod; nobody has to remember it.
//! Source: the manual's "Canceling Requests in Progress".

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection::Endpoint;
use super::stats::count_one;

/// Forwarded at a time; each is a connection to every member.
pub(super) const MAX_CANCELS: usize = 16;
/// For one cancel request, its wait for a turn included.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

impl Endpoint {
    /// Sends the packet to all members and waits until they have closed, as libpq does: then the signal is sent.
    pub(super) async fn forward_cancel(&self, packet: &[u8]) {
        let members = self.member_addresses();
        let _in_time = timeout(CANCEL_TIMEOUT, async {
            let _turn = self.cancels.acquire().await;
            count_one(&self.stats.cancels_total);
            join_all(members.iter().map(|member| send(*member, packet))).await
        })
        .await;
    }

    fn member_addresses(&self) -> BTreeSet<SocketAddr> {
        let table = self.knowledge.table.borrow();
        let servers = table.servers.iter().map(|server| server.address);
        servers.chain(table.members.iter().copied()).collect()
    }
}

async fn send(member: SocketAddr, packet: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(member).await?;
    stream.write_all(packet).await?;
    let _end = stream.read(&mut [0_u8; 1]).await?;
    Ok(())
}
