//! A door for what comes back: nobody logs in, and whom mail may come to is asked of whoever reads it.
//!
//! It refuses to know what a report is. Easy to get wrong: a recipient that is not ours is refused at RCPT, so
//! that this door can never be made to pass anything on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tracing::debug;

use super::connection::Connection;
use crate::ext::Timestamp;
use crate::mail::{Domain, Draft, Envelope, ForwardPath, Refusal, Reply, ReversePath, VipId};
use crate::vips::{Owner, Vip};

/// Whether mail of a reverse-path is taken.
pub type TakesFrom = Arc<dyn Fn(&ReversePath) -> Result<(), Refusal> + Send + Sync>;
/// Whether mail may come to a forward-path from a peer.
pub type TakesFor = Arc<dyn Fn(IpAddr, &ForwardPath, Timestamp) -> Result<(), Refusal> + Send + Sync>;
/// Takes a message: `Ok` means that what follows from it survives a power cut.
pub type Take = Arc<dyn Fn(Arrival, Timestamp) -> BoxFuture<'static, Result<(), Refusal>> + Send + Sync>;

/// Whom a door for reception asks, and where it is.
#[derive(Clone)]
pub struct Reception {
    /// Whether it is open at all now.
    pub is_open: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Where it listens besides the virtual IPs.
    pub addresses: Vec<SocketAddr>,
    /// What it is called where no virtual IP is.
    pub hostname: Domain,
    /// Asked at MAIL.
    pub sender: TakesFrom,
    /// Asked at RCPT.
    pub recipient: TakesFor,
    /// Asked at the end of the message.
    pub accept: Take,
}

/// A message that came to a door for reception.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// What SMTP said about it.
    pub envelope: Envelope,
    /// The message.
    pub draft: Draft,
    /// What the peer called itself, printable.
    pub helo: String,
    /// Who it is.
    pub peer: SocketAddr,
    /// The virtual IP it came to, if it is one.
    pub vip: Option<VipId>,
}

/// What stands for an address that is no virtual IP's.
const NO_VIP: VipId = VipId(0);

impl Reception {
    /// The door's name at an address of this host that is no virtual IP's.
    pub(super) fn at_host(&self) -> Vip {
        Vip {
            id: NO_VIP,
            ipv4: None,
            ipv6: None,
            public_ipv4: None,
            public_ipv6: None,
            ehlo: self.hostname.clone(),
            owner: Owner::Shared,
        }
    }
}

impl Connection {
    /// The message is whole: to whoever takes it.
    pub(super) async fn receive(&self, reception: &Reception, envelope: Envelope, draft: Draft) -> Reply {
        let arrival = Arrival {
            envelope,
            draft,
            helo: self.session.helo().to_owned(),
            peer: self.peer,
            vip: Some(self.vip.id).filter(|id| *id != NO_VIP),
        };
        match (reception.accept)(arrival, Timestamp::now()).await {
            Ok(()) => Reply::enhanced(250, 0, 0, "Taken"),
            Err(refusal) => {
                debug!(peer = %self.peer, cause = refusal.cause, "what came back was not taken");
                self.told(&refusal)
            }
        }
    }
}
