//! Tests of the domains room, over the engine for tests and a zone made of a map.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use proptest::prelude::*;

use super::*;
use crate::ext::Timestamp;
use crate::mail::VipId;
use crate::net::{LookupError, Mx, Spf, SpfAnswer, SpfQuestion, is_spf_record};
use crate::store::{CommitError, MemoryStore};

const START: Timestamp = Timestamp(1_800_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);
const SHOP: TenantId = TenantId(1);
const OTHER: TenantId = TenantId(2);

type Answer = Result<Vec<String>, LookupError>;

/// TXT records by name; a name that is not there does not exist.
#[derive(Default)]
struct MapResolver(Mutex<HashMap<String, Answer>>);

#[async_trait]
impl Resolver for MapResolver {
    async fn mx(&self, name: &Domain) -> Result<Vec<Mx>, LookupError> {
        let known = self.0.lock().unwrap().get(&format!("mx:{name}")).cloned();
        let exchanger = |host: String| Mx { preference: 10, host: Some(domain(&host)) };
        known.unwrap_or(Err(LookupError::NoRecord)).map(|hosts| hosts.into_iter().map(exchanger).collect())
    }
    async fn ipv4(&self, _: &Domain) -> Result<Vec<Ipv4Addr>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ipv6(&self, _: &Domain) -> Result<Vec<Ipv6Addr>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn txt(&self, name: &Domain) -> Result<Vec<String>, LookupError> {
        self.0.lock().unwrap().get(name.as_str()).cloned().unwrap_or(Err(LookupError::NoSuchName))
    }
    async fn ptr(&self, _: IpAddr) -> Result<Vec<Domain>, LookupError> {
        Err(LookupError::NoRecord)
    }
    /// Addresses and networks alone; the verifier itself is tested in `net`.
    async fn spf(&self, asked: &SpfQuestion<'_>) -> SpfAnswer {
        let (_, name) = asked.sender.rsplit_once('@').unwrap();
        let texts = self.txt(&domain(name)).await;
        let result = match texts.as_ref().map(|all| all.iter().find(|text| is_spf_record(text))) {
            Err(LookupError::Temporary(_) | LookupError::Bogus(_)) => Spf::TemporaryError,
            Err(_) | Ok(None) => Spf::None,
            Ok(Some(record)) => {
                let own = record.split(' ').filter_map(|term| term.strip_prefix("ip4:"));
                let mut networks =
                    own.map(|text| text.parse::<ipnet::IpNet>().ok().or(text.parse::<IpAddr>().ok().map(Into::into)));
                if networks.any(|own| own.unwrap().contains(&asked.address)) { Spf::Pass } else { Spf::Fail }
            }
        };
        SpfAnswer { result, good_until: None }
    }
}

struct Room {
    store: Arc<MemoryStore>,
    key: Arc<MasterKey>,
    dns: Arc<MapResolver>,
    domains: Domains,
    actor: Actor,
}

impl Room {
    fn new() -> Self {
        let key = Arc::new(MasterKey::from_bytes([5; 32]));
        Self::over(Arc::new(MemoryStore::new()), key, Arc::default())
    }

    fn over(store: Arc<MemoryStore>, key: Arc<MasterKey>, dns: Arc<MapResolver>) -> Self {
        let domains = Domains::open(store.clone(), key.clone(), dns.clone(), Settings::default()).unwrap();
        Self { store, key, dns, domains, actor: Actor::system("test") }
    }

    fn reopened(&self) -> Self {
        Self::over(self.store.clone(), self.key.clone(), self.dns.clone())
    }

    async fn add(&self, tenant: TenantId, name: &str) -> SendingDomain {
        self.domains.add(&self.actor, tenant, &domain(name), START).await.unwrap()
    }

    async fn verify(&self, tenant: TenantId, name: &str, now: Timestamp) -> Verification {
        self.domains.verify(&self.actor, tenant, &domain(name), now).await.unwrap()
    }

    async fn add_verified(&self, tenant: TenantId, name: &str) -> SendingDomain {
        let record = self.add(tenant, name).await;
        self.publish(&record.keys, &record);
        self.verify(tenant, name, START).await.domain
    }

    fn answer(&self, name: &str, answer: Result<Vec<String>, LookupError>) {
        self.dns.0.lock().unwrap().insert(name.to_owned(), answer);
    }

    fn publish(&self, keys: &KeyPair, record: &SendingDomain) {
        for key in [&keys.rsa, &keys.ed25519] {
            self.answer(&record.key_name(&key.selector), Ok(vec![key.record.clone()]));
        }
    }

    fn unpublish(&self) {
        self.dns.0.lock().unwrap().clear();
    }

    fn signs_as(&self, tenant: TenantId, name: &str) -> Result<String, String> {
        let signer = self.domains.signer(tenant, &domain(name));
        signer.map(|signer| signer.domain.to_string()).map_err(|refusal| refusal.reply.one_line())
    }

    fn get(&self, tenant: TenantId, name: &str) -> SendingDomain {
        self.domains.get(&self.actor, tenant, &domain(name)).unwrap()
    }

    fn events(&self) -> String {
        let rows = self.store.range(&[prefix::EVENT], &[prefix::EVENT + 1], 10_000).unwrap();
        let decoded = rows.iter().map(|(_, value)| crate::store::codec::decode::<crate::events::Event>(value).unwrap());
        decoded.map(|event| format!("{:?}\n", event.kind)).collect()
    }
}

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

fn temporary() -> LookupError {
    LookupError::Temporary("timeout".into())
}

#[tokio::test]
async fn a_domain_is_used_once_its_record_is_found_and_the_refusals_say_what_to_do() {
    let room = Room::new();
    let unknown = room.signs_as(SHOP, "shop.example").unwrap_err();
    assert!(unknown.starts_with("550 5.7.1 shop.example is not one of your sending domains"), "{unknown}");
    let record = room.add(SHOP, "shop.example").await;
    let pending = room.signs_as(SHOP, "mail.shop.example").unwrap_err();
    assert!(pending.starts_with("550 5.7.1 shop.example is not verified: publish the TXT record p"), "{pending}");
    assert!(pending.contains(&record.keys.rsa.selector));
    assert!(room.verify(SHOP, "shop.example", START).await.turns.is_empty());
    room.publish(&record.keys, &record);
    let verified = room.verify(SHOP, "shop.example", START).await;
    assert_eq!(verified.turns, [Turn::Verified]);
    assert_eq!(room.signs_as(SHOP, "shop.example"), Ok("shop.example".to_owned()));
    assert_eq!(room.reopened().signs_as(SHOP, "shop.example"), Ok("shop.example".to_owned()));
    assert!(room.events().contains("DomainVerified"));
    assert!(room.domains.may_use_in_mail_from(SHOP, &domain("bounces.shop.example")).is_ok());
    assert!(room.domains.may_use_in_mail_from(SHOP, &domain("shop.example.org")).is_err());
}

#[tokio::test]
async fn verification_outcomes_are_as_the_table_says() {
    let room = Room::new();
    let record = room.add(SHOP, "shop.example").await;
    let (rsa, ed) = (record.keys.rsa.record.clone(), record.keys.ed25519.record.clone());
    let spaced = rsa.replace("; ", " ;\t").replace("p=MIIB", "p=MI IB\r\n ");
    let unordered = format!("{}; v=DKIM1", rsa.trim_start_matches("v=DKIM1; "));
    let kind = |finding: &Finding| match finding {
        Finding::Published => "published",
        Finding::Absent => "absent",
        Finding::Different(_) => "different",
        Finding::Unknown(_) => "unknown",
    };
    let table: [(&str, Answer, Answer, [&str; 2], bool); 10] = [
        ("both", Ok(vec![rsa.clone()]), Ok(vec![ed.clone()]), ["published", "published"], true),
        ("RSA alone", Ok(vec![rsa.clone()]), Err(LookupError::NoSuchName), ["published", "absent"], true),
        ("Ed25519 alone", Err(LookupError::NoRecord), Ok(vec![ed.clone()]), ["absent", "published"], false),
        ("white space", Ok(vec![spaced]), Err(temporary()), ["published", "unknown"], true),
        ("among others", Ok(vec!["hello".into(), rsa.clone()]), Ok(vec![]), ["published", "absent"], true),
        ("v= not first", Ok(vec![unordered]), Ok(vec![]), ["different", "absent"], false),
        ("swapped", Ok(vec![ed]), Ok(vec![rsa]), ["different", "different"], false),
        ("revoked", Ok(vec!["v=DKIM1; k=rsa; p=".into()]), Ok(vec![]), ["different", "absent"], false),
        ("nothing", Err(LookupError::NoSuchName), Err(LookupError::NoSuchName), ["absent", "absent"], false),
        ("DNS is down", Err(temporary()), Err(temporary()), ["unknown", "unknown"], false),
    ];
    for (what, rsa_answer, ed_answer, found, is_verified) in table {
        room.answer(&record.key_name(&record.keys.rsa.selector), rsa_answer);
        room.answer(&record.key_name(&record.keys.ed25519.selector), ed_answer);
        let entry = room.domains.entry(SHOP, &domain("shop.example")).unwrap();
        let keys = entry.keys.as_ref().unwrap();
        let findings = verification::look(&*room.dns, &entry.record.domain, &entry.record.keys, keys).await;
        assert_eq!([kind(&findings.rsa), kind(&findings.ed25519)], found, "{what}");
        let mut decided = record.clone();
        verification::decide(&mut decided, &findings, None, (DAY * 7, START));
        assert_eq!(matches!(decided.state, State::Verified(_)), is_verified, "{what}");
    }
}

#[tokio::test]
async fn failed_lookups_never_unverify_and_seven_days_of_proven_absence_do() {
    let room = Room::new();
    let record = room.add_verified(SHOP, "shop.example").await;
    let name = record.key_name(&record.keys.rsa.selector);
    room.answer(&name, Err(temporary()));
    for day in 1..100 {
        room.domains.keep(START.plus(DAY * day)).await;
    }
    assert!(room.signs_as(SHOP, "shop.example").is_ok(), "DNS was down, which proves nothing");
    let gone = START.plus(DAY * 100);
    room.unpublish();
    room.domains.keep(gone).await;
    room.domains.keep(gone.plus(DAY * 5)).await;
    assert!(room.signs_as(SHOP, "shop.example").is_ok());
    room.publish(&record.keys, &record);
    room.domains.keep(gone.plus(DAY * 6)).await;
    room.unpublish();
    for day in 7..14 {
        room.domains.keep(gone.plus(DAY * day)).await;
        assert!(room.signs_as(SHOP, "shop.example").is_ok(), "seen on day 6, absent since day 7; day {day}");
    }
    room.domains.keep(gone.plus(DAY * 14)).await;
    assert!(room.signs_as(SHOP, "shop.example").unwrap_err().starts_with("550 5.7.1 shop.example is not verified"));
    assert!(room.events().contains("DomainUnverified"));
    room.publish(&record.keys, &record);
    room.domains.keep(gone.plus(DAY * 15)).await;
    assert!(room.signs_as(SHOP, "shop.example").is_ok(), "it comes back by itself");
}

#[tokio::test]
async fn keeping_is_idempotent_and_asks_no_more_often_than_set() {
    let room = Room::new();
    room.add_verified(SHOP, "shop.example").await;
    let commits = room.store.commits();
    room.domains.keep(START.plus(DAY / 2)).await;
    assert_eq!(room.store.commits(), commits, "not due yet");
    room.domains.keep(START.plus(DAY)).await;
    room.domains.keep(START.plus(DAY)).await;
    assert_eq!(room.store.commits(), commits + 1);
}

#[tokio::test]
async fn another_tenants_record_proves_nothing_and_both_may_verify() {
    let room = Room::new();
    let record = room.add_verified(SHOP, "shop.example").await;
    let theirs = room.add(OTHER, "shop.example").await;
    assert_ne!(record.keys.rsa.selector, theirs.keys.rsa.selector);
    assert!(room.verify(OTHER, "shop.example", START).await.turns.is_empty());
    // Even the first tenant's key at the second tenant's selector proves nothing.
    let stolen = vec![record.keys.rsa.record.clone()];
    room.answer(&theirs.key_name(&theirs.keys.rsa.selector), Ok(stolen));
    assert!(room.verify(OTHER, "shop.example", START).await.turns.is_empty());
    assert!(room.signs_as(OTHER, "shop.example").is_err());
    room.publish(&theirs.keys, &theirs);
    room.verify(OTHER, "shop.example", START).await;
    let (one, two) = (domain("shop.example"), domain("shop.example"));
    let (one, two) = (room.domains.signer(SHOP, &one).ok().unwrap(), room.domains.signer(OTHER, &two).ok().unwrap());
    assert_ne!(one.rsa_selector, two.rsa_selector);
}

#[tokio::test]
async fn the_longest_usable_domain_covers_unless_subdomains_are_turned_off() {
    let room = Room::new();
    room.add_verified(SHOP, "shop.example").await;
    room.add(SHOP, "news.shop.example").await;
    assert_eq!(room.signs_as(SHOP, "a.news.shop.example"), Ok("shop.example".to_owned()), "pending hides nothing");
    room.add_verified(SHOP, "pay.shop.example").await;
    assert_eq!(room.signs_as(SHOP, "x.pay.shop.example"), Ok("pay.shop.example".to_owned()));
    assert!(room.signs_as(SHOP, "notshop.example").is_err());
    let which = || domain("shop.example");
    room.domains.set_words(&room.actor, (SHOP, &which()), (None, Some(Subdomains::NotCovered)), START).await.unwrap();
    assert!(room.signs_as(SHOP, "shop.example").is_ok());
    let refused = room.signs_as(SHOP, "b.shop.example").unwrap_err();
    assert!(refused.contains("shop.example does not cover names below it: add b.shop.example"), "{refused}");
}

#[tokio::test]
async fn a_domain_the_operator_trusts_needs_no_proof_and_only_the_operator_may_say_so() {
    let room = Room::new();
    room.add(SHOP, "shop.example").await;
    let owner = Actor::of("o", crate::access::Role::TenantOwner(SHOP));
    let which = domain("shop.example");
    assert!(room.domains.set_trust(&owner, (SHOP, &which), Trust::ByOperator, START).await.is_err());
    room.domains.set_trust(&room.actor, (SHOP, &which), Trust::ByOperator, START).await.unwrap();
    assert!(room.signs_as(SHOP, "shop.example").is_ok());
    assert!(room.signs_as(OTHER, "shop.example").is_err());
}

#[tokio::test]
async fn ed25519_signs_only_once_its_record_is_found() {
    let room = Room::new();
    let record = room.add(SHOP, "shop.example").await;
    room.answer(&record.key_name(&record.keys.rsa.selector), Ok(vec![record.keys.rsa.record.clone()]));
    room.verify(SHOP, "shop.example", START).await;
    let wanted = Algorithms::Both;
    let signer = room.domains.signer(SHOP, &domain("shop.example")).ok().unwrap();
    assert_eq!(signer.algorithms_of(wanted), Algorithms::RsaOnly);
    room.publish(&record.keys, &record);
    room.verify(SHOP, "shop.example", START).await;
    let signer = room.domains.signer(SHOP, &domain("shop.example")).ok().unwrap();
    assert_eq!(signer.algorithms_of(wanted), Algorithms::Both);
    assert_eq!(signer.algorithms_of(Algorithms::RsaOnly), Algorithms::RsaOnly);
}

#[tokio::test]
async fn a_rotation_uses_the_new_keys_when_published_and_erases_the_old_ones_at_once() {
    let room = Room::new();
    let before = room.add_verified(SHOP, "shop.example").await;
    let selector = |room: &Room| room.domains.signer(SHOP, &domain("shop.example")).ok().unwrap().rsa_selector.clone();
    let which = domain("shop.example");
    let rotating = room.domains.rotate(&room.actor, SHOP, &which, START).await.unwrap();
    assert!(room.domains.rotate(&room.actor, SHOP, &which, START).await.is_err(), "one at a time");
    assert_eq!(selector(&room), before.keys.rsa.selector, "the old key signs until the new one is found");
    let next = rotating.next_keys.clone().unwrap();
    assert!(room.verify(SHOP, "shop.example", START).await.turns.is_empty());
    assert_eq!(domain_records(&rotating, &[]).iter().filter(|record| record.name.contains("_domainkey")).count(), 4);
    room.publish(&next, &rotating);
    let done = room.verify(SHOP, "shop.example", START).await;
    assert_eq!(done.turns, [Turn::Rotated]);
    assert_eq!(selector(&room), next.rsa.selector);
    assert_eq!(selector(&room.reopened()), next.rsa.selector);
    let stored = room.store.get(&record::store_key(SHOP, &which)).unwrap().unwrap();
    let sealed = crate::store::codec::encode(&before.keys.rsa);
    let secret = &sealed[sealed.len() - 64..];
    assert!(!stored.windows(secret.len()).any(|window| window == secret), "the old private key is gone");
}

#[tokio::test]
async fn an_old_selector_may_go_a_week_after_the_last_message_that_names_it() {
    let room = Room::new();
    let before = room.add_verified(SHOP, "shop.example").await;
    let which = domain("shop.example");
    let rotating = room.domains.rotate(&room.actor, SHOP, &which, START).await.unwrap();
    let next = rotating.next_keys.clone().unwrap();
    room.publish(&next, &rotating);
    room.verify(SHOP, "shop.example", START).await;
    let may_go = async |now| {
        let status = room.domains.status(&room.actor, SHOP, std::slice::from_ref(&which), now).await.unwrap();
        status[0].retired[0].may_go
    };
    assert_eq!(may_go(START.plus(DAY * 30)).await, MayGo::NotYet, "nobody has asked the queue");
    let named: Arc<Mutex<HashSet<String>>> = Arc::default();
    named.lock().unwrap().insert(before.key_name(&before.keys.ed25519.selector));
    let asked = Arc::clone(&named);
    let (threads, here) = (Arc::new(Mutex::new(Vec::new())), std::thread::current().id());
    let seen = Arc::clone(&threads);
    room.domains.ask_usage_of(Arc::new(move || {
        seen.lock().unwrap().push(std::thread::current().id());
        Ok(asked.lock().unwrap().clone())
    }));
    room.domains.keep(START.plus(DAY * 30)).await;
    assert_eq!(may_go(START.plus(DAY * 30)).await, MayGo::NotYet, "a message still names it");
    named.lock().unwrap().clear();
    let free = START.plus(DAY * 31);
    room.domains.keep(free).await;
    assert_eq!(may_go(free).await, MayGo::At(free.plus(DAY * 7)));
    room.domains.keep(free.plus(DAY * 3)).await;
    assert_eq!(may_go(free.plus(DAY * 7)).await, MayGo::Now);
    room.domains.keep(free.plus(DAY * 8)).await;
    assert_eq!(room.get(SHOP, "shop.example").retired.len(), 1, "its record is still in DNS");
    room.unpublish();
    room.publish(&next, &rotating);
    room.domains.keep(free.plus(DAY * 9)).await;
    assert!(room.get(SHOP, "shop.example").retired.is_empty());
    let threads = threads.lock().unwrap();
    assert!(threads.len() > 5 && !threads.contains(&here), "the queue is read off the async workers");
}

#[tokio::test]
async fn a_list_of_domains_asks_the_queue_once_and_only_for_old_selectors() {
    let room = Room::new();
    let times = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&times);
    room.domains.ask_usage_of(Arc::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(HashSet::new())
    }));
    let names = ["shop.example", "shop.test"].map(domain);
    for name in &names {
        room.add_verified(SHOP, name.as_str()).await;
    }
    let status = async || room.domains.status(&room.actor, SHOP, &names, START).await.unwrap();
    assert_eq!(status().await.len(), 2);
    assert_eq!(times.load(Ordering::SeqCst), 0, "nothing is old");
    for name in &names {
        let next = room.domains.rotate(&room.actor, SHOP, name, START).await.unwrap();
        room.publish(&next.next_keys.clone().unwrap(), &next);
        room.verify(SHOP, name.as_str(), START).await;
    }
    let all = status().await;
    assert!(all.iter().zip(&names).all(|(one, name)| one.domain.domain == *name && one.retired.len() == 1));
    assert_eq!(times.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_rotation_that_is_cancelled_leaves_the_old_keys_in_use_and_room_for_another() {
    let room = Room::new();
    let before = room.add_verified(SHOP, "shop.example").await;
    let which = domain("shop.example");
    let rotating = room.domains.rotate(&room.actor, SHOP, &which, START).await.unwrap();
    let dropped = rotating.next_keys.clone().unwrap();
    let cancelled = room.domains.cancel_rotation(&room.actor, SHOP, &which, START).await.unwrap();
    assert!(cancelled.next_keys.is_none() && cancelled.retired.is_empty());
    // Its record in DNS changes nothing any more.
    room.publish(&dropped, &rotating);
    assert!(room.verify(SHOP, "shop.example", START).await.turns.is_empty());
    let signer = room.domains.signer(SHOP, &which).ok().unwrap();
    assert_eq!(signer.rsa_selector, before.keys.rsa.selector);
    let missing = room.domains.cancel_rotation(&room.actor, SHOP, &which, START).await;
    assert!(matches!(missing, Err(AdminError::Missing(_))), "{missing:?}");
    assert!(room.domains.rotate(&room.actor, SHOP, &which, START).await.is_ok());
}

#[tokio::test]
async fn a_domain_that_is_not_verified_changes_keys_at_once() {
    let room = Room::new();
    let before = room.add(SHOP, "shop.example").await;
    let after = room.domains.rotate(&room.actor, SHOP, &domain("shop.example"), START).await.unwrap();
    assert!(after.next_keys.is_none());
    assert_ne!(after.keys.rsa.selector, before.keys.rsa.selector);
    assert!(room.domains.cancel_rotation(&room.actor, SHOP, &domain("shop.example"), START).await.is_err());
}

#[tokio::test]
async fn notices_are_signed_by_the_owner_else_by_the_instance_else_not_at_all() {
    let room = Room::new();
    let vip = |owner, ehlo: &str| Vip {
        id: VipId(1),
        ipv4: None,
        ipv6: None,
        public_ipv4: None,
        public_ipv6: None,
        ehlo: domain(ehlo),
        owner,
    };
    let signer = |vip: &Vip| room.domains.name_signer(vip, OTHER).map(|signer| signer.domain.to_string());
    let (own, shared) = (vip(Owner::Tenant(SHOP), "mx.shop.example"), vip(Owner::Shared, "mx.host.example"));
    assert_eq!(signer(&own), None);
    room.add(INSTANCE, "host.example").await;
    assert_eq!(signer(&shared), None, "pending");
    room.add_verified(INSTANCE, "mx.host.example").await;
    assert_eq!(signer(&shared).as_deref(), Some("mx.host.example"));
    assert_eq!(signer(&own).as_deref(), Some("mx.host.example"), "better than no signature");
    assert_eq!(signer(&vip(Owner::Tenant(SHOP), "mx.host.example")).as_deref(), Some("mx.host.example"));
    room.add_verified(SHOP, "shop.example").await;
    assert_eq!(signer(&own).as_deref(), Some("shop.example"));
    let by_name = vip(Owner::Shared, "mx.shop.example");
    assert_eq!(signer(&by_name).as_deref(), Some("mx.host.example"), "a tenant's key signs nobody else's notices");
    let to_shop = room.domains.name_signer(&by_name, SHOP).map(|signer| signer.domain.to_string());
    assert_eq!(to_shop.as_deref(), Some("shop.example"), "it aligns with From, the instance's key does not");
}

#[tokio::test]
async fn the_instances_own_key_is_made_once() {
    let room = Room::new();
    for _ in 0..2 {
        room.domains.ensure_instance_key(&domain("mx.host.example"), START).await.unwrap();
    }
    assert_eq!(room.domains.list(&room.actor, INSTANCE).unwrap().len(), 1);
}

#[tokio::test]
async fn under_another_master_key_mail_is_refused_for_now_and_never_unsigned() {
    let room = Room::new();
    room.add_verified(SHOP, "shop.example").await;
    let wrong = Room::over(room.store.clone(), Arc::new(MasterKey::from_bytes([6; 32])), room.dns.clone());
    assert!(wrong.signs_as(SHOP, "shop.example").unwrap_err().starts_with("451 4.7.5 "));
    assert_eq!(wrong.domains.unusable_keys().len(), 1);
    wrong.domains.keep(START.plus(DAY * 50)).await;
    assert!(wrong.signs_as(SHOP, "shop.example").unwrap_err().starts_with("451"), "and nothing is unverified");
}

#[tokio::test]
async fn a_record_under_another_domains_key_or_damaged_is_set_aside() {
    let room = Room::new();
    room.add_verified(SHOP, "shop.example").await;
    room.add_verified(SHOP, "fine.example").await;
    let bytes = room.store.get(&record::store_key(SHOP, &domain("shop.example"))).unwrap().unwrap();
    let mut batch = crate::store::Batch::new();
    batch.set(record::store_key(OTHER, &domain("shop.example")), bytes);
    batch.set(record::store_key(OTHER, &domain("broken.example")), vec![1, 0xff]);
    room.store.commit(batch).await.unwrap();
    let room = room.reopened();
    assert_eq!(room.domains.damaged().len(), 2);
    assert!(room.signs_as(OTHER, "shop.example").is_err());
    assert!(room.signs_as(SHOP, "fine.example").is_ok());
}

#[tokio::test]
async fn a_verification_that_was_not_made_durable_does_not_count() {
    let room = Room::new();
    let record = room.add(SHOP, "shop.example").await;
    room.publish(&record.keys, &record);
    room.store.fail_next(1, CommitError::Full("test".into()));
    assert!(room.domains.verify(&room.actor, SHOP, &domain("shop.example"), START).await.is_err());
    assert!(room.signs_as(SHOP, "shop.example").is_err());
}

#[tokio::test]
async fn a_removed_domain_is_refused_and_its_key_gone() {
    let room = Room::new();
    room.add_verified(SHOP, "shop.example").await;
    let owner = Actor::of("o", crate::access::Role::TenantOwner(OTHER));
    assert!(room.domains.remove(&owner, SHOP, &domain("shop.example"), START).await.is_err());
    room.domains.remove(&room.actor, SHOP, &domain("shop.example"), START).await.unwrap();
    assert!(room.signs_as(SHOP, "shop.example").is_err());
    assert!(room.store.get(&record::store_key(SHOP, &domain("shop.example"))).unwrap().is_none());
}

#[tokio::test]
async fn the_records_to_publish_name_keys_spf_and_dmarc_and_fit_a_zone_file() {
    let room = Room::new();
    let record = room.add(SHOP, "shop.example").await;
    let vip = Vip {
        id: VipId(1),
        ipv4: Some([10, 0, 0, 7].into()),
        ipv6: Some("2001:db8::7".parse().unwrap()),
        public_ipv4: Some([203, 0, 113, 7].into()),
        public_ipv6: None,
        ehlo: domain("mx.shop.example"),
        owner: Owner::Shared,
    };
    let records = domain_records(&record, std::slice::from_ref(&vip));
    let names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(names[2..], ["shop.example", "_dmarc.shop.example"]);
    assert_eq!(records[2].value, "v=spf1 ip4:203.0.113.7 ip6:2001:db8::7 ~all");
    assert_eq!(records[0].need, Need::Required);
    let line = records[0].zone_line();
    assert!(line.contains("._domainkey.shop.example. IN TXT \"v=DKIM1; k=rsa; p="), "{line}");
    assert!(line.split('"').all(|string| string.len() <= 255) && line.matches('"').count() == 4, "{line}");
    let of_vip = vip_records(&vip);
    assert_eq!(of_vip[1].name, "7.113.0.203.in-addr.arpa");
    assert!(of_vip[3].name.starts_with("7.0.0.0.") && of_vip[3].name.ends_with(".8.b.d.0.1.0.0.2.ip6.arpa"));
    let again = domain_records(&record, &[]);
    assert!(again.iter().all(|record| !record.value.starts_with("v=spf1")), "no addresses, no SPF");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is added, published, taken away and asked again, in whatever order: a tenant gets a
    /// signer for a name only if a domain that covers it was verified for this very tenant.
    #[test]
    fn no_tenant_ever_gets_a_signer_for_a_domain_it_has_not_verified(
        acts in proptest::collection::vec((0..5_u8, 0..3_usize, 0..4_usize), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(acts));
    }
}

/// Keys are dear to make: the domains of the property test are made once and copied.
fn made() -> &'static Vec<(TenantId, SendingDomain)> {
    static MADE: OnceLock<Vec<(TenantId, SendingDomain)>> = OnceLock::new();
    MADE.get_or_init(|| {
        let key = MasterKey::from_bytes([5; 32]);
        let names = ["a.example", "b.a.example", "c.b.a.example", "d.example"];
        let pairs = (1..4).flat_map(|tenant| names.map(|name| (TenantId(tenant), domain(name))));
        pairs.map(|(tenant, name)| (tenant, SendingDomain::make(tenant, name, &key, START).unwrap())).collect()
    })
}

async fn play(acts: Vec<(u8, usize, usize)>) {
    let room = Room::new();
    let mut proven: HashSet<(TenantId, Domain)> = HashSet::new();
    for (act, tenant, name) in acts {
        let (tenant, record) = &made()[tenant * 4 + name];
        let which = &record.domain;
        match act {
            0 => {
                // What `add` does, with a key made before.
                if room.domains.entry(*tenant, which).is_none() {
                    let mut batch = crate::store::Batch::new();
                    batch.set(record::store_key(*tenant, which), crate::store::codec::encode(record));
                    let turn = room.domains.desk.turn().await;
                    room.domains.store_in(turn, batch, record.clone()).await.unwrap();
                }
            }
            1 => room.publish(&record.keys, record),
            2 => room.answer(&record.key_name(&record.keys.rsa.selector), Err(LookupError::NoSuchName)),
            3 => {
                let name = record.key_name(&record.keys.rsa.selector);
                let is_there = room.dns.0.lock().unwrap().get(&name).is_some_and(|answer| answer.is_ok());
                if room.domains.verify(&room.actor, *tenant, which, START).await.is_ok() && is_there {
                    proven.insert((*tenant, which.clone()));
                }
            }
            _ => {
                if room.domains.remove(&room.actor, *tenant, which, START).await.is_ok() {
                    proven.remove(&(*tenant, which.clone()));
                }
            }
        }
        for (tenant, record) in made() {
            let covered = proven.iter().any(|(owner, name)| owner == tenant && record.domain.is_within(name));
            let signer = room.domains.signer(*tenant, &record.domain);
            assert_eq!(signer.is_ok(), covered, "{tenant} {}", record.domain);
            assert_eq!(room.domains.may_use_in_mail_from(*tenant, &record.domain).is_ok(), covered);
            if let Ok(signer) = signer {
                let own = made().iter().any(|(owner, own)| {
                    owner == tenant && own.domain == signer.domain && own.keys.rsa.selector == signer.rsa_selector
                });
                assert!(own, "a signer has this tenant's own keys");
            }
        }
    }
}

fn shared_vip() -> Vip {
    Vip {
        id: VipId(1),
        ipv4: Some(Ipv4Addr::new(192, 0, 2, 7)),
        ipv6: None,
        public_ipv4: None,
        public_ipv6: None,
        ehlo: domain("mx.example.com"),
        owner: Owner::Shared,
    }
}

#[tokio::test]
async fn each_record_is_shown_as_it_should_be_and_as_it_is() {
    let room = Room::new();
    let record = room.add(SHOP, "shop.example").await;
    let vips = [shared_vip()];
    let verdict = |seen: &[Inspected], purpose| {
        let of = |seen: &&Inspected| seen.purpose == purpose;
        seen.iter().find(of).map(|seen| seen.verdict)
    };
    let look = async || {
        let name = domain("shop.example");
        room.domains.inspect(&room.actor, (SHOP, &name), &vips).await.unwrap()
    };
    let seen = look().await;
    assert!(seen.iter().all(|seen| seen.verdict == Verdict::Missing && seen.found.is_empty()), "{seen:?}");
    room.publish(&record.keys, &record);
    room.answer("shop.example", Ok(vec!["other".into(), "v=spf1 ip4:192.0.2.0/24 -all".into()]));
    room.answer("_dmarc.shop.example", Ok(vec!["v=DMARC1; p=reject".into()]));
    room.answer("default._bimi.shop.example", Err(LookupError::Temporary("timeout".into())));
    let seen = look().await;
    for purpose in [Purpose::Ownership, Purpose::Dkim, Purpose::Spf, Purpose::Dmarc] {
        assert_eq!(verdict(&seen, purpose), Some(Verdict::Found), "{purpose:?}");
    }
    assert_eq!(verdict(&seen, Purpose::Bimi), Some(Verdict::Unknown), "no answer proves nothing");
    // RFC 7208 s4.5: the version ends at a space or with the record.
    for text in ["v=spf10 ip4:192.0.2.7 -all", " v=spf1 ip4:192.0.2.7 -all"] {
        room.answer("shop.example", Ok(vec![text.into()]));
        assert_eq!(verdict(&look().await, Purpose::Spf), Some(Verdict::Missing), "{text}");
    }
    room.answer("shop.example", Ok(vec!["v=spf10 -all".into(), "v=spf1 ip4:192.0.2.7 -all".into()]));
    assert_eq!(verdict(&look().await, Purpose::Spf), Some(Verdict::Found));
    room.answer("shop.example", Ok(vec!["v=spf1 ip4:198.51.100.1 -all".into()]));
    room.answer("_dmarc.shop.example", Ok(vec!["v=DMARC1; p=none".into(), "v=DMARC1; p=reject".into()]));
    room.answer(&record.key_name(&record.keys.rsa.selector), Ok(vec!["v=DKIM1; p=AAAA".into()]));
    let seen = look().await;
    for purpose in [Purpose::Ownership, Purpose::Spf, Purpose::Dmarc] {
        assert_eq!(verdict(&seen, purpose), Some(Verdict::Different), "{purpose:?}");
    }
    let spf = seen.iter().find(|seen| seen.purpose == Purpose::Spf).unwrap();
    assert!(spf.advice.as_ref().unwrap().contains("ip4:192.0.2.7"), "{spf:?}");
    let stranger = Actor::of("s", crate::access::Role::TenantOwner(OTHER));
    assert!(room.domains.inspect(&stranger, (SHOP, &domain("shop.example")), &vips).await.is_err());
}

#[tokio::test]
async fn the_records_of_a_return_path_are_shown_and_judged_beside_the_others() {
    let room = Room::new();
    room.add(SHOP, "shop.example").await;
    let (name, vips) = (domain("shop.example"), [shared_vip()]);
    room.domains.expect_return_paths(Arc::new(|_| Expected {
        names: vec![domain("mx.example.com")],
        addresses: vec!["192.0.2.7".parse().unwrap()],
        include: None,
    }));
    let of_it = async || {
        let seen = room.domains.inspect(&room.actor, (SHOP, &name), &vips).await.unwrap();
        let rule =
            readiness::judge(&seen, &[], Traffic::default()).into_iter().find(|item| item.rule == Rule::ReturnPath);
        let verdict = |purpose| seen.iter().find(|seen| seen.purpose == purpose).map(|seen| seen.verdict);
        let verdicts = (verdict(Purpose::ReturnPathExchanger), verdict(Purpose::ReturnPathSpf));
        (verdicts, rule.map(|item| item.stand))
    };
    assert_eq!(of_it().await, ((None, None), None), "there is none");
    room.domains.set_return_path(&room.actor, (SHOP, &name), None, START).await.unwrap();
    let missing = Some(Verdict::Missing);
    assert_eq!(of_it().await, ((missing, missing), Some(Stand::Warning)));
    room.answer("mx:bounce.shop.example", Ok(vec!["mx.elsewhere.example".into()]));
    room.answer("bounce.shop.example", Ok(vec!["v=spf1 ip4:192.0.2.7 -all".into()]));
    assert_eq!(of_it().await, ((Some(Verdict::Different), Some(Verdict::Found)), Some(Stand::Warning)));
    room.answer("mx:bounce.shop.example", Ok(vec!["mx.example.com".into()]));
    assert_eq!(of_it().await, ((Some(Verdict::Found), Some(Verdict::Found)), Some(Stand::Met)));
    room.answer("mx:bounce.shop.example", Err(LookupError::Temporary("timeout".into())));
    assert_eq!(of_it().await, ((Some(Verdict::Unknown), Some(Verdict::Found)), Some(Stand::Unknown)));
    let zone = room.domains.records_to_publish(&room.actor, (SHOP, &name), &vips).unwrap();
    let lines: Vec<String> = zone.iter().map(DnsRecord::zone_line).collect();
    for line in
        ["bounce.shop.example. IN MX 10 mx.example.com.", "bounce.shop.example. IN TXT \"v=spf1 ip4:192.0.2.7 -all\""]
    {
        assert!(lines.contains(&line.to_owned()), "{line} is not in {lines:?}");
    }
}

#[tokio::test]
async fn a_return_path_that_fails_by_the_services_record_blames_that_one() {
    let room = Room::new();
    let expected = Expected {
        names: vec![domain("mx.example.com")],
        addresses: vec!["192.0.2.7".parse().unwrap()],
        include: Some(domain("spf.host.example")),
    };
    let name = domain("bounce.shop.example");
    let why = async || match return_path::look_spf(&*room.dns, &name, &expected).await {
        RecordState::Wrong(why) => why,
        state => format!("{state:?}"),
    };
    assert_eq!(why().await, "bounce.shop.example has no SPF record");
    room.answer("bounce.shop.example", Ok(vec!["v=spf1 include:spf.host.example -all".into()]));
    let told = why().await;
    assert!(told.contains("the record of this service at spf.host.example does not permit 192.0.2.7"), "{told}");
    room.answer("spf.host.example", Err(temporary()));
    assert_eq!(why().await, "Unknown", "whose it is cannot be told");
    room.answer("spf.host.example", Ok(vec!["v=spf1 ip4:192.0.2.7 -all".into()]));
    assert_eq!(why().await, "the SPF record of bounce.shop.example does not permit 192.0.2.7");
    room.answer("bounce.shop.example", Ok(vec!["v=spf1 ip4:192.0.2.7 -all".into()]));
    assert_eq!(why().await, "Found");
}

#[tokio::test]
async fn dmarc_of_a_name_above_counts_below() {
    let room = Room::new();
    room.add(SHOP, "news.shop.example").await;
    room.answer("_dmarc.shop.example", Ok(vec!["v=DMARC1; p=quarantine".into()]));
    let seen = room.domains.inspect(&room.actor, (SHOP, &domain("news.shop.example")), &[]).await.unwrap();
    let dmarc = seen.iter().find(|seen| seen.purpose == Purpose::Dmarc).unwrap();
    assert_eq!(dmarc.verdict, Verdict::Found);
    assert!(dmarc.advice.as_ref().unwrap().contains("shop.example"));
}

#[tokio::test]
async fn a_domain_that_waits_is_looked_up_often_at_first_and_less_often_later() {
    let room = Room::new();
    room.add(SHOP, "shop.example").await;
    let minutes = |count: u64| START.plus(Duration::from_secs(60 * count));
    let checked = |at: Timestamp| room.get(SHOP, "shop.example").last_check == Some(at);
    for (at, is_due) in [
        (4, false),
        (5, true),
        (9, false),
        (10, true),
        (59, true),
        (61, false),
        (119, true),
        (24 * 60, true),
        (25 * 60, false),
        (30 * 60, true),
        (8 * 24 * 60, true),
        (9 * 24 * 60 - 1, false),
        (9 * 24 * 60, true),
    ] {
        room.domains.keep(minutes(at)).await;
        assert_eq!(checked(minutes(at)), is_due, "after {at} minutes");
    }
}

#[tokio::test]
async fn a_domain_stands_at_warning_after_a_day_and_is_suspended_after_seven() {
    let room = Room::new();
    room.add_verified(SHOP, "shop.example").await;
    let standing = |now| room.get(SHOP, "shop.example").standing(now);
    assert_eq!(standing(START), Standing::Verified);
    room.unpublish();
    room.verify(SHOP, "shop.example", START).await;
    assert_eq!(standing(START.plus(DAY - Duration::from_secs(1))), Standing::Verified);
    assert_eq!(standing(START.plus(DAY)), Standing::Warning);
    assert!(room.signs_as(SHOP, "shop.example").is_ok(), "its mail is still sent");
    room.verify(SHOP, "shop.example", START.plus(DAY * 7)).await;
    assert_eq!(standing(START.plus(DAY * 7)), Standing::Suspended);
    assert!(room.signs_as(SHOP, "shop.example").is_err());
    assert_eq!(room.add(SHOP, "new.example").await.standing(START), Standing::Pending);
}
