//! The rooms, opened over one store and connected: what one asks of another is handed over as a
//! function where the arrows do not allow it to know the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::StartError;
use super::returning;
use super::world::{Folders, HISTORY, World};
use crate::accounts::{Accounts, DelayNotices, MoveToShared};
use crate::backup::{self, Backup};
use crate::breaker::Breaker;
use crate::calendar::Calendar;
use crate::config::Config;
use crate::delivery::{Delivery, Destinations, Pacing, PrivateAddresses, Pulse, TlsMemory, TlsPolicies};
use crate::domains::{Domains, SelectorUsage};
use crate::events::EventLog;
use crate::ext::Timestamp;
use crate::feedback::Feedback;
use crate::gate::Gate;
use crate::intake::{self, Intake};
use crate::mail::{Refusal, Reply, TenantId, VipId};
use crate::net::{ClientTls, Poster, Reach};
use crate::notifications::{self, Notifications};
use crate::operations::Operations;
use crate::people::People;
use crate::pipeline::{self, Pipeline};
use crate::queue::{self, Queue};
use crate::routing::Routes;
use crate::seal::MasterKey;
use crate::search::{self, Search};
use crate::statistics::{self, Statistics};
use crate::store::{Blobs, Opened, Store, StoreError};
use crate::suppression::Suppression;
use crate::tenancy::{self, Tenancy};
use crate::tlsrpt::{self, TlsReports};
use crate::trace::Tracer;
use crate::vips::{Owner, Vips};
use crate::webhooks::{self, Webhooks};
use crate::{delivery, events, records, submission, web};

/// Every room that has state.
#[derive(Clone)]
pub(super) struct Rooms {
    pub(super) store: Arc<dyn Store>,
    pub(super) blobs: Arc<dyn Blobs>,
    pub(super) vips: Arc<Vips>,
    pub(super) accounts: Arc<Accounts>,
    pub(super) breaker: Arc<Breaker>,
    pub(super) domains: Arc<Domains>,
    pub(super) suppression: Arc<Suppression>,
    pub(super) operations: Arc<Operations>,
    pub(super) routes: Arc<Routes>,
    pub(super) people: Arc<People>,
    pub(super) queue: Arc<Queue>,
    pub(super) backup: Arc<Backup>,
    pub(super) delivery: Arc<Delivery>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) intake: Arc<Intake>,
    pub(super) pacing: Arc<Pacing>,
    pub(super) tls_policies: Arc<TlsPolicies>,
    pub(super) destinations: Arc<Destinations>,
    pub(super) tls_memory: Arc<TlsMemory>,
    pub(super) tls_reports: Arc<TlsReports>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) tracer: Arc<Tracer>,
    pub(super) bell: events::Bell,
    pub(super) gate: Arc<Gate>,
    pub(super) webhooks: Arc<Webhooks>,
    pub(super) notifications: Arc<Notifications>,
    pub(super) feedback: Arc<Feedback>,
    pub(super) statistics: Arc<Statistics>,
    pub(super) search: Arc<Search>,
    pub(super) delivery_settings: Arc<watch::Sender<Arc<delivery::Settings>>>,
    pub(super) calendar: Calendar,
}

impl Rooms {
    /// Reads the records and connects the rooms.
    pub(super) async fn open(
        config: &Config,
        opened: Opened,
        key: Arc<MasterKey>,
        (world, folders, tls): (&World, &Folders, &ClientTls),
    ) -> Result<Self, StartError> {
        let Opened { records: store, bodies: blobs, engine, .. } = opened;
        let backup = Arc::new(Backup::new(engine, Arc::clone(&key), backup_places(config)));
        let unreadable = |what: &'static str| {
            move |error: StoreError| StartError::Unavailable(format!("the {what} cannot be read: {error}"))
        };
        let records = || Arc::clone(&store);
        let vips = Arc::new(Vips::open(records()).map_err(unreadable("virtual IPs"))?);
        let accounts = Arc::new(Accounts::open(records(), config.accounts).map_err(unreadable("accounts"))?);
        let breaker = breaker(records(), &accounts, config).map_err(unreadable("pauses of SMTP accounts"))?;
        let routes = Arc::new(Routes::open(records(), Arc::clone(&key)).map_err(unreadable("routes"))?);
        let delivery = Delivery::open(records()).map_err(unreadable("suspensions"))?;
        let suppression = Arc::new(Suppression::open(records()));
        let people = People::open(records(), Arc::clone(&key), config.accounts).map_err(unreadable("people"))?;
        let domains = Domains::open(records(), Arc::clone(&key), Arc::clone(&world.resolver), config.domains.clone());
        let domains = Arc::new(domains.map_err(unreadable("domains"))?);
        let (bell, calendar) = (events::Bell::default(), super::calendar::open(&*store)?);
        let policy = policy(&accounts, &vips, (&breaker, &delivery));
        let queue = queue_over((records(), Arc::clone(&blobs)), (config, folders), bell.clone(), policy).await;
        let queue = Arc::new(queue.map_err(unreadable("queue"))?.with_calendar(calendar.clone()));
        domains.ask_usage_of(selectors_in_use(&queue));
        let pacing = Pacing::open(records(), &config.delivery, queue.now()).map_err(unreadable("limits of sites"))?;
        let (pacing, pulse) = watched(&queue, pacing);
        let delivery_settings = Arc::new(watch::Sender::new(Arc::new(config.delivery.clone())));
        let heard = (&bell, &delivery_settings.subscribe(), &pacing, &calendar);
        let feedback = returning::open(config, (records(), &key), (&domains, &vips, world), heard).await?;
        let known = receivers(&records()).map_err(unreadable("records of receivers"))?;
        let tls_reports = tls_reports(config, (records(), &vips, &domains, &calendar), (world, tls))?;
        let pipeline = pipeline(config, &folders.drafts, (&accounts, &domains, &suppression, &vips), &feedback);
        let intake = intake_over((&pipeline, &routes, &queue), (records(), &calendar), may_enter(&delivery, &pacing));
        let operations = operations((records(), &calendar), &suppression, folders)?;
        let sources = (records(), bell.clone(), &accounts, &calendar);
        let webhooks = webhooks(config, key, sources, (world, folders, tls)).map_err(unreadable("webhooks"))?;
        let notifications = Notifications::open(records(), whose_vip(&vips)).map_err(unreadable("notifications"))?;
        let statistics = Arc::new(statistics((records(), &calendar), &accounts, config));
        let search = search(config, (&queue, &bell, &accounts), (records(), &calendar), folders)?;
        Ok(Self {
            store,
            blobs,
            vips,
            accounts,
            breaker,
            domains,
            suppression,
            operations,
            routes,
            people: Arc::new(people.reached_at(config.web.site.clone())),
            queue,
            backup,
            delivery,
            pipeline,
            intake,
            pacing,
            tls_policies: known.0,
            destinations: known.1,
            tls_memory: known.2,
            tls_reports,
            pulse,
            tracer: Arc::default(),
            bell,
            gate: Arc::new(Gate::new(config.gate)),
            webhooks,
            notifications: Arc::new(notifications.with_settings(config.notifications)),
            feedback,
            statistics,
            search,
            delivery_settings,
            calendar,
        })
    }

    /// What removes tenants: it knows every room that keeps something of one.
    pub(super) fn tenancy(&self) -> Result<Arc<Tenancy>, StartError> {
        let rooms = self.clone();
        let parts = tenancy::Parts {
            store: rooms.store,
            accounts: rooms.accounts,
            domains: rooms.domains,
            vips: rooms.vips,
            people: rooms.people,
            routes: rooms.routes,
            webhooks: rooms.webhooks,
            suppression: rooms.suppression,
            operations: rooms.operations,
            queue: rooms.queue,
            breaker: rooms.breaker,
            delivery: rooms.delivery,
            further: derived(rooms.notifications, rooms.statistics, rooms.search),
            calendar: rooms.calendar,
        };
        let opened = Tenancy::open(parts);
        let unreadable = |error| StartError::Unavailable(format!("the deletions of tenants cannot be read: {error}"));
        opened.map(Arc::new).map_err(unreadable)
    }

    /// Writes an event for each record that could not be read. They were logged; nothing waits for this.
    pub(super) async fn report_damage(&self, now: Timestamp) {
        let rooms = [
            self.vips.damaged(),
            self.accounts.damaged(),
            self.breaker.damaged(),
            self.routes.damaged(),
            self.domains.damaged(),
            self.people.damaged(),
            self.delivery.damaged(),
            self.pacing.damaged(),
            self.tls_policies.damaged(),
            self.destinations.damaged(),
            self.tls_memory.damaged(),
            self.tls_reports.damaged(),
            self.operations.damaged(),
            self.webhooks.damaged(),
            self.notifications.damaged(),
        ];
        if let Err(error) = records::report(&*self.store, &rooms.concat(), now).await {
            tracing::warn!(%error, "events about damaged records were not recorded");
        }
    }

    /// What the admin API is built from.
    pub(super) fn for_web(&self, tenancy: Arc<Tenancy>, about: web::About, sending: web::SendingLimits) -> web::Parts {
        let rooms = self.clone();
        web::Parts {
            accounts: rooms.accounts,
            breaker: rooms.breaker,
            vips: rooms.vips,
            domains: rooms.domains,
            suppression: rooms.suppression,
            operations: rooms.operations,
            routes: rooms.routes,
            people: rooms.people,
            queue: rooms.queue,
            intake: rooms.intake,
            sending,
            backup: rooms.backup,
            delivery: rooms.delivery,
            pacing: rooms.pacing,
            tls_policies: rooms.tls_policies,
            destinations: rooms.destinations,
            tls_memory: rooms.tls_memory,
            tls_reports: rooms.tls_reports,
            pulse: rooms.pulse,
            tracer: rooms.tracer,
            store: rooms.store,
            blobs: rooms.blobs,
            gate: rooms.gate,
            webhooks: rooms.webhooks,
            tenancy,
            notifications: rooms.notifications,
            feedback: rooms.feedback,
            statistics: rooms.statistics,
            search: rooms.search,
            scans: web::Scans::default(),
            calendar: rooms.calendar,
            about,
        }
    }

    /// What the SMTP door asks before it takes MAIL.
    pub(super) fn sender_rule(&self) -> submission::SenderRule {
        let domains = Arc::clone(&self.domains);
        Arc::new(move |tenant, domain| domains.may_use_in_mail_from(tenant, domain))
    }

    /// Whether the SMTP door takes new mail.
    pub(super) fn may_enter(&self) -> intake::MayEnter {
        may_enter(&self.delivery, &self.pacing)
    }

    /// Where the SMTP door hands messages in.
    pub(super) fn accept(&self) -> submission::Accept {
        let intake = Arc::clone(&self.intake);
        Arc::new(move |submission, now| {
            let intake = Arc::clone(&intake);
            Box::pin(async move { intake.accept(submission, now).await })
        })
    }
}

fn operations(
    (store, calendar): (Arc<dyn Store>, &Calendar),
    suppression: &Arc<Suppression>,
    folders: &Folders,
) -> Result<Arc<Operations>, StartError> {
    let opened = Operations::open(store, Arc::clone(suppression), &folders.operations);
    let unreadable = |error| StartError::Unavailable(format!("the operations cannot be read: {error}"));
    opened.map(|opened| Arc::new(opened.with_calendar(calendar.clone()))).map_err(unreadable)
}

/// What forgets a tenant in rooms that made something of what happened to its mail.
fn derived(
    notifications: Arc<Notifications>,
    statistics: Arc<Statistics>,
    search: Arc<Search>,
) -> Vec<tenancy::Forgetting> {
    let told: tenancy::Forgetting = Arc::new(move |tenant| {
        let told = Arc::clone(&notifications);
        Box::pin(async move { told.forget_tenant(tenant).await })
    });
    let counted: tenancy::Forgetting = Arc::new(move |tenant| {
        let counted = Arc::clone(&statistics);
        Box::pin(async move { Ok(counted.forget_tenant(tenant).await.map(drop)?) })
    });
    let found: tenancy::Forgetting = Arc::new(move |tenant| {
        let found = Arc::clone(&search);
        Box::pin(async move {
            let noted = found.forget_tenant(tenant).await;
            noted.map_err(|error| StoreError::Failed(format!("the search index: {error}")).into())
        })
    });
    vec![told, counted, found]
}

fn pipeline(
    config: &Config,
    drafts: &Path,
    (accounts, domains, suppression, vips): (&Arc<Accounts>, &Arc<Domains>, &Arc<Suppression>, &Arc<Vips>),
    feedback: &Arc<Feedback>,
) -> Arc<Pipeline> {
    let marks = returning::marks(domains, feedback);
    let (accounts, domains) = (Arc::clone(accounts), Arc::clone(domains));
    let parts = pipeline::Parts::of_rooms(accounts, domains, Arc::clone(suppression), Arc::clone(vips));
    let parts = pipeline::Parts { marks, ..parts };
    let hold_max = config.submission.session.hold_max;
    let settings = pipeline::Settings { spill_folder: drafts.to_owned(), hold_max, ..config.pipeline.clone() };
    Arc::new(Pipeline::new(parts, settings))
}

fn webhooks(
    config: &Config,
    key: Arc<MasterKey>,
    (store, bell, accounts, calendar): (Arc<dyn Store>, events::Bell, &Arc<Accounts>, &Calendar),
    (world, folders, tls): (&World, &Folders, &ClientTls),
) -> Result<Arc<Webhooks>, StoreError> {
    let parts = webhooks::Parts {
        log: EventLog::new(store).with_archive(Arc::clone(&folders.archive)),
        bell,
        key,
        post: Arc::new(Poster::new(Arc::clone(&world.resolver), tls.clone(), config.webhooks.reach)),
        names: names(accounts),
        clock: Arc::new(Timestamp::now),
        calendar: calendar.clone(),
        settings: config.webhooks,
    };
    Webhooks::open(parts).map(Arc::new)
}

/// Whose a virtual IP is, and what it is called.
fn whose_vip(vips: &Arc<Vips>) -> notifications::VipLookup {
    let vips = Arc::clone(vips);
    Arc::new(move |id| match vips.get(id) {
        Some(vip) => match vip.owner {
            Owner::Tenant(tenant) => (tenant, vip.ehlo.to_string()),
            Owner::Shared => (notifications::INSTANCE, vip.ehlo.to_string()),
        },
        None => (notifications::INSTANCE, id.to_string()),
    })
}

/// Which selectors mail that is owed names.
fn selectors_in_use(queue: &Arc<Queue>) -> SelectorUsage {
    let named = Arc::clone(queue);
    Arc::new(move || named.selectors_in_use().map(|names| names.into_iter().collect()))
}

async fn queue_over(
    (store, blobs): (Arc<dyn Store>, Arc<dyn Blobs>),
    (config, folders): (&Config, &Folders),
    bell: events::Bell,
    policy: queue::Policy,
) -> Result<Queue, StoreError> {
    let queue = Queue::open(store, blobs, config.queue).await?.with_bell(bell).with_policy(policy);
    Ok(queue.with_archive(Arc::clone(&folders.archive)).with_history_retention(config.history_kept))
}

fn intake_over(
    rooms: (&Arc<Pipeline>, &Arc<Routes>, &Arc<Queue>),
    (store, calendar): (Arc<dyn Store>, &Calendar),
    may_enter: intake::MayEnter,
) -> Arc<Intake> {
    let (pipeline, routes, queue) = rooms;
    let (pipeline, routes, queue) = (Arc::clone(pipeline), Arc::clone(routes), Arc::clone(queue));
    let calendar = calendar.clone();
    Arc::new(Intake::new(intake::Parts { pipeline, routes, queue, store, may_enter, calendar }))
}

/// New mail is taken of everything that is not drained.
fn may_enter(delivery: &Arc<Delivery>, pacing: &Arc<Pacing>) -> intake::MayEnter {
    let (delivery, pacing) = (Arc::clone(delivery), Arc::clone(pacing));
    Arc::new(move |entering, now| {
        let intake::Entering { tenant, account, vip, to } = *entering;
        let drained = delivery.drained((tenant, account, vip), to, |domain| pacing.site_of(domain), now);
        let Some(cause) = drained else { return Ok(()) };
        let text = match to {
            None => "No new mail is taken from here for now; try again later".to_owned(),
            Some(domain) => format!("No new mail for {domain} is taken from here for now; try again later"),
        };
        Err(Refusal::with_cause(Reply::enhanced(451, 3, 2, text), cause))
    })
}

/// What is known of receivers: their TLS policies, rules about them, what TLS came to.
type Receivers = (Arc<TlsPolicies>, Arc<Destinations>, Arc<TlsMemory>);

fn receivers(store: &Arc<dyn Store>) -> Result<Receivers, StoreError> {
    let policies = TlsPolicies::open(Arc::clone(store))?;
    let (rules, memory) = (Destinations::open(Arc::clone(store))?, TlsMemory::open(Arc::clone(store))?);
    Ok((Arc::new(policies), Arc::new(rules), Arc::new(memory)))
}

/// Reports about TLS; those that go by HTTPS lead where mail may lead.
fn tls_reports(
    config: &Config,
    (store, vips, domains, calendar): (Arc<dyn Store>, &Arc<Vips>, &Arc<Domains>, &Calendar),
    (world, tls): (&World, &ClientTls),
) -> Result<Arc<TlsReports>, StartError> {
    let reach = match config.delivery.private_addresses {
        PrivateAddresses::Refused => Reach::Public,
        PrivateAddresses::Allowed => Reach::Anywhere,
    };
    let signers = Arc::clone(domains);
    let parts = tlsrpt::Parts {
        store,
        resolver: Arc::clone(&world.resolver),
        post: Arc::new(Poster::new(Arc::clone(&world.resolver), tls.clone(), reach)),
        vips: Arc::clone(vips),
        signed_as: Arc::new(move |vip, tenant| Some(signers.name_signer(vip, tenant)?.domain.clone())),
        calendar: calendar.clone(),
    };
    let opened = TlsReports::open(parts, config.tls_reports.clone());
    let unreadable = |error| StartError::Unavailable(format!("the reports about TLS cannot be read: {error}"));
    opened.map(Arc::new).map_err(unreadable)
}

/// The queue knows sites by their names, and who watches it feels its pulse.
fn watched(queue: &Queue, pacing: Pacing) -> (Arc<Pacing>, Arc<Pulse>) {
    let pacing = Arc::new(pacing);
    let (called, of) = (Arc::clone(&pacing), Arc::clone(&pacing));
    queue.name_sites_with(queue::SiteNames {
        called: Box::new(move |text| called.site_called(text)),
        of: Box::new(move |domain| of.site_of(domain)),
    });
    let pulse = Arc::new(Pulse::new());
    let (felt, asked) = (Arc::clone(&pulse), Arc::clone(&pacing));
    queue.tell_beats_to(Box::new(move |beat| {
        let provider = match beat {
            queue::Beat::Tried { next_hop, .. } => asked.provider_of(next_hop),
            queue::Beat::Accepted => None,
        };
        felt.feel(beat, provider, Timestamp::now());
    }));
    (pacing, pulse)
}

/// What people call things, in what webhooks are told.
fn names(accounts: &Arc<Accounts>) -> webhooks::Names {
    let (tenants, logins) = (Arc::clone(accounts), Arc::clone(accounts));
    webhooks::Names {
        tenant: Arc::new(move |id| tenants.tenant(id).map_or_else(|| id.to_string(), |tenant| tenant.name)),
        account: Arc::new(move |id| logins.smtp_account(id).map_or_else(|| id.to_string(), |account| account.login)),
    }
}

/// The index of messages; each tenant says how long its own are kept.
fn search(
    config: &Config,
    (queue, bell, accounts): (&Arc<Queue>, &events::Bell, &Arc<Accounts>),
    (store, calendar): (Arc<dyn Store>, &Calendar),
    folders: &Folders,
) -> Result<Arc<Search>, StartError> {
    let (queue, accounts, calendar) = (Arc::clone(queue), Arc::clone(accounts), calendar.clone());
    let providers = Arc::clone(&config.delivery.providers);
    // What names the recipients goes with the history at the latest.
    let days_of_history = u16::try_from(config.history_kept.as_secs() / 86_400).unwrap_or(u16::MAX);
    let parts = search::Parts {
        log: EventLog::new(store).with_archive(Arc::clone(&folders.archive)),
        bell: bell.clone(),
        provider_of: Arc::new(move |host| {
            providers.of_hosts(std::iter::once(host)).map(|provider| provider.name.to_string())
        }),
        clock: Arc::new(move || calendar.cap(Timestamp::now())),
        days_kept: Arc::new(move |tenant| Some(accounts.tenant(tenant)?.retention_days?.min(days_of_history))),
        forget: Arc::new(move |ids| {
            let queue = Arc::clone(&queue);
            Box::pin(async move { queue.forget(&ids).await })
        }),
        settings: config.search,
    };
    let search = Search::open(parts, &folders.search);
    search.map(Arc::new).map_err(|error| StartError::Unavailable(error.to_string()))
}

/// What happened to recipients, with the providers that delivery knows.
fn statistics((store, calendar): (Arc<dyn Store>, &Calendar), accounts: &Arc<Accounts>, config: &Config) -> Statistics {
    let accounts = Arc::clone(accounts);
    let (providers, named) = (Arc::clone(&config.delivery.providers), Arc::clone(&config.delivery.providers));
    Statistics::open(statistics::Parts {
        store,
        provider_of: Arc::new(move |host, domain| {
            let of_host = host.and_then(|host| providers.of_hosts(std::iter::once(host)));
            of_host.or_else(|| providers.of_domain(domain)).map(|provider| provider.name.to_string())
        }),
        is_known_domain: Arc::new(move |domain| named.of_domain(domain).is_some()),
        is_tenant: Arc::new(move |tenant| accounts.tenant(tenant).is_some()),
        settings: config.statistics,
        calendar: calendar.clone(),
    })
}

fn backup_places(config: &Config) -> backup::Places {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    backup::Places {
        hostname: config.hostname.to_string(),
        configuration: config.file.clone(),
        certificates: config.certificates.clone(),
        history: config.data.join(HISTORY),
        backup_key: config.backup_key.path(credentials.as_deref()),
    }
}

/// The breaker, asked by the accounts whether mail is taken.
fn breaker(store: Arc<dyn Store>, accounts: &Arc<Accounts>, config: &Config) -> Result<Arc<Breaker>, StoreError> {
    let breaker = Arc::new(Breaker::open(store, Arc::clone(accounts), config.breaker)?);
    let asked = Arc::downgrade(&breaker);
    accounts.stop_with(Box::new(move |account| asked.upgrade()?.refusal(account)));
    Ok(breaker)
}

/// The virtual IPs a tenant named for what a warm-up has no room for, if they are shared now.
fn overflow_to(accounts: &Accounts, vips: &Vips, tenant: TenantId) -> Vec<VipId> {
    let Some(tenant) = accounts.tenant(tenant) else { return Vec::new() };
    let is_shared = |id: &VipId| vips.get(*id).is_some_and(|vip| vip.owner == Owner::Shared);
    tenant.overflow_to.into_iter().filter(is_shared).collect()
}

/// What the queue asks of records it may not read itself.
fn policy(
    accounts: &Arc<Accounts>,
    vips: &Arc<Vips>,
    (breaker, delivery): (&Arc<Breaker>, &Arc<Delivery>),
) -> queue::Policy {
    let (tells, owner, vips) = (Arc::clone(accounts), Arc::clone(accounts), Arc::clone(vips));
    let (overflowing, shared) = (Arc::clone(accounts), Arc::clone(&vips));
    let (breaker, delivery) = (Arc::clone(breaker), Arc::clone(delivery));
    queue::Policy {
        overflow_to: Arc::new(move |tenant| overflow_to(&overflowing, &shared, tenant)),
        paused: Arc::new(move |account| {
            breaker.why(account).or_else(|| delivery.account_suspended(account, Timestamp::now()))
        }),
        tells_delays: Arc::new(move |tenant| {
            tells.tenant(tenant).is_some_and(|tenant| tenant.delay_notices == DelayNotices::Always)
        }),
        may_move: Arc::new(move |tenant, vip| {
            let tenant = owner.tenant(tenant).ok_or("the tenant is gone")?;
            let vip = vips.get(vip).ok_or("there is no such virtual IP")?;
            match (tenant.move_to_shared, vip.owner) {
                (MoveToShared::Permitted, Owner::Shared) => Ok(()),
                (MoveToShared::Forbidden, _) => {
                    Err(format!("tenant {} does not permit that its mail leaves by another virtual IP", tenant.name))
                }
                (_, Owner::Tenant(_)) => Err("mail may only be moved to a shared virtual IP".to_owned()),
            }
        }),
    }
}
