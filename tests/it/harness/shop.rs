//! The real binary serving one shop inside namespaces (see `apart.rs`): a virtual IP at ports 465 and
//! 587, a zone at port 53, a domain verified by its records in that zone, and an SMTP account.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use postern::mail::Domain;
use postern::net::{Certificates, Zone, ZoneServer};

use super::apart::DNS;
use super::load::TlsSession;
use super::process::{Credentials, Instance};

/// The virtual IP: neither what the kernel would choose by itself nor a peer's address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// Its EHLO name and the name on the door's certificate.
pub const VIP_NAME: &str = "mx.shop.test";
/// Who sends.
pub const SENDER: &str = "orders@shop.test";

/// Everything that stands.
pub struct Shop {
    pub instance: Instance,
    pub credentials: Credentials,
    /// The door's certificate, for clients that verify it.
    pub certificate: PathBuf,
    /// The DKIM records in DNS, in the form the foreign verifiers read: `name<TAB>text` lines.
    pub dkim_zone: PathBuf,
    pub folder: tempfile::TempDir,
    _zone: ZoneServer,
    _runtime: tokio::runtime::Runtime,
}

impl Shop {
    /// Opens; mail for `peer.test` and `shop.test` goes to `mx.peer.test` at `peer`.
    pub fn open(peer: Ipv4Addr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let records = Zone::new()
            .mx("peer.test", 10, "mx.peer.test")
            .mx("shop.test", 10, "mx.peer.test")
            .ipv4("mx.peer.test", peer)
            .mx("bounce.shop.test", 10, VIP_NAME)
            .txt("bounce.shop.test", "v=spf1 -all")
            .mx("gone.test", 10, "mx.gone.test")
            .ipv4("mx.gone.test", Ipv4Addr::new(127, 0, 1, 9))
            .ipv4(VIP_NAME, VIP)
            .ptr(VIP.into(), VIP_NAME);
        let zone = runtime.block_on(ZoneServer::bind(DNS.parse().unwrap(), records.clone())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (door, starttls) = ((VIP, 465).into(), (VIP, 587).into());
        let data = folder.path().join("data");
        let mut instance = Instance::make_at(folder.path(), &data, (door, starttls), DNS.parse().unwrap(), 25);
        let certificates = folder.path().join("certificates");
        Certificates::write_self_signed(&certificates, &Domain::parse(VIP_NAME).unwrap()).unwrap();
        instance.start();
        let dkim_zone = folder.path().join("dkim-zone");
        furnish(&instance, &zone, records, &dkim_zone);
        instance.wait_for_door();
        let credentials = instance.add_account("shop");
        let certificate = certificates.join(VIP_NAME).join("fullchain.pem");
        Self { instance, credentials, certificate, dkim_zone, folder, _zone: zone, _runtime: runtime }
    }

    /// Hands in a message (header and body with CRLF) at port 465; the last reply.
    pub fn submit(&self, to: &[&str], message: &str) -> String {
        let mut session = TlsSession::open(self.instance.door).unwrap();
        session.login(&self.credentials.login, &self.credentials.password).unwrap();
        session.command(&format!("MAIL FROM:<{SENDER}> BODY=8BITMIME"), "250").unwrap();
        for recipient in to {
            session.command(&format!("RCPT TO:<{recipient}>"), "250").unwrap();
        }
        session.command("DATA", "354").unwrap();
        let stuffed = message.replace("\r\n.", "\r\n..");
        assert!(stuffed.ends_with("\r\n") && !stuffed.starts_with('.'));
        let reply = session.command(&format!("{stuffed}."), "250").unwrap();
        session.command("QUIT", "221").unwrap();
        reply
    }
}

/// Tenant, virtual IP, domain verified by its records.
fn furnish(instance: &Instance, zone: &ZoneServer, mut records: Zone, dkim_zone: &Path) {
    instance.tool(&["tenant", "add", "shop"]);
    instance.tool(&["vip", "add", &VIP.to_string(), "--ehlo", VIP_NAME, "--tenant", "shop"]);
    let added = instance.tool(&["domain", "add", "shop", "shop.test", "--json"]);
    let added: serde_json::Value = serde_json::from_str(&added).unwrap();
    let mut lines = String::new();
    for record in added["records"].as_array().unwrap_or_else(|| panic!("{added}")) {
        let (name, value) = (record["name"].as_str().unwrap(), record["value"].as_str().unwrap());
        if record["kind"] == "TXT" {
            records = records.txt(name, value);
        }
        if name.contains("._domainkey.") {
            lines.push_str(&format!("{name}\t{value}\n"));
        }
    }
    std::fs::write(dkim_zone, lines).unwrap();
    zone.replace(records);
    instance.tool(&["domain", "verify", "shop", "shop.test"]);
}
