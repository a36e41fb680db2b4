//! SPF by inclusion: tenants publish one name, its operator what the service prints, and a new virtual IP changes
//! the operator's record and no tenant's.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use postern::ext::Timestamp;
use postern::net::{Zone, ZoneServer};
use postern::vips::{NewVip, Owner};
use serde_json::{Value, json};

use crate::harness::daemon::{HOSTNAME, Running, config, domain, new_folder, operator};
use crate::sending_by_http::ask;

const SERVICE: &str = "spf.mx.postern.test";

/// A virtual IP that the world sees as 100.0.0.`last`.
async fn add_vip(running: &Running, last: u8, owner: Owner) {
    let new = NewVip {
        ipv4: Some(Ipv4Addr::new(127, 0, 3, last)),
        ipv6: None,
        public_ipv4: Some(Ipv4Addr::new(100, 0, 0, last)),
        public_ipv6: None,
        ehlo: domain(&format!("out{last}.postern.test")),
        owner,
    };
    running.daemon.vips.add(&operator(), new, Timestamp::now()).await.unwrap();
}

/// What `GET .../records` says of the SPF record: verdict, advice, what is expected.
async fn spf(running: &Running) -> (String, String, String) {
    let path = "/tenants/shop/domains/shop.test/records";
    let (_, _, seen) = ask(running, "GET", path, None, Value::Null).await;
    let record = seen["records"].as_array().unwrap().iter().find(|record| record["what"] == "spf").unwrap();
    let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("advice"), text("expected"))
}

/// A zone with the tenant's records, and what the service says its operator should publish.
async fn published(running: &Running, tenant: &str) -> (Zone, usize) {
    let (_, _, service) = ask(running, "GET", "/spf-record", None, Value::Null).await;
    assert_eq!((&service["name"], &service["left_out"]), (&json!(SERVICE), &json!(0)), "{service}");
    let zone = Zone::new()
        .txt("shop.test", tenant)
        .mx("bounce.shop.test", 10, HOSTNAME)
        .txt("bounce.shop.test", &format!("v=spf1 include:{SERVICE} -all"));
    let records = service["records"].as_array().unwrap();
    let text = |record: &Value, key: &str| record[key].as_str().unwrap().to_owned();
    let zone = records.iter().fold(zone, |zone, record| zone.txt(&text(record, "name"), &text(record, "value")));
    (zone, records.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_virtual_ip_changes_the_operators_record_and_no_tenants() {
    let include = format!("v=spf1 include:{SERVICE} ~all");
    let zone = Zone::new().txt("shop.test", &include);
    let zone = Arc::new(ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap());
    let folder = new_folder();
    let mut config = config(folder.path(), &zone, 1);
    config.domains.spf_include = Some(domain(SERVICE));
    // What is published is seen at once.
    (config.dns.ttl_max, config.dns.negative_ttl_max) = (Duration::ZERO, Duration::ZERO);
    let running = Running::start_with(config, folder, zone).await;
    let tenant = running.tenant("shop").await;
    add_vip(&running, 1, Owner::Shared).await;
    add_vip(&running, 4, Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.test").await;

    // The tenant did its part, the operator not yet.
    let (verdict, advice, expected) = spf(&running).await;
    assert_eq!((verdict.as_str(), expected.as_str()), ("different", include.as_str()));
    assert!(advice.contains(SERVICE) && advice.contains("postern vip spf"), "{advice}");
    let (zone, records) = published(&running, &include).await;
    running.zone.replace(zone);
    let (verdict, advice, _) = spf(&running).await;
    assert_eq!((verdict.as_str(), records), ("found", 1), "{advice}");

    // The return-path names the service as well, and is judged by what comes of it.
    let path = "/tenants/shop/domains/shop.test/return-path";
    let (_, _, set) = ask(&running, "PUT", path, None, json!({})).await;
    assert_eq!(set["records"][1]["value"], json!(format!("v=spf1 include:{SERVICE} -all")), "{set}");
    let own = domain("shop.test");
    running.daemon.domains.verify_return_path(&operator(), (tenant, &own), Timestamp::now()).await.unwrap();
    assert_eq!(running.daemon.domains.return_name(tenant, &own), Some(domain("bounce.shop.test")));

    // More virtual IPs than fit into a record: until the operator publishes, its record is at fault.
    for number in 10..60 {
        add_vip(&running, number * 3, Owner::Shared).await;
    }
    let (verdict, advice, _) = spf(&running).await;
    assert!(verdict == "different" && advice.contains("postern vip spf"), "{verdict}: {advice}");
    let (zone, records) = published(&running, &include).await;
    running.zone.replace(zone);
    assert_eq!(spf(&running).await.0, "found", "the tenant changed nothing");
    assert!(records > 1, "{records}");

    // What a tenant merges it into is judged whole.
    for (record, verdict, told) in [
        (format!("v=spf1 mx include:{SERVICE} -all"), "found", ""),
        (format!("v=spf1 -all include:{SERVICE}"), "different", &*format!("add include:{SERVICE}")),
        ("v=spf1 include:shop.test ~all".to_owned(), "different", "includes itself"),
    ] {
        let (zone, _) = published(&running, &record).await;
        running.zone.replace(zone);
        let (seen, advice, _) = spf(&running).await;
        assert!(seen == verdict && advice.contains(told), "{record}: {seen} {advice}");
    }
    let (zone, _) = published(&running, &include).await;
    running.zone.replace(zone.txt("shop.test", "v=spf1 mx -all"));
    let (verdict, advice, _) = spf(&running).await;
    assert!(verdict == "different" && advice.contains("more than one"), "{advice}");

    let socket = running.daemon.socket.clone();
    let tool =
        move || Command::new(env!("CARGO_BIN_EXE_postern")).arg("--socket").arg(socket).args(["vip", "spf"]).output();
    let said = tokio::task::spawn_blocking(tool).await.unwrap().unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.status.success() && text.starts_with(&format!("; 52 addresses; tenants publish include:{SERVICE}\n")),
        "{text}"
    );
    assert_eq!(text.lines().filter(|line| line.contains(" IN TXT \"v=spf1 ")).count(), records, "{text}");
    running.stop().await;
}
