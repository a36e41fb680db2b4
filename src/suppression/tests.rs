//! Tests of the suppression lists.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::store::{CommitError, MemoryStore};

const START: Timestamp = Timestamp(1_800_000_000_000);
const TENANT: TenantId = TenantId(1);
const OTHER: TenantId = TenantId(2);

fn room() -> (Arc<MemoryStore>, Suppression, Actor) {
    let store = Arc::new(MemoryStore::new());
    (store.clone(), Suppression::open(store), Actor::system("test"))
}

fn entry(text: &str) -> NewEntry {
    let subject = Subject::parse(text).unwrap();
    NewEntry { subject, reason: Reason::Manual, origin: Origin::Operator, note: "by hand".into(), expires: None }
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

#[tokio::test]
async fn an_address_is_suppressed_in_any_case_for_its_tenant_only() {
    let (_, list, actor) = room();
    list.add(&actor, TENANT, entry("Ann@Example.com"), START).await.unwrap();
    assert!(list.contains(TENANT, None, &address("aNN@example.COM"), START).unwrap());
    assert!(!list.contains(TENANT, None, &address("bob@example.com"), START).unwrap());
    assert!(!list.contains(OTHER, None, &address("ann@example.com"), START).unwrap());
    list.remove(&actor, TENANT, &Subject::parse("ANN@example.com").unwrap(), START).await.unwrap();
    assert!(!list.contains(TENANT, None, &address("ann@example.com"), START).unwrap());
    let again = list.remove(&actor, TENANT, &Subject::parse("ann@example.com").unwrap(), START).await;
    assert!(matches!(again, Err(AdminError::Missing(_))));
}

#[tokio::test]
async fn a_domain_suppresses_all_its_addresses_and_not_its_subdomains() {
    let (_, list, actor) = room();
    list.add(&actor, TENANT, entry("@example.com"), START).await.unwrap();
    assert!(list.contains(TENANT, None, &address("anybody@example.com"), START).unwrap());
    assert!(!list.contains(TENANT, None, &address("anybody@sub.example.com"), START).unwrap());
}

#[tokio::test]
async fn an_import_may_be_repeated_and_what_is_there_stays_as_it_was() {
    let (store, list, actor) = room();
    list.add(&actor, TENANT, entry("a@example.com"), START).await.unwrap();
    assert!(matches!(list.add(&actor, TENANT, entry("a@example.com"), START).await, Err(AdminError::Exists(_))));
    let import = || ["a@example.com", "b@example.com", "B@example.com", "c.example"].map(entry).to_vec();
    let later = Timestamp(START.0 + 1);
    assert_eq!(list.add_many(&actor, TENANT, import(), later).await.unwrap(), 2);
    let commits = store.commits();
    assert_eq!(list.add_many(&actor, TENANT, import(), later).await.unwrap(), 0);
    assert_eq!(store.commits(), commits);
    let kept = list.entry(&actor, TENANT, &Subject::parse("a@example.com").unwrap()).unwrap().unwrap();
    assert_eq!(kept.added, START);
    let many = vec![entry("a@example.com"); PAGE_MAX + 1];
    assert!(matches!(list.add_many(&actor, TENANT, many, later).await, Err(AdminError::Invalid(_))));
}

#[tokio::test]
async fn a_list_is_read_page_by_page_and_holds_no_other_tenants_entries() {
    let (_, list, actor) = room();
    let mut expected = Vec::new();
    for count in 0..25 {
        let text = format!("user{count:02}@example.com");
        list.add(&actor, TENANT, entry(&text), START).await.unwrap();
        expected.push(text);
    }
    list.add(&actor, OTHER, entry("foreign@example.com"), START).await.unwrap();
    list.add(&actor, TENANT, entry("example.org"), START).await.unwrap();
    expected.push("example.org".into());
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let page = list.list(&actor, TENANT, from.as_ref(), 10).unwrap();
        assert!(page.entries.len() <= 10);
        found.extend(page.entries.iter().map(|entry| entry.subject.to_string()));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(found, expected);
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_still_suppresses() {
    let (store, list, actor) = room();
    list.add(&actor, TENANT, entry("a@example.com"), START).await.unwrap();
    let mut batch = Batch::new();
    batch.set(Place::from(TENANT).of(&Subject::parse("a@example.com").unwrap()), vec![77]);
    store.commit(batch).await.unwrap();
    assert!(list.contains(TENANT, None, &address("a@example.com"), START).unwrap());
    assert!(list.list(&actor, TENANT, None, 10).unwrap().entries.is_empty());
    store.fail_reads(Some(StoreError::Failed("test".into())));
    assert!(list.contains(TENANT, None, &address("a@example.com"), START).is_err());
}

#[tokio::test]
async fn people_see_and_change_their_own_tenants_list_only_and_a_full_store_is_said() {
    let (store, list, actor) = room();
    let owner = Actor::of("o", crate::access::Role::TenantOwner(TENANT));
    assert!(list.add(&owner, TENANT, entry("a@example.com"), START).await.is_ok());
    assert!(matches!(list.add(&owner, OTHER, entry("a@example.com"), START).await, Err(AdminError::Forbidden(_))));
    assert!(matches!(list.list(&owner, OTHER, None, 10), Err(AdminError::Forbidden(_))));
    store.fail_next(1, CommitError::Full("test".into()));
    assert!(matches!(list.add(&actor, TENANT, entry("b@example.com"), START).await, Err(AdminError::Commit(_))));
}

#[tokio::test]
async fn long_notes_are_cut_between_characters() {
    let (_, list, actor) = room();
    let new = NewEntry { note: "ż".repeat(NOTE_OCTETS_MAX), ..entry("a@example.com") };
    list.add(&actor, TENANT, new, START).await.unwrap();
    let page = list.list(&actor, TENANT, None, 1).unwrap();
    assert_eq!(page.entries[0].note.len(), NOTE_OCTETS_MAX);
}

#[tokio::test]
async fn a_whitelist_outweighs_what_we_concluded_and_never_what_the_recipient_said() {
    let (store, list, actor) = room();
    let white = Place { colour: Colour::White, ..Place::from(TENANT) };
    list.add(&actor, white, entry("example.com"), START).await.unwrap();
    for (reason, is_suppressed) in [
        (Reason::Manual, false),
        (Reason::Import, false),
        (Reason::HardBounce, false),
        (Reason::Complaint, true),
        (Reason::Unsubscribe, true),
    ] {
        let name = format!("{reason:?}@example.com");
        list.add(&actor, TENANT, NewEntry { reason, ..entry(&name) }, START).await.unwrap();
        assert_eq!(list.contains(TENANT, None, &address(&name), START).unwrap(), is_suppressed, "{reason:?}");
    }
    list.add(&actor, OTHER, entry("manual@example.com"), START).await.unwrap();
    assert!(list.contains(OTHER, None, &address("manual@example.com"), START).unwrap(), "another tenant's whitelist");
    let mut batch = Batch::new();
    batch.set(Place::from(TENANT).of(&Subject::parse("x@example.com").unwrap()), vec![77]);
    store.commit(batch).await.unwrap();
    assert!(list.contains(TENANT, None, &address("x@example.com"), START).unwrap(), "unreadable: the worst is assumed");
    let shown = list.list(&actor, white, None, 10).unwrap();
    assert_eq!(shown.entries.len(), 1, "lists are apart");
}

#[tokio::test]
async fn an_accounts_list_is_for_its_mail_only() {
    let (_, list, actor) = room();
    let (one, two) = (SmtpAccountId(1), SmtpAccountId(2));
    let of_one = Place { account: Some(one), ..Place::from(TENANT) };
    list.add(&actor, of_one, entry("a@example.com"), START).await.unwrap();
    let is_on = |account| list.contains(TENANT, account, &address("a@example.com"), START).unwrap();
    assert_eq!([is_on(Some(one)), is_on(Some(two)), is_on(None)], [true, false, false]);
    assert!(list.list(&actor, TENANT, None, 10).unwrap().entries.is_empty());
    let granted = std::collections::BTreeMap::from([(two, Action::Write)]);
    let narrowing = crate::access::Narrowing { accounts: Some(granted), ..Default::default() };
    let person = Actor { narrowing: Arc::new(narrowing), ..Actor::of("p", crate::access::Role::Developer(TENANT)) };
    assert!(matches!(list.list(&person, of_one, None, 10), Err(AdminError::Forbidden(_))));
    let of_two = Place { account: Some(two), ..Place::from(TENANT) };
    assert!(list.add(&person, of_two, entry("b@example.com"), START).await.is_ok());
}

#[tokio::test]
async fn an_entry_lapses_and_may_be_added_anew() {
    let (_, list, actor) = room();
    let expires = Some(Timestamp(START.0 + 1000));
    list.add(&actor, TENANT, NewEntry { expires, ..entry("a@example.com") }, START).await.unwrap();
    let is_on = |millis| list.contains(TENANT, None, &address("a@example.com"), Timestamp(START.0 + millis)).unwrap();
    assert_eq!([is_on(0), is_on(999), is_on(1000)], [true, true, false]);
    assert!(list.add(&actor, TENANT, entry("a@example.com"), Timestamp(START.0 + 999)).await.is_err());
    list.add(&actor, TENANT, entry("a@example.com"), Timestamp(START.0 + 1000)).await.unwrap();
    assert!(is_on(1_000_000));
    let found = list.entry(&actor, TENANT, &Subject::parse("a@example.com").unwrap()).unwrap().unwrap();
    assert_eq!((found.added.0 - START.0, found.expires, found.by), (1000, None, actor.name.clone()));
}

#[tokio::test]
async fn several_entries_change_in_one_step_and_a_contradiction_changes_nothing() {
    let (store, list, actor) = room();
    list.add(&actor, TENANT, entry("old@example.com"), START).await.unwrap();
    let subject = |text: &str| Subject::parse(text).unwrap();
    let commits = store.commits();
    let new = vec![entry("new@example.com"), entry("NEW@example.com"), entry("new.example")];
    let gone = vec![subject("old@example.com"), subject("never@example.com")];
    let changed = list.change(&actor, Place::from(TENANT), (new, gone), START).await.unwrap();
    assert_eq!((changed, store.commits() - commits), (Changed { added: 2, removed: 1 }, 1));
    let both = (vec![entry("new@example.com")], vec![subject("new@example.com")]);
    let refused = list.change(&actor, Place::from(TENANT), both, START).await;
    assert!(matches!(refused, Err(AdminError::Invalid(_))));
    assert!(list.contains(TENANT, None, &address("new@example.com"), START).unwrap());
}

#[tokio::test]
async fn a_search_finds_by_beginning_and_reason_over_pages() {
    let (_, list, actor) = room();
    for number in 0..30 {
        let reason = if number % 3 == 0 { Reason::Complaint } else { Reason::HardBounce };
        let new = NewEntry { reason, ..entry(&format!("user{number:02}@example.com")) };
        list.add(&actor, TENANT, new, START).await.unwrap();
    }
    list.add(&actor, TENANT, entry("user.example"), START).await.unwrap();
    list.add(&actor, TENANT, entry("other@example.com"), START).await.unwrap();
    let place = Place::from(TENANT);
    let found = |beginning: &str, reason| {
        let search = Search { beginning: beginning.to_owned(), reason };
        let (mut found, mut from) = (Vec::new(), None);
        loop {
            let page = list.search(&actor, (place, &search), from.as_ref(), 4).unwrap();
            found.extend(page.entries.into_iter().map(|entry| entry.subject.to_string()));
            from = page.next;
            if from.is_none() {
                return found;
            }
        }
    };
    assert_eq!(found("user1", None).len(), 10);
    assert_eq!(found("user", None).len(), 31, "the domain, too");
    assert_eq!(found("user", Some(Reason::Complaint)).len(), 10);
    assert_eq!(found("", None).len(), 32);
    assert!(found("zzz", None).is_empty());
}

#[test]
fn what_the_first_release_stored_is_read() {
    let first = FirstEntry {
        subject: Subject::parse("a@example.com").unwrap(),
        reason: Reason::Complaint,
        origin: Origin::System,
        added: START,
        note: "n".into(),
    };
    let read = Entry::from_bytes(&codec::encode(&first)).unwrap();
    assert_eq!((read.reason, read.expires, read.by.as_str()), (Reason::Complaint, None, ""));
    assert_eq!(Entry::from_bytes(&read.to_bytes()).unwrap(), read);
}

/// Addresses and domains so alike that case, folding and limits matter.
fn subjects() -> impl Strategy<Value = String> {
    let local = prop_oneof![
        Just("a".to_owned()),
        Just("A".to_owned()),
        Just("\"a b\"".to_owned()),
        Just("ß".to_owned()),
        Just("\u{130}".to_owned()),
        Just("\u{130}".repeat(32)),
        Just("\u{212a}".to_owned()),
    ];
    let domain = prop_oneof![Just("x.example"), Just("X.Example"), Just("sub.x.example"), Just("żółw.example")];
    prop_oneof![
        3 => (local, domain.clone()).prop_map(|(local, domain)| format!("{local}@{domain}")),
        1 => domain.prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn the_lists_agree_with_sets(
        acts in proptest::collection::vec((0_u8..5, 0_u64..2, subjects()), 1..40), page in 1_usize..4
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_, list, actor) = room();
            let mut model: BTreeSet<(u64, Subject)> = BTreeSet::new();
            for (act, tenant, text) in acts {
                let subject = Subject::parse(&text).unwrap();
                let name = (tenant, subject.clone());
                if act < 3 {
                    let added = list.add(&actor, TenantId(tenant), entry(&text), START).await;
                    assert_eq!(added.is_ok(), model.insert(name), "{text}");
                } else {
                    let removed = list.remove(&actor, TenantId(tenant), &subject, START).await;
                    assert_eq!(removed.is_ok(), model.remove(&name), "{text}");
                }
                if let Ok(address) = Address::parse(&text) {
                    for tenant in [0, 1] {
                        let by_address = model.contains(&(tenant, Subject::Address(address.folded())));
                        let by_domain = model.contains(&(tenant, Subject::Domain(address.domain().clone())));
                        let found = list.contains(TenantId(tenant), None, &address, START).unwrap();
                        assert_eq!(found, by_address || by_domain, "{text}");
                    }
                }
            }
            for tenant in [0, 1] {
                let (mut listed, mut from) = (Vec::new(), None);
                loop {
                    let shown = list.list(&actor, TenantId(tenant), from.as_ref(), page).unwrap();
                    listed.extend(shown.entries.into_iter().map(|entry| entry.subject));
                    from = shown.next;
                    if from.is_none() {
                        break;
                    }
                }
                let of_tenant: BTreeSet<Subject> =
                    model.iter().filter(|(owner, _)| *owner == tenant).map(|(_, subject)| subject.clone()).collect();
                assert_eq!(listed.len(), of_tenant.len(), "a page ended early or repeated an entry");
                assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), of_tenant);
            }
        });
    }
}
