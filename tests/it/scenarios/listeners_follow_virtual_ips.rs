//! The door listens on (each virtual IP present) x (ports), and follows changes while it runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use postern::access::Actor;
use postern::ext::Timestamp;
use postern::mail::Domain;
use postern::submission::Settings;
use postern::vips::{NewVip, Owner};

use crate::harness::door::{Client, Door};

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::new(127, 0, 3, 1), 0)).unwrap().local_addr().unwrap().port()
}

/// The greeting there, if somebody listens within two seconds.
fn greeting(address: SocketAddr) -> Option<String> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        if std::net::TcpStream::connect(address).is_ok() {
            return Some(Client::connect(address).reply());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

#[test]
fn listeners_come_and_go_with_virtual_ips_and_sessions_stay() {
    let port = free_port();
    let settings = Settings {
        tls_ports: Vec::new(),
        starttls_ports: vec![port],
        presence_poll: Duration::from_millis(100),
        stop_grace: Duration::from_secs(1),
        ..Settings::default()
    };
    let door = Door::start(settings);
    let (first, second) = (IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv4Addr::new(127, 0, 3, 2));
    assert!(greeting((first, port).into()).unwrap().starts_with("220 mx.example.com"));
    assert!(std::net::TcpStream::connect((second, port)).is_err());
    // One that is on this host, and one that is not: only the first is listened on.
    let add = |ipv4: Ipv4Addr, name: &str| {
        let ehlo = Domain::parse(name).unwrap();
        let new =
            NewVip { ipv4: Some(ipv4), ipv6: None, public_ipv4: None, public_ipv6: None, ehlo, owner: Owner::Shared };
        door.block_on(door.vips.add(&Actor::system("test"), new, Timestamp::now())).unwrap().id
    };
    add(Ipv4Addr::new(192, 0, 2, 77), "missing.example.com");
    let id = add(second, "other.example.com");
    assert!(greeting((second, port).into()).unwrap().starts_with("220 other.example.com"));
    let mut session = Client::connect((second, port).into());
    session.expect("220");
    door.block_on(door.vips.remove(&Actor::system("test"), id, Timestamp::now())).unwrap();
    let begun = Instant::now();
    while std::net::TcpStream::connect((second, port)).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(2), "the listener goes");
        std::thread::sleep(Duration::from_millis(10));
    }
    session.say("NOOP");
    session.expect("250");
}

#[test]
fn a_stop_waits_for_messages_and_no_longer_than_its_grace() {
    let settings = Settings { stop_grace: Duration::from_millis(1500), ..Settings::default() };
    let door = Door::start(settings);
    let (mut finishing, mut hanging) = (door.logged_in(), door.logged_in());
    for client in [&mut finishing, &mut hanging] {
        for (line, code) in
            [("MAIL FROM:<a@shop.example>", "250"), ("RCPT TO:<b@there.example>", "250"), ("DATA", "354")]
        {
            client.say(line);
            client.expect(code);
        }
    }
    door.stop.cancel();
    std::thread::sleep(Duration::from_millis(50));
    finishing.say("Subject: slow\r\n\r\nx\r\n.");
    finishing.expect("250");
    finishing.expect("421");
    let begun = Instant::now();
    while !door.is_finished() {
        assert!(begun.elapsed() < Duration::from_secs(4), "the grace ends");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(hanging.is_at_end());
    assert_eq!(door.accepted.lock().unwrap().len(), 1);
    assert!(std::net::TcpStream::connect(door.starttls_port).is_err());
}
