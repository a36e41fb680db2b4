//! Connecting out from exactly one address of this host.
//!
//! It refuses to choose: whoever dials names the source. Easy to get wrong: a bound socket is
//! checked again after it connected, because mail that leaves by another address than its own is
//! the one mistake that cannot be taken back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use rustix::io::Errno;
use tokio::net::{TcpSocket, TcpStream};

use super::{DialError, Dialer};

/// Dials with the operating system's sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct BoundDialer;

/// Whether `address` is on this host now.
///
/// Asks the kernel by binding, so that 127.0.0.0/8 counts as present. With
/// `net.ipv4.ip_nonlocal_bind` set the kernel says yes to everything; then connections from a
/// missing address time out instead, and still never leave by another one.
pub fn is_present(address: IpAddr) -> bool {
    match std::net::UdpSocket::bind(SocketAddr::new(address, 0)) {
        Ok(_) => true,
        Err(error) => !is_address_missing(&error),
    }
}

fn is_address_missing(error: &io::Error) -> bool {
    let raw = error.raw_os_error();
    // EAFNOSUPPORT: the host has no IPv6 at all.
    [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT].iter().any(|errno| raw == Some(errno.raw_os_error()))
}

/// How often it is looked whether a descriptor became free.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(200);

/// A socket; while none can be had for want of descriptors, that is our trouble and not the
/// peer's, and it waits for as long as its caller has patience.
async fn open(target: SocketAddr) -> io::Result<TcpSocket> {
    let is_ours = |error: &io::Error| {
        let raw = error.raw_os_error();
        [Errno::MFILE, Errno::NFILE].iter().any(|errno| raw == Some(errno.raw_os_error()))
    };
    loop {
        let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        match socket {
            Err(error) if is_ours(&error) => tokio::time::sleep(DESCRIPTOR_PAUSE).await,
            other => return other,
        }
    }
}

async fn connect(source: IpAddr, target: SocketAddr) -> Result<TcpStream, DialError> {
    let failed = |what: &str, error: &io::Error| DialError::Failed(format!("{what}: {error}"));
    let socket = open(target).await.map_err(|error| failed("no socket", &error))?;
    // Ports whose last connection is in TIME_WAIT may be used again towards another peer.
    let _ = socket.set_reuseaddr(true);
    let _ = socket.set_nodelay(true);
    socket.bind(SocketAddr::new(source, 0)).map_err(|error| {
        if is_address_missing(&error) { DialError::SourceMissing(source) } else { failed("bind", &error) }
    })?;
    socket.connect(target).await.map_err(|error| {
        if is_address_missing(&error) && !is_present(source) {
            DialError::SourceMissing(source)
        } else {
            failed("connect", &error)
        }
    })
}

#[async_trait]
impl Dialer for BoundDialer {
    async fn dial(&self, source: IpAddr, target: SocketAddr, patience: Duration) -> Result<TcpStream, DialError> {
        if source.is_ipv4() != target.is_ipv4() {
            return Err(DialError::Failed(format!("{target} cannot be reached from {source}: another address family")));
        }
        let stream = match tokio::time::timeout(patience, connect(source, target)).await {
            Ok(connected) => connected?,
            Err(_) => return Err(DialError::Failed(format!("connect: no answer within {} s", patience.as_secs()))),
        };
        let local = stream.local_addr().map_err(|error| DialError::Failed(error.to_string()))?;
        if local.ip() != source {
            return Err(DialError::SourceMissing(source));
        }
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_connection_leaves_by_the_address_it_was_bound_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source: IpAddr = "127.0.0.77".parse().unwrap();
        let target = listener.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(BoundDialer.dial(source, target, PATIENCE), listener.accept());
        assert_eq!(dialled.unwrap().local_addr().unwrap().ip(), source);
        assert_eq!(accepted.unwrap().1.ip(), source);
    }

    #[tokio::test]
    async fn an_address_that_is_not_on_this_host_is_named_and_no_other_is_used() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source: IpAddr = "192.0.2.77".parse().unwrap();
        assert!(!is_present(source));
        assert!(is_present("127.3.2.1".parse().unwrap()));
        let dialled = BoundDialer.dial(source, listener.local_addr().unwrap(), PATIENCE).await;
        assert_eq!(dialled.err(), Some(DialError::SourceMissing(source)));
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_failure_of_the_peer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        drop(listener);
        let dialled = BoundDialer.dial("127.0.0.1".parse().unwrap(), target, PATIENCE).await;
        assert!(matches!(dialled, Err(DialError::Failed(_))), "{dialled:?}");
    }
}
