//! Nobody speaks for another tenant: ambiguous From forms as data, and a matrix of every kind of
//! domain in MAIL FROM and in the header; the same for addresses one may log in on and for records
//! one may read.

use std::net::Ipv4Addr;

use postern::access::{Actor, Role};
use postern::accounts::{AccountChange, Limits, LoginState, NewSmtpAccount, TenantChange};
use postern::domains::{Trust, domain_records};
use postern::ext::Timestamp;
use postern::mail::{Class, TenantId};
use postern::queue::{BulkAct, Filter, NewSweep};
use postern::records::AdminError;
use postern::vips::Owner;

use super::world::{World, hand_in};
use crate::harness::daemon::{Client, domain, operator};
use crate::harness::door::plain;
use crate::harness::peer::Script;

struct Case {
    about: String,
    is_taken: bool,
    header: Vec<u8>,
}

/// Reads `tests/data/from/cases.txt`.
fn cases() -> Vec<Case> {
    let text = include_str!("../../data/from/cases.txt");
    let mut cases = Vec::new();
    for block in text.split("\n\n").skip(2) {
        let mut lines = block.trim_end_matches('\n').lines();
        let about = lines.next().unwrap().strip_prefix("# ").unwrap_or_else(|| panic!("{block}")).to_owned();
        let is_taken = match lines.next().unwrap() {
            "= taken" => true,
            "= refused" => false,
            other => panic!("{other}"),
        };
        let header = lines.flat_map(|line| [octets(line), b"\r\n".to_vec()].concat()).collect();
        cases.push(Case { about, is_taken, header });
    }
    cases
}

/// `\r \n \t \0 \\ \xNN` are octets.
fn octets(text: &str) -> Vec<u8> {
    let mut rest = text.as_bytes();
    let mut octets = Vec::new();
    while let [first, more @ ..] = rest {
        rest = more;
        if *first != b'\\' {
            octets.push(*first);
            continue;
        }
        let (octet, length) = match rest[0] {
            b'r' => (b'\r', 1),
            b'n' => (b'\n', 1),
            b't' => (b'\t', 1),
            b'0' => (0, 1),
            b'\\' => (b'\\', 1),
            b'x' => (u8::from_str_radix(std::str::from_utf8(&rest[1..3]).unwrap(), 16).unwrap(), 3),
            other => panic!("\\{}", char::from(other)),
        };
        octets.push(octet);
        rest = &rest[length..];
    }
    octets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_from_that_any_reader_may_take_for_a_foreign_one_is_refused_at_the_door() {
    let cases = cases();
    assert!(cases.len() > 70, "{}", cases.len());
    let world = World::open(Script::polite()).await;
    let mut taken = 0;
    for case in &cases {
        let mut client = world.session(&world.shop.1).await;
        let message = [&case.header[..], b"\r\nbody\r\n"].concat();
        let reply = hand_in(&mut client, "MAIL FROM:<a@shop.test>", "RCPT TO:<b@there.test>", &message).await;
        if case.is_taken {
            assert!(reply.starts_with("250 "), "{}: {reply}", case.about);
            taken += 1;
        } else {
            assert!(reply.starts_with('5'), "{}: {reply}", case.about);
        }
    }
    // What was taken has one From for every reader, and it is ours.
    for message in world.taken(taken).await {
        let text = String::from_utf8_lossy(&message.text).into_owned();
        let (header, _) = text.split_once("\r\n\r\n").unwrap();
        let from: Vec<&str> =
            header.lines().filter(|line| line.trim_start().to_ascii_lowercase().starts_with("from")).collect();
        assert_eq!(from.len(), 1, "{header}");
        assert!(!header.contains('\0') && !header.replace("\r\n", "").contains(['\r', '\n']), "{header:?}");
        let parsed = mail_parser::MessageParser::default().parse(&message.text[..]).unwrap();
        for mailbox in parsed.from().unwrap().iter() {
            let address = mailbox.address.as_deref().unwrap();
            assert!(address.ends_with("@shop.test"), "{address} in {header}");
        }
    }
    world.running.stop().await;
}

/// A domain, and whose it is in the eyes of tenant `shop`.
struct Kind {
    name: &'static str,
    is_ours: bool,
}

const KINDS: &[Kind] = &[
    Kind { name: "shop.test", is_ours: true },       // trusted by the operator
    Kind { name: "news.shop.test", is_ours: true },  // below it
    Kind { name: "proved.test", is_ours: true },     // proved by its record
    Kind { name: "a.b.proved.test", is_ours: true }, // below it
    Kind { name: "lent.evil.test", is_ours: true },  // below another tenant's, trusted for us
    Kind { name: "waiting.test", is_ours: false },   // added, never proved
    Kind { name: "evil.test", is_ours: false },      // another tenant's
    Kind { name: "news.evil.test", is_ours: false }, // below it
    Kind { name: "claimed-by-both.test", is_ours: false }, // added by us, proved by the other
    Kind { name: "nobody.test", is_ours: false },
    Kind { name: "test", is_ours: false },            // above ours
    Kind { name: "notshop.test", is_ours: false },    // ends like ours
    Kind { name: "mx.host.test", is_ours: false },    // the virtual IP's own name
    Kind { name: "mx.postern.test", is_ours: false }, // the instance's name
];

async fn add_kinds(world: &World) {
    let (domains, now) = (&world.running.daemon.domains, Timestamp::now());
    let (shop, evil) = (world.shop.0, world.evil.0);
    let mut zone = world.zone.clone();
    for (tenant, name) in [(shop, "proved.test"), (evil, "claimed-by-both.test")] {
        let added = domains.add(&operator(), tenant, &domain(name), now).await.unwrap();
        for record in domain_records(&added, &[]).iter().filter(|record| record.kind == "TXT") {
            zone = zone.txt(&record.name, &record.value);
        }
    }
    world.running.zone.replace(zone);
    for (tenant, name) in [(shop, "proved.test"), (evil, "claimed-by-both.test")] {
        domains.verify(&operator(), tenant, &domain(name), now).await.unwrap();
    }
    for name in ["waiting.test", "claimed-by-both.test", "lent.evil.test"] {
        domains.add(&operator(), shop, &domain(name), now).await.unwrap();
    }
    domains.set_trust(&operator(), (shop, &domain("lent.evil.test")), Trust::ByOperator, now).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_speaks_for_its_own_domains_only_whatever_stands_where() {
    let world = World::open(Script::polite()).await;
    add_kinds(&world).await;
    let (mut judged, mut taken) = (0, 0);
    let null = Kind { name: "", is_ours: true };
    for reverse in KINDS.iter().chain([&null]) {
        for (field, from) in
            ["From", "Sender", "Resent-From"].iter().flat_map(|field| KINDS.iter().map(move |kind| (field, kind)))
        {
            // The other two fields have one row of the matrix, not a square each.
            if *field != "From" && reverse.name != "shop.test" {
                continue;
            }
            let mut client = world.session(&world.shop.1).await;
            let path = if reverse.name.is_empty() { String::new() } else { format!("a@{}", reverse.name) };
            let own = if *field == "From" { "" } else { "From: <a@shop.test>\r\n" };
            let message = format!("{own}{field}: <a@{}>\r\n\r\nbody\r\n", from.name);
            let mail = format!("MAIL FROM:<{path}>");
            let reply = hand_in(&mut client, &mail, "RCPT TO:<b@there.test>", message.as_bytes()).await;
            let what = format!("{mail} with {field}: {}: {reply}", from.name);
            judged += 1;
            if reverse.is_ours && from.is_ours {
                assert!(reply.starts_with("250 "), "{what}");
                taken += 1;
            } else {
                assert!(reply.starts_with("550 ") || reply.starts_with("501 "), "{what}");
            }
        }
    }
    eprintln!("{judged} combinations judged, {taken} taken");
    for message in world.taken(taken).await {
        let text = String::from_utf8_lossy(&message.text).into_owned();
        assert!(text.contains("DKIM-Signature:"), "unsigned: {text}");
        let signers = text
            .replace("\r\n", "")
            .split("; d=")
            .skip(1)
            .map(|rest| rest.split(';').next().unwrap().to_owned())
            .collect::<Vec<_>>();
        let ours = |name: &String| ["shop.test", "proved.test", "lent.evil.test"].contains(&name.as_str());
        assert!(!signers.is_empty() && signers.iter().all(ours), "signed by {signers:?}");
    }
    world.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_works_on_its_own_and_on_shared_addresses_only_and_refusals_look_alike() {
    let world = World::open(Script::polite()).await;
    let address = |last| Ipv4Addr::new(127, 0, 4, last);
    let (shop, evil) = (Owner::Tenant(world.shop.0), Owner::Tenant(world.evil.0));
    for (last, owner) in [(1, shop), (2, evil), (3, Owner::Shared)] {
        world.running.vip(address(last), &format!("vip{last}.test"), owner).await;
    }
    let disabled = world.running.account(world.shop.0).await;
    let account = world.running.daemon.accounts.smtp_accounts(&operator(), world.shop.0).unwrap();
    let account = account.iter().find(|account| account.login == disabled.login).unwrap();
    let (accounts, now) = (&world.running.daemon.accounts, Timestamp::now());
    accounts
        .change_smtp_account(
            &operator(),
            account.id,
            AccountChange { login_state: Some(LoginState::Disabled), ..AccountChange::default() },
            now,
        )
        .await
        .unwrap();
    let mut refusals = Vec::new();
    for (who, login, serves) in
        [("shop", &world.shop.1, [1, 3]), ("evil", &world.evil.1, [2, 3]), ("disabled", &disabled, [0, 0])]
    {
        for last in 1..=3 {
            let spot = (address(last), world.running.tls.port()).into();
            assert!(crate::harness::outbound::until(|| std::net::TcpStream::connect(spot).is_ok()).await);
            for (password, is_right) in [(login.password.as_str(), true), ("wrong", false)] {
                let mut client = Client::connect(spot).await;
                client.say("EHLO client.test").await;
                let reply = client.say(&format!("AUTH PLAIN {}", plain(&login.login, password))).await;
                if is_right && serves.contains(&last) {
                    assert!(reply.starts_with("235 "), "{who} on {last}: {reply}");
                } else {
                    refusals.push(reply);
                }
            }
        }
    }
    refusals.dedup();
    assert_eq!(refusals, ["535 5.7.8 Login or password is wrong\r\n"]);
    world.running.stop().await;
}

/// What an act of a tenant's person on another tenant's things comes to.
fn is_kept_out<T>(result: Result<T, AdminError>) -> bool {
    matches!(result, Err(AdminError::Forbidden(_) | AdminError::Missing(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_of_one_tenant_neither_read_nor_change_what_is_anothers() {
    let world = World::open(Script::polite().always("RCPT", crate::harness::peer::Act::Say("450 4.2.0 later"))).await;
    let mut client = world.session(&world.shop.1).await;
    let message = b"From: <a@shop.test>\r\n\r\nsecret\r\n";
    let reply = hand_in(&mut client, "MAIL FROM:<a@shop.test>", "RCPT TO:<b@there.test>", message).await;
    let id = reply.strip_prefix("250 2.0.0 Queued as ").unwrap().trim_end().parse().unwrap();
    let daemon = &world.running.daemon;
    let shop = world.shop.0;
    let evil = world.evil.0;
    let roles = [
        Role::TenantOwner(evil),
        Role::TenantAdmin(evil),
        Role::Developer(evil),
        Role::Analyst(evil),
        Role::Support(evil),
        // Reads all of its own tenant, and changes nothing.
        Role::Support(shop),
    ];
    for role in roles {
        let actor = Actor::of(format!("{role:?}"), role);
        let is_reader_of_shop = role == Role::Support(shop);
        let (now, name) = (Timestamp::now(), domain("shop.test"));
        // Reading: their own people may, nobody else's.
        let reads = [
            is_kept_out(daemon.accounts.smtp_accounts(&actor, shop)),
            is_kept_out(daemon.domains.get(&actor, shop, &name)),
            is_kept_out(daemon.domains.list(&actor, shop)),
            is_kept_out(daemon.queue.show(&actor, id)),
            is_kept_out(daemon.queue.why(&actor, id)),
        ];
        assert_eq!(reads, [!is_reader_of_shop; 5], "{role:?}");
        let seen: Vec<TenantId> = daemon.accounts.tenants(&actor).iter().map(|tenant| tenant.id).collect();
        assert!(seen.iter().all(|tenant| (*tenant == shop) == is_reader_of_shop), "{role:?}: {seen:?}");
        // Changing: none of these may.
        let new = NewSmtpAccount {
            class: Class::Transactional,
            allowed_from: Vec::new(),
            limits: Limits::default(),
            ..Default::default()
        };
        let changes = [
            is_kept_out(daemon.accounts.add_smtp_account(&actor, shop, new, now).await),
            is_kept_out(
                daemon
                    .accounts
                    .change_tenant(
                        &actor,
                        shop,
                        TenantChange { limits: Some(Limits::default()), ..TenantChange::default() },
                        now,
                    )
                    .await,
            ),
            is_kept_out(daemon.accounts.add_tenant(&actor, "mine", now).await),
            is_kept_out(daemon.domains.add(&actor, shop, &domain("more.test"), now).await),
            is_kept_out(daemon.domains.set_trust(&actor, (shop, &name), Trust::ByOperator, now).await),
            is_kept_out(daemon.domains.remove(&actor, shop, &name, now).await),
            is_kept_out(daemon.queue.retry(&actor, id, &[], now).await),
            is_kept_out(daemon.queue.hold(&actor, id, &[], now).await),
            is_kept_out(daemon.queue.cancel(&actor, id, &[], now).await),
            is_kept_out(daemon.queue.erase(&actor, id, now).await),
            is_kept_out(daemon.vips.remove(&actor, daemon.vips.all()[0].id, now).await),
            is_kept_out(daemon.routes.list(&actor)),
        ];
        assert_eq!(changes, [true; 12], "{role:?}");
        let everything =
            NewSweep { act: BulkAct::Cancel, filter: Filter::default(), reason: String::new(), lasting: None };
        let cancelled = daemon.queue.begin_sweep(&actor, everything, now).await;
        assert!(cancelled.is_err(), "{role:?} cancelled {cancelled:?}");
        assert!(daemon.queue.sweeps(&operator(), None).unwrap().is_empty());
    }
    assert_eq!(daemon.queue.show(&operator(), id).unwrap().id, id);
    world.running.stop().await;
}
