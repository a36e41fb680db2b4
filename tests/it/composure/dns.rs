//! DNS that is silent, broken, truncated, endless or wrong: only a proven absence (NXDOMAIN, null MX,
//! no address at all) is final; everything else makes mail wait.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, MX};
use hickory_proto::rr::{Name, RData, Record};
use postern::delivery::PrivateAddresses;
use postern::events::{MailEvent, Why};
use postern::ext::Timestamp;
use postern::mail::Domain;
use postern::net::{DnsSettings, LookupError, Resolver, SystemResolver, Trouble, Zone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use crate::harness::outbound::{Outbound, settings, until};
use crate::harness::peer::{Peer, Script};

const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// What a lying server says to a question, over UDP and over TCP; `None` is silence.
type Lie = fn(&Message) -> (Option<Vec<u8>>, Option<Vec<u8>>);

fn reply(question: &Message) -> Message {
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&question.queries);
    reply
}

fn coded(question: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    let mut reply = reply(question);
    reply.metadata.response_code = code;
    Some(reply.to_vec().unwrap())
}

fn truncated(question: &Message) -> Option<Vec<u8>> {
    let mut reply = reply(question);
    reply.metadata.truncation = true;
    Some(reply.to_vec().unwrap())
}

/// A port that is free for datagrams may be taken for streams by a test beside this one: then another.
async fn both_on_one_port() -> (UdpSocket, TcpListener) {
    let mut refused = None;
    for _ in 0..100 {
        let udp = UdpSocket::bind((LOCAL, 0)).await.unwrap();
        match TcpListener::bind(udp.local_addr().unwrap()).await {
            Ok(tcp) => return (udp, tcp),
            Err(error) => refused = Some(error),
        }
    }
    panic!("no port is free for both: {refused:?}");
}

/// A resolver that asks only such a server.
async fn asking(lie: Lie, timeout: Duration) -> SystemResolver {
    let (udp, tcp) = both_on_one_port().await;
    let address: SocketAddr = udp.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
            if let Some(answer) = lie(&question).0 {
                let _ = udp.send_to(&answer, from).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            tokio::spawn(async move {
                let length = stream.read_u16().await?;
                let mut octets = vec![0; usize::from(length)];
                stream.read_exact(&mut octets).await?;
                if let Some(answer) = Message::from_vec(&octets).ok().and_then(|question| lie(&question).1) {
                    stream.write_u16(u16::try_from(answer.len()).unwrap()).await?;
                    stream.write_all(&answer).await?;
                }
                // The stream stays open, as a rude server would have it.
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok::<_, std::io::Error>(())
            });
        }
    });
    let settings = DnsSettings { servers: vec![address], timeout, attempts: 1, ..DnsSettings::default() };
    SystemResolver::new(&settings).unwrap()
}

fn many(question: &Message, count: u16) -> Vec<u8> {
    let mut reply = reply(question);
    for number in 0..count {
        let exchange = name(&format!("mx{number}.shop.example."));
        reply.add_answer(Record::from_rdata(
            question.queries[0].name().clone(),
            60,
            RData::MX(MX::new(number, exchange)),
        ));
    }
    reply.to_vec().unwrap()
}

fn alias(question: &Message, target: &str) -> Option<Vec<u8>> {
    let mut reply = reply(question);
    let asked = question.queries[0].name().clone();
    reply.add_answer(Record::from_rdata(asked, 60, RData::CNAME(CNAME(name(target)))));
    Some(reply.to_vec().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_no_answer_is_temporary() {
    let lies: &[(&str, Lie)] = &[
        ("silence", |_| (None, None)),
        ("SERVFAIL, as for bogus DNSSEC", |question| {
            let said = coded(question, ResponseCode::ServFail);
            (said.clone(), said)
        }),
        ("REFUSED", |question| (coded(question, ResponseCode::Refused), coded(question, ResponseCode::Refused))),
        ("NOTIMP", |question| (coded(question, ResponseCode::NotImp), coded(question, ResponseCode::NotImp))),
        ("FORMERR", |question| (coded(question, ResponseCode::FormErr), coded(question, ResponseCode::FormErr))),
        ("truncated, and TCP is silent", |question| (truncated(question), None)),
        ("truncated, and so over TCP", |question| (truncated(question), truncated(question))),
        ("rubbish", |_| (Some(vec![0xff; 200]), Some(vec![0xff; 200]))),
        ("half a message", |question| {
            let mut said = many(question, 3);
            said.truncate(40);
            (Some(said.clone()), Some(said))
        }),
        ("another id", |question| {
            let mut other = question.clone();
            other.metadata.id = other.metadata.id.wrapping_add(1);
            (Some(many(&other, 1)), None)
        }),
        ("an answer to another question", |question| {
            let mut other = reply(question);
            other.queries[0].set_name(name("other.example."));
            other.metadata.response_code = ResponseCode::NXDomain;
            (Some(other.to_vec().unwrap()), None)
        }),
        ("a CNAME to itself", |question| (alias(question, "shop.example."), alias(question, "shop.example."))),
        ("CNAMEs without end", |question| {
            let asked = question.queries[0].name().to_ascii();
            let next = if asked.len() > 200 { "a.example.".to_owned() } else { format!("x{asked}") };
            (alias(question, &next), alias(question, &next))
        }),
    ];
    for (what, lie) in lies {
        let resolver = asking(*lie, Duration::from_millis(400)).await;
        let asked = Domain::parse("shop.example").unwrap();
        let found = tokio::time::timeout(Duration::from_secs(60), resolver.mx(&asked));
        let found = found.await.unwrap_or_else(|_| panic!("{what}: no end to it"));
        assert!(matches!(found, Err(LookupError::Temporary(_))), "{what}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_answer_is_read_over_tcp_and_an_absence_is_told_apart() {
    let resolver = asking(|question| (truncated(question), Some(many(question, 1_000))), Duration::from_secs(20)).await;
    let found = resolver.mx(&Domain::parse("shop.example").unwrap()).await.unwrap();
    assert_eq!(found.len(), 1_000);
    let resolver = asking(|question| (coded(question, ResponseCode::NXDomain), None), Duration::from_secs(5)).await;
    let found = resolver.mx(&Domain::parse("shop.example").unwrap()).await;
    assert_eq!(found, Err(LookupError::NoSuchName));
}

async fn outbound(zone: Zone, port: u16, private: PrivateAddresses) -> Outbound {
    let mut settings = settings(port);
    settings.lookup_pause = Duration::from_millis(50);
    settings.site_kept = Duration::from_millis(50);
    settings.private_addresses = private;
    Outbound::start("127.0.2.7", zone, settings).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_proven_absence_bounces() {
    let zone = Zone::new()
        .trouble("silent.example", Trouble::Silence)
        .trouble("servfail.example", Trouble::ServerFailure)
        .trouble("refused.example", Trouble::Refused)
        .cname("loop.example", "pool.example")
        .cname("pool.example", "loop.example")
        .mx("loopback.example", 10, "localhost.example")
        .ipv4("localhost.example", LOCAL)
        .mx("private.example", 10, "ten.example")
        .ipv4("ten.example", Ipv4Addr::new(10, 0, 0, 1))
        .mx("literal.example", 10, "10.0.0.1")
        .mx("ours.example", 10, "out.sender.example")
        .mx("ouraddress.example", 10, "alias.example")
        .ipv4("alias.example", Ipv4Addr::new(127, 0, 2, 7))
        .mx("mxservfail.example", 10, "a.servfail.example")
        .trouble("a.servfail.example", Trouble::ServerFailure)
        .mx("null.example", 0, ".")
        .mx("dangling.example", 10, "gone.nowhere.example")
        .empty("empty.example");
    let outbound = outbound(zone, 25, PrivateAddresses::Refused).await;
    let waits =
        ["silent", "servfail", "refused", "loop", "loopback", "private", "literal", "ours", "ouraddress", "mxservfail"];
    for name in waits {
        let id = outbound.owe(&[&format!("a@{name}.example")]).await;
        let verdict = outbound.verdict(id).await;
        assert!(matches!(verdict, MailEvent::Deferred { .. }), "{name}: {verdict:?}");
    }
    for name in ["nxdomain", "null", "dangling", "empty"] {
        let id = outbound.owe(&[&format!("a@{name}.example")]).await;
        let verdict = outbound.verdict(id).await;
        assert!(matches!(verdict, MailEvent::Bounced { why: Why::NoSuchDomain, .. }), "{name}: {verdict:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_tries_while_dns_is_out_bounce_nothing_and_the_next_one_delivers() {
    let peer = Peer::start("127.0.1.7:0".parse().unwrap(), Script::polite()).await;
    let mut zone = Zone::new();
    let names: Vec<String> = (0..5).map(|number| format!("d{number}.example")).collect();
    for (number, name) in names.iter().enumerate() {
        let trouble = [Trouble::ServerFailure, Trouble::Refused][number % 2];
        zone = zone.trouble(name, trouble);
    }
    let outbound = outbound(zone, peer.address.port(), PrivateAddresses::Allowed).await;
    let mut ids = Vec::new();
    for name in &names {
        ids.push(outbound.owe(&[&format!("a@{name}")]).await);
    }
    // Half an hour of an outage is thirty tries at most: a lane is looked up once a minute.
    for round in 1..=30 {
        for id in &ids {
            assert!(
                until(|| outbound.verdicts(*id).len() >= round).await,
                "round {round}: {:?}",
                outbound.verdicts(*id)
            );
            let operator = postern::access::Actor::local(0);
            outbound.queue.retry(&operator, *id, &[], Timestamp::now()).await.unwrap();
        }
    }
    for id in &ids {
        let verdicts = outbound.verdicts(*id);
        assert!(
            verdicts.iter().all(|verdict| matches!(verdict, MailEvent::Deferred { why: Why::Dns, .. })),
            "{verdicts:?}"
        );
    }
    let healed = names.iter().fold(Zone::new().ipv4("mx.example", Ipv4Addr::new(127, 0, 1, 7)), |zone, name| {
        zone.mx(name, 10, "mx.example")
    });
    outbound.zone.replace(healed);
    let operator = postern::access::Actor::local(0);
    let all_taken = || peer.taken().len() == names.len();
    for _ in 0..40 {
        for id in &ids {
            // What is being tried, or gone, needs no push.
            let _ = outbound.queue.retry(&operator, *id, &[], Timestamp::now()).await;
        }
        if all_taken() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(until(all_taken).await, "{}", peer.taken().len());
}
