//! A fake DNS: the server that `postern try` uses, and the real resolver asking it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use postern::net::{DnsSettings, SystemResolver, Zone, ZoneServer};

/// Serves `zone` on a free port of loopback, and a resolver that asks nobody else.
pub async fn serve(zone: Zone) -> (ZoneServer, Arc<SystemResolver>) {
    let server = ZoneServer::bind("127.0.0.1:0".parse().unwrap(), zone).await.unwrap();
    let settings = DnsSettings {
        servers: vec![server.address()],
        timeout: Duration::from_millis(500),
        attempts: 1,
        ..DnsSettings::default()
    };
    (server, Arc::new(SystemResolver::new(&settings).unwrap()))
}

/// A zone served beside tests that have no runtime; it ends when dropped.
pub struct SinkZone {
    pub address: SocketAddr,
    // In this order: the server's tasks end before their runtime.
    _server: ZoneServer,
    _runtime: tokio::runtime::Runtime,
}

/// Each of `domains` has one mail exchanger, `mx.` before its name, at 127.0.0.1.
pub fn zone_of_sink(domains: &[&str]) -> SinkZone {
    let zone = domains.iter().fold(Zone::new(), |zone, domain| {
        let host = format!("mx.{domain}");
        zone.mx(domain, 10, &host).ipv4(&host, Ipv4Addr::LOCALHOST)
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(ZoneServer::bind("127.0.0.1:0".parse().unwrap(), zone)).unwrap();
    SinkZone { address: server.address(), _server: server, _runtime: runtime }
}
