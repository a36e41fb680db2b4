//! A fake DNS: the server that `postern try` uses, and the real resolver asking it.

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
