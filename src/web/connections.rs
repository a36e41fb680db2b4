//! How many connections a port of the web holds, and which of them makes room when all places are taken. Knows
//! neither sockets nor HTTP; the time is a value.
//!
//! Recipe: [`Connections::enter`] for each connection that was accepted; its [`Place`] is held as long as it lasts,
//! and a [`Turn`] as long as a request of it is answered.
//! Easy to get wrong: a connection without a request costs nothing to end, and a stranger's request is no reason to
//! keep one, or whoever drips requests has all places; what somebody known asked for is. And a network that opens
//! many must push out its own, not those of others.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use crate::accounts::Network;
use crate::background::Shutdown;

/// So many of the places are not for networks that hold one already, but for others and for this machine; a quarter
/// of the places where those are few.
const RESERVE: usize = 8;
/// A request of which nothing was read or written for so long holds no place any more: longer than an answer may take.
const STALLED_AFTER: Duration = Duration::from_secs(120);

/// The connections that are there.
#[derive(Debug, Default)]
pub(super) struct Connections {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// In the order they came.
    by_number: BTreeMap<u64, Connection>,
    /// How many of them each network has.
    of_network: HashMap<Network, usize>,
}

#[derive(Debug)]
struct Connection {
    network: Network,
    /// Requests of somebody known being answered.
    requests: usize,
    /// When it came, or when something was last read or written for such a request.
    since: Instant,
    /// Tells it to end at once.
    end: Shutdown,
}

/// One connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    number: u64,
    end: Shutdown,
}

/// A request that is answered: as long as this is held, and it is known whose it is, its connection is not idle.
#[derive(Debug)]
pub(super) struct Turn {
    place: Arc<Place>,
    is_known: AtomicBool,
}

impl Connections {
    /// A place for a connection from `peer` among `places`; if all are taken, that of one which is idle, which ends.
    /// With the place: how many had to go. `None` if there is none.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr, places: usize, now: Instant) -> Option<(Place, usize)> {
        let mut held = self.held();
        let gone = held.make_room(peer, places, now)?;
        let (number, end) = (held.next, Shutdown::new());
        held.next += 1;
        let connection = Connection { network: Network::of(peer), requests: 0, since: now, end: end.clone() };
        *held.of_network.entry(connection.network).or_default() += 1;
        held.by_number.insert(number, connection);
        Some((Place { connections: Arc::clone(self), number, end }, gone))
    }

    /// Ends idle ones until there are no more than `places`; how many.
    pub(super) fn shrink(&self, places: usize, now: Instant) -> usize {
        let (mut held, mut gone) = (self.held(), 0);
        while held.by_number.len() > places && held.displace(0, now) {
            gone += 1;
        }
        gone
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.held().by_number.len()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.held().by_number.get_mut(&number) {
            change(connection);
        }
    }
}

impl Held {
    fn of(&self, network: Network) -> usize {
        self.of_network.get(&network).copied().unwrap_or(0)
    }

    fn remove(&mut self, number: u64) -> Option<Connection> {
        let connection = self.by_number.remove(&number)?;
        if let Some(count) = self.of_network.get_mut(&connection.network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of_network.remove(&connection.network);
            }
        }
        Some(connection)
    }

    fn make_room(&mut self, peer: IpAddr, places: usize, now: Instant) -> Option<usize> {
        let network = Network::of(peer);
        // Who is on this machine pushes out whom it must.
        let is_here = peer.to_canonical().is_loopback();
        let reserve = if is_here || self.of(network) == 0 { 0 } else { RESERVE.min(places / 4) };
        // What a network has at work is no reason to refuse it what others leave idle.
        let is_idle = |connection: &&Connection| connection.network == network && connection.may_go(now);
        let own = if is_here { 0 } else { self.by_number.values().filter(is_idle).count() };
        let mut gone = 0;
        while self.by_number.len() >= places {
            if !self.displace(own, now) {
                return None;
            }
            gone += 1;
        }
        if gone == 0 && self.by_number.len() >= places - reserve {
            gone = usize::from(self.displace(own, now));
            return (gone > 0).then_some(gone);
        }
        Some(gone)
    }

    /// Ends the connection that can best be spared, of a network that holds at least `own`: of those without a
    /// request of somebody known, and of the network with the most of all, the one that has waited longest.
    fn displace(&mut self, own: usize, now: Instant) -> bool {
        let candidates = self.by_number.iter().filter(|(_, connection)| connection.may_go(now));
        let ranked = candidates.map(|(number, connection)| {
            let age = now.saturating_duration_since(connection.since);
            (self.of(connection.network), age, std::cmp::Reverse(*number))
        });
        let Some((of_network, _, number)) = ranked.max() else { return false };
        if of_network < own {
            return false;
        }
        if let Some(connection) = self.remove(number.0) {
            connection.end.cancel();
        }
        true
    }
}

impl Connection {
    fn may_go(&self, now: Instant) -> bool {
        self.requests == 0 || now.saturating_duration_since(self.since) > STALLED_AFTER
    }
}

impl Place {
    /// Ends when the place is needed for somebody else.
    pub(super) async fn displaced(&self) {
        self.end.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.held().remove(self.number);
    }
}

impl Turn {
    /// A request has come.
    fn begin(place: Arc<Place>) -> Arc<Self> {
        Arc::new(Self { place, is_known: AtomicBool::new(false) })
    }

    /// It is known whose `request` is: from now on its connection keeps its place. Nothing, if it has no turn.
    pub(super) fn known_in(request: &Request) {
        if let Some(turn) = request.extensions().get::<Arc<Self>>() {
            turn.known();
        }
    }

    fn known(&self) {
        if !self.is_known.swap(true, Ordering::AcqRel) {
            self.change(|connection| connection.requests += 1);
        }
    }

    /// Answers `request` within a turn, which lasts until the last piece of the answer was taken. The request carries
    /// it, for whoever finds out whose it is.
    pub(super) async fn answer<F: Future<Output = Response>>(
        place: Arc<Place>,
        request: Request,
        answer: impl FnOnce(Request) -> F,
    ) -> Response {
        let turn = Self::begin(place);
        let mut request = request.map(|body| turn.watch(body));
        request.extensions_mut().insert(Arc::clone(&turn));
        let response = answer(request).await;
        response.map(|body| turn.watch(body))
    }

    /// A body whose pieces count as progress; the turn lasts until it is dropped.
    fn watch(self: &Arc<Self>, body: Body) -> Body {
        Body::new(Watched { body, turn: Arc::clone(self) })
    }

    fn goes_on(&self) {
        if self.is_known.load(Ordering::Acquire) {
            self.change(|_| {});
        }
    }

    fn change(&self, change: impl FnOnce(&mut Connection)) {
        self.place.connections.change(self.place.number, |connection| {
            connection.since = Instant::now();
            change(connection);
        });
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_known.load(Ordering::Acquire) {
            self.change(|connection| connection.requests = connection.requests.saturating_sub(1));
        }
    }
}

struct Watched {
    body: Body,
    turn: Arc<Turn>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.turn.goes_on();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([198, 51, number, 7])
    }

    struct Bench {
        connections: Arc<Connections>,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { connections: Arc::default(), now: Instant::now() }
        }

        /// One comes a little later.
        fn comes(&mut self, peer: IpAddr, places: usize) -> Option<Arc<Place>> {
            self.now += Duration::from_millis(1);
            self.connections.enter(peer, places, self.now).map(|(place, _)| Arc::new(place))
        }
    }

    fn ends(place: &Place) -> bool {
        place.end.is_cancelled()
    }

    /// A request of somebody known.
    fn asked(place: Arc<Place>) -> Arc<Turn> {
        let turn = Turn::begin(place);
        turn.known();
        turn
    }

    #[test]
    fn the_one_that_has_been_idle_longest_makes_room_and_a_request_never_does() {
        let mut bench = Bench::new();
        let first = bench.comes(peer(1), 3).unwrap();
        let (second, third) = (bench.comes(peer(2), 3).unwrap(), bench.comes(peer(3), 3).unwrap());
        let turn = asked(Arc::clone(&first));
        let fourth = bench.comes(peer(4), 3).unwrap();
        assert_eq!([ends(&first), ends(&second), ends(&third)], [false, true, false], "the first one has a request");
        let _turns = [asked(third), asked(fourth)];
        assert!(bench.comes(peer(5), 3).is_none(), "all of them have a request");
        drop(turn);
        assert!(bench.comes(peer(5), 3).is_some() && ends(&first));
        assert_eq!(bench.connections.len(), 2, "the last one is gone again");
    }

    #[test]
    fn a_network_that_opens_many_pushes_out_its_own() {
        let mut bench = Bench::new();
        let quiet = bench.comes(peer(1), 40).unwrap();
        let many: Vec<_> = (0..200).map(|_| bench.comes(peer(2), 40).unwrap()).collect();
        assert!(!ends(&quiet) && bench.connections.len() == 40 - RESERVE, "{}", bench.connections.len());
        assert!(many[..169].iter().all(|place| ends(place)) && !many[169..].iter().any(|place| ends(place)));
        // With requests they can not be pushed out; what is in reserve is for others and for this machine.
        let turns: Vec<_> = many[169..].iter().map(|place| asked(Arc::clone(place))).collect();
        let one_more = bench.comes(peer(2), 40).map(asked);
        assert!(one_more.is_some() && ends(&quiet), "what somebody leaves idle it may have, and no more");
        assert!(bench.comes(peer(2), 40).is_none() && bench.connections.len() == 40 - RESERVE);
        let others: Vec<_> = (10..17).map(|number| bench.comes(peer(number), 40).unwrap()).collect();
        let here: Vec<_> = (0..5).map(|_| bench.comes(IpAddr::from([127, 0, 0, 1]), 40).unwrap()).collect();
        assert!(!ends(here.last().unwrap()) && bench.connections.len() == 40, "whoever is here gets in");
        assert!(others.iter().filter(|place| ends(place)).count() <= 1, "mostly by its own idle ones");
        drop((others, here, turns));
    }

    #[test]
    fn a_strangers_request_keeps_no_place_however_it_drips() {
        let mut bench = Bench::new();
        let places: Vec<_> = (0..3).map(|number| bench.comes(peer(number), 3).unwrap()).collect();
        let turns: Vec<_> = places.iter().map(|place| Turn::begin(Arc::clone(place))).collect();
        turns[0].goes_on();
        let fourth = bench.comes(peer(8), 3).unwrap();
        assert!(ends(&places[0]), "it has been here longest, whatever it drips");
        turns[1].known();
        turns[1].known();
        let fifth = bench.comes(peer(9), 3).unwrap();
        assert!(!ends(&places[1]) && ends(&places[2]));
        let _others = [asked(fourth), asked(fifth)];
        assert!(bench.comes(peer(10), 3).is_none());
        drop(turns);
        assert!(bench.comes(peer(10), 3).is_some() && ends(&places[1]), "once it is answered it may go");
    }

    #[test]
    fn a_network_with_much_at_work_takes_the_places_that_others_leave_idle() {
        let mut bench = Bench::new();
        let busy: Vec<_> = (0..4).map(|_| asked(bench.comes(peer(1), 20).unwrap())).collect();
        let idle: Vec<_> = (0..11).map(|number| bench.comes(peer(20 + number), 20).unwrap()).collect();
        assert!(bench.comes(peer(1), 20).is_some() && ends(&idle[0]));
        drop(busy);
    }

    #[test]
    fn thousands_are_displaced_at_once_without_standing_still() {
        let mut bench = Bench::new();
        let places: Vec<_> = (0..2_000_u32)
            .map(|number| bench.comes(IpAddr::from((0x0a00_0000 + 256 * number).to_be_bytes()), 4_000).unwrap())
            .collect();
        assert_eq!(bench.connections.shrink(8, bench.now), 1_992);
        assert_eq!(bench.connections.held().of_network.len(), 8);
        drop(places);
        assert!(bench.connections.held().of_network.is_empty());
    }

    #[test]
    fn a_request_that_stands_still_holds_no_place_for_ever() {
        let mut bench = Bench::new();
        let only = bench.comes(peer(1), 1).unwrap();
        let turn = asked(Arc::clone(&only));
        let body = turn.watch(Body::from("some"));
        assert_eq!(body.size_hint().exact(), Some(4), "the length is still told");
        drop(turn);
        bench.now = Instant::now() + STALLED_AFTER - Duration::from_secs(5);
        assert!(bench.comes(peer(2), 1).is_none() && !ends(&only), "its answer is being read");
        bench.now += Duration::from_secs(10);
        assert!(bench.comes(peer(2), 1).is_some() && ends(&only));
        drop(body);
    }

    #[test]
    fn fewer_places_end_those_that_are_idle() {
        let mut bench = Bench::new();
        let places: Vec<_> = (0..10).map(|number| bench.comes(peer(number), 10).unwrap()).collect();
        let _turns: Vec<_> = places[..5].iter().map(|place| asked(Arc::clone(place))).collect();
        assert_eq!(bench.connections.shrink(2, bench.now), 5);
        assert_eq!(bench.connections.len(), 5, "those with requests finish them");
        assert!(places[..5].iter().all(|place| !ends(place)) && places[5..].iter().all(|place| ends(place)));
        assert!(bench.comes(peer(20), 2).is_none());
    }
}
