//! Listeners: (each virtual IP present on this host) x (ports), kept so while both change, and
//! sockets that were open already. Each accepted connection needs a place before it is served.
//!
//! Easy to get wrong: a session belongs to the virtual IP of its *local address*, whatever socket
//! it came through, and accept errors (no file descriptors left) must neither spin nor stop it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use listenfd::ListenFd;
use socket2::{Domain as Family, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::background::{Shutdown, Tasks};
use crate::gate::{Gate, Work};
use crate::mail::SmtpAccountId;
use crate::metrics::{SESSIONS, SESSIONS_BEGUN, SESSIONS_REFUSED};
use crate::net::{self, Certificates};
use crate::smtp;
use crate::trace::Tracer;
use crate::vips::{Vip, Vips};

use super::connection::Connection;
use super::counts::{Counts, Octets, Place, network_of};
use super::wire::Wire;
use super::{Duty, Parts, Settings};

/// Connections the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;
/// Pause after an accept error that is about us and not about one connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// When TLS begins on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortMode {
    /// Before the greeting (465).
    TlsFirst,
    /// After STARTTLS (587, 2525).
    Starttls,
}

/// A socket that listens already.
#[derive(Debug)]
pub struct GivenSocket {
    /// The socket.
    pub listener: std::net::TcpListener,
    /// When TLS begins.
    pub mode: PortMode,
}

/// Takes the listening sockets that systemd passed (LISTEN_FDS), once. A socket whose
/// `FileDescriptorName=` is `submissions` or `tls`, or else whose port is among
/// [`Settings::tls_ports`], speaks TLS first; the others STARTTLS.
pub fn inherited_sockets(settings: &Settings) -> io::Result<Vec<GivenSocket>> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut inherited = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..inherited.len() {
        let name = names.next().unwrap_or_default();
        let Some(listener) = inherited.take_tcp_listener(index)? else { continue };
        let port = listener.local_addr()?.port();
        let is_tls = matches!(name, "submissions" | "tls") || settings.tls_ports.contains(&port);
        let mode = if is_tls { PortMode::TlsFirst } else { PortMode::Starttls };
        sockets.push(GivenSocket { listener, mode });
    }
    Ok(sockets)
}

/// What all sessions share.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) settings: Arc<Settings>,
    pub(super) session: Arc<smtp::Settings>,
    pub(super) gate: Arc<Gate>,
    pub(super) duty: Duty,
    pub(super) vips: Arc<Vips>,
    pub(super) certificates: Arc<Certificates>,
    pub(super) drafts_folder: PathBuf,
    pub(super) tracer: Arc<Tracer>,
    pub(super) drafts: Arc<Octets>,
    pub(super) by_account: Arc<Counts<SmtpAccountId>>,
    by_peer: Arc<Counts<IpAddr>>,
    in_total: Arc<Counts<()>>,
    /// No new sessions, idle ones are told 421.
    pub(super) stop: Shutdown,
    sessions: Tasks,
    /// The grace is over.
    kill: Shutdown,
}

/// What is listened on; equal ones are one listener.
type Spot = (SocketAddr, PortMode);

pub(super) async fn run(parts: Parts, shutdown: Shutdown) {
    let Parts { settings: mut changes, gate, duty, vips, certificates, drafts_folder, tracer, given_sockets } = parts;
    let settings = changes.borrow_and_update().clone();
    let door = Door {
        session: Arc::new(settings.session.clone()),
        drafts: Octets::new(settings.drafts_bytes_max, settings.drafts_bytes_per_tenant_max),
        by_account: Counts::new(settings.sessions_per_account_max),
        by_peer: Counts::new(settings.sessions_per_peer_max),
        in_total: Counts::new(settings.sessions_max),
        settings,
        gate,
        duty,
        vips,
        certificates,
        drafts_folder,
        tracer,
        stop: shutdown.clone(),
        sessions: Tasks::new(),
        kill: Shutdown::new(),
    };
    let (sessions, kill, grace) = (door.sessions.clone(), door.kill.clone(), door.settings.stop_grace);
    let doors = watch::Sender::new(Arc::new(door));
    let mut given = Vec::new();
    for GivenSocket { listener, mode } in given_sockets {
        match adopt(listener) {
            Ok((listener, address)) => {
                info!(%address, ?mode, "serving a given socket");
                given.push(address);
                sessions.spawn(listen(doors.subscribe(), listener, mode, shutdown.clone()));
            }
            Err(error) => warn!(%error, "a given socket cannot be used"),
        }
    }
    reconcile(&doors, &mut changes, &given, &shutdown).await;
    sessions.close();
    if tokio::time::timeout(grace, sessions.wait()).await.is_err() {
        kill.cancel();
        sessions.wait().await;
    }
}

impl Door {
    /// The same door with other limits, for sessions that begin from now on.
    fn adjusted(&self, settings: Arc<Settings>) -> Self {
        self.drafts.set_max(settings.drafts_bytes_max, settings.drafts_bytes_per_tenant_max);
        self.by_account.set_max(settings.sessions_per_account_max);
        self.by_peer.set_max(settings.sessions_per_peer_max);
        self.in_total.set_max(settings.sessions_max);
        Self { session: Arc::new(settings.session.clone()), settings, ..self.clone() }
    }
}

/// Resolves when settings changed; never if nobody can change them any more.
async fn changed_settings(changes: &mut watch::Receiver<Arc<Settings>>) -> Arc<Settings> {
    match changes.changed().await {
        Ok(()) => changes.borrow_and_update().clone(),
        Err(_) => std::future::pending().await,
    }
}

/// Keeps the listeners as they should be, and the door's limits as they are set, until `shutdown`.
async fn reconcile(
    doors: &watch::Sender<Arc<Door>>,
    changes: &mut watch::Receiver<Arc<Settings>>,
    given: &[SocketAddr],
    shutdown: &Shutdown,
) {
    let door = Arc::clone(&doors.borrow());
    let mut changed = door.vips.changed();
    let mut running: HashMap<SocketAddr, (PortMode, Shutdown)> = HashMap::new();
    let mut complaints: BTreeMap<SocketAddr, String> = BTreeMap::new();
    loop {
        let wanted = wanted(&door, given);
        running.retain(|address, (mode, stop)| {
            let stays = wanted.contains(&(*address, *mode));
            if !stays {
                info!(%address, "no longer listening");
                stop.cancel();
            }
            stays
        });
        complaints.retain(|address, _| wanted.iter().any(|(other, _)| other == address));
        for (address, mode) in wanted {
            if running.contains_key(&address) {
                continue;
            }
            match bind(address) {
                Ok(listener) => {
                    info!(%address, ?mode, "listening");
                    complaints.remove(&address);
                    let stop = shutdown.child_token();
                    running.insert(address, (mode, stop.clone()));
                    door.sessions.spawn(listen(doors.subscribe(), listener, mode, stop));
                }
                Err(error) => {
                    let error = error.to_string();
                    if complaints.get(&address) != Some(&error) {
                        warn!(%address, error, "cannot listen; trying again");
                        complaints.insert(address, error);
                    }
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = changed.changed() => {}
            settings = changed_settings(changes) => {
                let adjusted = doors.borrow().adjusted(settings);
                doors.send_replace(Arc::new(adjusted));
            }
            () = tokio::time::sleep(door.settings.presence_poll) => {}
        }
    }
}

/// (each virtual IP present) x (ports), but for what given sockets serve already.
fn wanted(door: &Door, given: &[SocketAddr]) -> Vec<Spot> {
    let settings = &door.settings;
    let ports = (settings.tls_ports.iter().map(|port| (*port, PortMode::TlsFirst)))
        .chain(settings.starttls_ports.iter().map(|port| (*port, PortMode::Starttls)));
    let ports: Vec<(u16, PortMode)> = ports.collect();
    let mut spots = Vec::new();
    if let Duty::Reception(reception) = &door.duty {
        if !(reception.is_open)() {
            return spots;
        }
        let more = reception.addresses.iter().filter(|spot| spot.ip().is_unspecified() || net::is_present(spot.ip()));
        spots.extend(more.map(|spot| (*spot, PortMode::Starttls)));
    }
    for address in door.vips.all().iter().flat_map(Vip::addresses).filter(|address| net::is_present(*address)) {
        for (port, mode) in &ports {
            let spot = SocketAddr::new(address, *port);
            let is_given = given
                .iter()
                .any(|other| other.port() == *port && (other.ip() == address || other.ip().is_unspecified()));
            if !is_given && !spots.contains(&(spot, *mode)) {
                spots.push((spot, *mode));
            }
        }
    }
    spots
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Family::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn adopt(listener: std::net::TcpListener) -> io::Result<(TcpListener, SocketAddr)> {
    let address = listener.local_addr()?;
    // Whoever opened it may have asked for a short queue.
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok((TcpListener::from_std(listener)?, address))
}

async fn listen(doors: watch::Receiver<Arc<Door>>, listener: TcpListener, mode: PortMode, stop: Shutdown) {
    let mut complained = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                complained = None;
                let door = Arc::clone(&doors.borrow());
                admit(&door, stream, peer, mode);
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                // One line, not five a second while it lasts.
                if complained.replace(error.kind()) != Some(error.kind()) {
                    warn!(%error, "cannot accept connections; trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | ConnectionRefused | Interrupted)
}

/// The places a session holds while it lasts, and its part of the metric.
struct Places {
    _total: Place<()>,
    _peer: Place<IpAddr>,
    port: u16,
}

impl Drop for Places {
    fn drop(&mut self) {
        metrics::gauge!(SESSIONS, "port" => self.port.to_string()).decrement(1);
    }
}

/// Gives the connection a task of its own, or tells it why not.
fn admit(door: &Arc<Door>, stream: TcpStream, peer: SocketAddr, mode: PortMode) {
    let Ok(local) = stream.local_addr() else { return };
    let at_host = || match &door.duty {
        Duty::Submission(_) => None,
        Duty::Reception(reception) => Some(reception.at_host()),
    };
    let Some(vip) = door.vips.by_address(local.ip()).or_else(at_host) else {
        debug!(%local, "no virtual IP has that address");
        metrics::counter!(SESSIONS_REFUSED, "reason" => "no-virtual-ip").increment(1);
        return refuse(&stream, mode, "421 4.3.2 No service on this address\r\n");
    };
    if let Err(shortage) = door.gate.admit(Work::Session) {
        debug!(%peer, shortage = shortage.name(), "refused for a shortage");
        return refuse(&stream, mode, "421 4.3.2 Busy; come back in a minute\r\n");
    }
    let Some(total) = door.in_total.take(()) else {
        warn!("sessions_max reached");
        metrics::counter!(SESSIONS_REFUSED, "reason" => "sessions-max").increment(1);
        return refuse(&stream, mode, "421 4.3.2 Too many sessions; come back later\r\n");
    };
    let Some(by_peer) = door.by_peer.take(network_of(peer.ip())) else {
        debug!(%peer, "sessions_per_peer_max reached");
        metrics::counter!(SESSIONS_REFUSED, "reason" => "sessions-per-peer-max").increment(1);
        return refuse(&stream, mode, "421 4.7.0 Too many sessions from your address\r\n");
    };
    // Replies are whole writes already; nothing is gained by waiting for more.
    let _ = stream.set_nodelay(true);
    metrics::gauge!(SESSIONS, "port" => local.port().to_string()).increment(1);
    metrics::counter!(SESSIONS_BEGUN, "port" => local.port().to_string()).increment(1);
    let places = Places { _total: total, _peer: by_peer, port: local.port() };
    let connection = Connection::new(Arc::clone(door), Wire::Plain(stream), peer, Arc::new(vip), mode);
    let kill = door.kill.clone();
    door.sessions.spawn(async move {
        let _places = places;
        tokio::select! {
            () = connection.serve(mode) => {}
            () = kill.cancelled() => {}
        }
    });
}

/// Says why, where it can be said without waiting; then the connection closes.
fn refuse(stream: &TcpStream, mode: PortMode, reply: &str) {
    if mode == PortMode::Starttls {
        // Ok to fail: a peer that cannot take 60 octets does not want them.
        let _ = stream.try_write(reply.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octets_of<F: Future>(_: impl FnOnce(Connection) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_silent_session_waits_in_less_than_two_kibibytes() {
        let octets = octets_of(|connection| connection.serve(PortMode::Starttls));
        assert!(octets < 2048, "{octets}");
    }
}
