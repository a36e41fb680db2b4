//! Delivery as the daemon runs it, over a queue in memory, a zone of its own and scripted peers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern::access::Actor;
use postern::background::Shutdown;
use postern::delivery::{self, Delivery, Destinations, Pacing, PrivateAddresses, TlsPolicies};
use postern::events::{Event, EventKind, InstanceEvent, MailEvent};
use postern::ext::Timestamp;
use postern::mail::{Address, Body, Class, Domain, MailParameters, Notify, QueueId, ReversePath, Sealed, TenantId};
use postern::net::{BoundDialer, ClientTls, Poster, Reach, Resolver, Zone, ZoneServer};
use postern::queue::{self, Needs8bit, NewMessage, NewRecipient, Queue};
use postern::routing::{Lane, Routes, TransportName};
use postern::seal::MasterKey;
use postern::store::{MemoryStore, Store, after_prefix, codec, prefix};
use postern::tlsrpt::{self, TlsReports};
use postern::vips::{NewVip, Owner, Vip, Vips};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

/// The tenant of all mail here.
pub const TENANT: TenantId = TenantId(7);

/// Everything a scenario needs.
pub struct Outbound {
    pub store: Arc<MemoryStore>,
    pub queue: Arc<Queue>,
    pub vips: Arc<Vips>,
    pub routes: Arc<Routes>,
    pub delivery: Arc<Delivery>,
    pub vip: Vip,
    pub zone: ZoneServer,
    pub tls_policies: Arc<TlsPolicies>,
    pub destinations: Arc<Destinations>,
    pub tls_memory: Arc<delivery::TlsMemory>,
    pub tls_reports: Arc<TlsReports>,
    settings: watch::Sender<Arc<delivery::Settings>>,
    pub shutdown: Shutdown,
    task: Option<tokio::task::JoinHandle<()>>,
    parts: Box<dyn Fn() -> delivery::Parts + Send>,
}

/// Counts for reports; nothing here sends them.
fn reports(
    store: Arc<MemoryStore>,
    (resolver, tls, vips): (Arc<dyn Resolver>, &ClientTls, Arc<Vips>),
) -> Arc<TlsReports> {
    let post = Arc::new(Poster::new(resolver.clone(), tls.clone(), Reach::Anywhere));
    let (signed_as, calendar) = (Arc::new(|_: &_, _| None), Default::default());
    let parts = tlsrpt::Parts { store, resolver, post, vips, signed_as, calendar };
    let settings = tlsrpt::Settings { sending: tlsrpt::Sending::On, ..Default::default() };
    Arc::new(TlsReports::open(parts, settings).unwrap())
}

/// Short limits, so that hostility costs milliseconds.
pub fn settings(mx_port: u16) -> delivery::Settings {
    let short = Duration::from_millis(700);
    let mut settings =
        delivery::Settings { mx_port, private_addresses: PrivateAddresses::Allowed, ..Default::default() };
    let timeouts = &mut settings.timeouts;
    for span in [
        &mut timeouts.connect,
        &mut timeouts.greeting,
        &mut timeouts.hello,
        &mut timeouts.starttls,
        &mut timeouts.login,
        &mut timeouts.mail,
        &mut timeouts.rcpt,
        &mut timeouts.data,
        &mut timeouts.body,
        &mut timeouts.final_dot,
    ] {
        *span = short;
    }
    settings.vip_check = Duration::from_millis(100);
    settings.grace = Duration::from_secs(3);
    settings
}

fn new_vip(source: IpAddr) -> NewVip {
    let IpAddr::V4(ipv4) = source else { panic!("IPv4 here") };
    let (ehlo, owner) = (Domain::parse("out.sender.example").unwrap(), Owner::Tenant(TENANT));
    NewVip { ipv4: Some(ipv4), ipv6: None, public_ipv4: None, public_ipv6: None, ehlo, owner }
}

impl Outbound {
    /// Starts delivery from `source`, asking `zone`.
    pub async fn start(source: &str, zone: Zone, settings: delivery::Settings) -> Self {
        Self::start_trusting(source, zone, settings, Vec::new()).await
    }

    /// The same, trusting further roots.
    pub async fn start_trusting(
        source: &str,
        zone: Zone,
        settings: delivery::Settings,
        roots: Vec<CertificateDer<'static>>,
    ) -> Self {
        let store = Arc::new(MemoryStore::new());
        let queue = Queue::open(store.clone(), store.clone(), queue::Settings::default()).await.unwrap();
        let vips = Arc::new(Vips::open(store.clone()).unwrap());
        let new = new_vip(source.parse().unwrap());
        let vip = vips.add(&Actor::local(0), new, Timestamp::now()).await.unwrap();
        let routes = Arc::new(Routes::open(store.clone(), Arc::new(MasterKey::from_bytes([1; 32]))).unwrap());
        let (zone, resolver) = super::zone::serve(zone).await;
        let (sender, receiver) = watch::channel(Arc::new(settings));
        let queue = Arc::new(queue);
        let delivery = Delivery::open(store.clone()).unwrap();
        let pacing = Arc::new(Pacing::open(store.clone(), &receiver.borrow().clone(), queue.now()).unwrap());
        let tls = Arc::new(ClientTls::with_roots(roots).unwrap());
        let tls_policies = Arc::new(TlsPolicies::open(store.clone()).unwrap());
        let destinations = Arc::new(Destinations::open(store.clone()).unwrap());
        let tls_memory = Arc::new(delivery::TlsMemory::open(store.clone()).unwrap());
        let tls_reports = reports(store.clone(), (resolver.clone(), &tls, vips.clone()));
        let kept_reports = tls_reports.clone();
        let (kept_memory, kept_destinations) = (tls_memory.clone(), destinations.clone());
        let world =
            (store.clone(), queue.clone(), vips.clone(), routes.clone(), delivery.clone(), tls_policies.clone());
        let parts = move || {
            let (store, queue, vips, routes, delivery, tls_policies) = world.clone();
            delivery::Parts {
                queue,
                gate: Arc::new(postern::gate::Gate::new(postern::gate::Settings::default())),
                vips,
                routes,
                suppressed: Arc::new(|_, _, address| Ok(address.local_part() == "suppressed")),
                store,
                resolver: resolver.clone(),
                dialer: Arc::new(BoundDialer),
                tls: tls.clone(),
                delivery,
                return_path: Arc::new(|id, number, name| Address::parse(&format!("{id}-{number}@{name}")).unwrap()),
                pacing: pacing.clone(),
                tls_policies,
                destinations: destinations.clone(),
                tls_memory: tls_memory.clone(),
                tls_reports: tls_reports.clone(),
                tracer: Arc::default(),
                settings: receiver.clone(),
            }
        };
        let (settings, shutdown, parts) = (sender, Shutdown::new(), Box::new(parts));
        let mut outbound = Self {
            store,
            queue,
            vips,
            routes,
            delivery,
            vip,
            zone,
            tls_policies,
            destinations: kept_destinations,
            tls_memory: kept_memory,
            tls_reports: kept_reports,
            settings,
            shutdown,
            task: None,
            parts,
        };
        outbound.go_on();
        outbound
    }

    /// Delivers, also again after [`Outbound::stop`]: over the same queue, as far as that remembers.
    pub fn go_on(&mut self) {
        self.shutdown = Shutdown::new();
        self.task = Some(tokio::spawn(delivery::run((self.parts)(), self.shutdown.clone())));
    }

    /// The queue's chores, as the daemon has them beside delivery: what an aborted attempt left is recorded by them.
    pub fn keep_queue(&self) {
        let (queue, shutdown) = (self.queue.clone(), self.shutdown.clone());
        tokio::spawn(async move { queue.keep(&shutdown).await });
    }

    /// A message to these addresses, all in one lane.
    pub fn message(&self, to: &[&str]) -> NewMessage {
        let recipient = |address: &&str| {
            let address = Address::parse(address).unwrap();
            let lane = Lane {
                vip: self.vip.id,
                tenant: TENANT,
                class: Class::Transactional,
                transport: TransportName::Mx,
                next_hop: address.domain().clone(),
            };
            NewRecipient { address, notify: Notify::default(), orcpt: None, lane: Some(lane) }
        };
        NewMessage {
            id: QueueId::new(Timestamp::now()),
            tenant: TENANT,
            account: None,
            vip: self.vip.id,
            class: Class::Transactional,
            source: "smtp".into(),
            reverse_path: ReversePath(Some(Address::parse("shop@sender.example").unwrap())),
            parameters: MailParameters::default(),
            message: Sealed {
                head: Bytes::from_static(b"Subject: hello\r\n\r\n"),
                body: Body::Memory(Bytes::from_static(b"first\r\n.dotted\r\n..twice\r\nlast\r\n")),
            },
            needs_8bit: Needs8bit::No,
            subject: "hello".into(),
            message_id: "<1@sender.example>".into(),
            header_from: "shop@sender.example".into(),
            signatures: Vec::new(),
            recipients: to.iter().map(recipient).collect(),
            labels: Default::default(),
            return_path: None,
            signed: None,
            notice_about: None,
            beside: Default::default(),
        }
    }

    /// Owes a message to these addresses.
    pub async fn owe(&self, to: &[&str]) -> QueueId {
        let message = self.message(to);
        let id = message.id;
        self.queue.enqueue(message, Timestamp::now()).await.unwrap();
        id
    }

    /// Other settings from now on.
    pub fn set(&self, settings: delivery::Settings) {
        self.settings.send(Arc::new(settings)).unwrap();
    }

    fn events(&self) -> Vec<EventKind> {
        let all = self.store.range(&[prefix::EVENT], &after_prefix(&[prefix::EVENT]), usize::MAX).unwrap();
        all.into_iter().map(|(_, bytes)| codec::decode::<Event>(&bytes).unwrap().kind).collect()
    }

    /// What happened to `id` so far.
    pub fn happened(&self, id: QueueId) -> Vec<MailEvent> {
        let of_it = |kind| match kind {
            EventKind::Mail(of, event) if of == id => Some(event),
            _ => None,
        };
        self.events().into_iter().filter_map(of_it).collect()
    }

    /// Verdicts on `id` so far: delivered, deferred, bounced.
    pub fn verdicts(&self, id: QueueId) -> Vec<MailEvent> {
        let is_verdict = |event: &MailEvent| {
            matches!(event, MailEvent::Delivered { .. } | MailEvent::Deferred { .. } | MailEvent::Bounced { .. })
        };
        self.happened(id).into_iter().filter(is_verdict).collect()
    }

    /// Events about the instance so far.
    pub fn instance_events(&self) -> Vec<InstanceEvent> {
        let of_instance = |kind| if let EventKind::Instance(event) = kind { Some(event) } else { None };
        self.events().into_iter().filter_map(of_instance).collect()
    }

    /// The first verdicts on `id`, once there are for `recipients` of them.
    pub async fn judged(&self, id: QueueId, recipients: usize) -> Vec<MailEvent> {
        let reached = until(|| self.verdicts(id).iter().map(concerned).sum::<usize>() >= recipients).await;
        assert!(reached, "no verdict in time: {:?}", self.verdicts(id));
        self.verdicts(id)
    }

    /// The only verdict on a message to one recipient.
    pub async fn verdict(&self, id: QueueId) -> MailEvent {
        self.judged(id, 1).await.remove(0)
    }

    /// Stops delivery as the daemon does.
    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// How many recipients an event concerns.
pub fn concerned(event: &MailEvent) -> usize {
    match event {
        MailEvent::Delivered { recipients, .. }
        | MailEvent::Deferred { recipients, .. }
        | MailEvent::Bounced { recipients, .. } => recipients.len(),
        _ => 0,
    }
}

/// Waits up to ten seconds for something to become true.
pub async fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if is_so() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    is_so()
}
