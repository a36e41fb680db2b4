//! Lists by file and by the command line, against a whole daemon.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use postern::ext::Timestamp;
use postern::mail::Address;
use postern::net::Zone;
use postern::vips::Owner;
use serde_json::Value;

use crate::harness::daemon::Running;
use crate::sending_by_http::ask;

async fn postern(socket: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("--socket").arg(socket).args(arguments);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    (done.status.success(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_goes_in_and_out_by_file_and_counts_for_mail_at_once() {
    let running = Running::start(Zone::new(), 25).await;
    let tenant = running.tenant("shop").await;
    running.vip(Ipv4Addr::LOCALHOST, "shop.example.com", Owner::Tenant(tenant)).await;
    running.trusted_domain(tenant, "shop.example.com").await;
    let (folder, socket) = (tempfile::tempdir().unwrap(), running.daemon.socket.clone());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let mut text = "email,reason\r\n".to_owned();
    (0..1200).for_each(|number| text.push_str(&format!("u{number}@receiver.test,unsubscribe\r\n")));
    text.push_str("nonsense,unsubscribe\r\n=1+1@receiver.test,manual\r\n");
    fs::write(file("in.csv"), text).unwrap();
    let (is_done, said) = postern(&socket, &["suppression", "import", "shop", &file("in.csv")]).await;
    assert!(is_done && said.contains("1202 lines: 1201 added, 0 were there, 1 rejected"), "{said}");
    assert!(said.contains("1201,") && said.contains("nonsense"), "the rejected line is printed: {said}");
    let (_, again) = postern(&socket, &["suppression", "import", "shop", &file("in.csv")]).await;
    assert!(again.contains("0 added, 1201 were there"), "{again}");

    let (is_done, said) = postern(&socket, &["suppression", "export", "shop", &file("out.csv")]).await;
    assert!(is_done && said.contains("1201 entries written"), "{said}");
    let out = fs::read_to_string(file("out.csv")).unwrap();
    assert!(out.lines().count() == 1202 && out.contains("'=1+1@receiver.test"), "{}", &out[..200]);
    let (is_done, said) = postern(&socket, &["suppression", "export", "shop", &file("out.csv")]).await;
    assert!(!is_done && said.contains("exists"), "a file that is there is not overwritten: {said}");
    let (_, said) = postern(&socket, &["suppression", "operations", "shop"]).await;
    assert!(said.matches("done").count() == 3 && said.contains("import") && said.contains("export"), "{said}");

    let (_, said) = postern(&socket, &["suppression", "operations", "--kind", "export", "--text", "UID "]).await;
    assert!(said.contains("export") && !said.contains("import") && said.contains("shop"), "{said}");
    let (_, said) = postern(&socket, &["suppression", "operations", "--state", "failed"]).await;
    assert!(said.contains("there are none"), "{said}");
    let (is_done, said) = postern(&socket, &["suppression", "operations", "--kind", "weather"]).await;
    assert!(!is_done && said.contains("import, export, tenant-export"), "{said}");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, _, page) = ask(&running, "GET", &format!("/operations?limit=1{cursor}"), None, Value::Null).await;
        assert!(status == 200 && page["rows"].as_array().unwrap().len() == 1, "{page}");
        seen.push(page["rows"][0]["id"].as_str().unwrap().to_owned());
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let distinct: std::collections::BTreeSet<&String> = seen.iter().collect();
    assert!(seen.len() == 3 && distinct.len() == 3, "each once, in pages: {seen:?}");
    assert!(seen.is_sorted_by(|one, other| one > other), "newest first: {seen:?}");

    let (is_done, said) =
        postern(&socket, &["suppression", "add", "shop", "a@x.test", "b@x.test", "--note", "n"]).await;
    assert!(is_done && said.contains("2 entries added"), "{said}");
    let (_, said) = postern(&socket, &["suppression", "list", "shop", "--beginning", "b@"]).await;
    assert!(said.contains("b@x.test") && !said.contains("a@x.test"), "{said}");
    let (_, said) = postern(&socket, &["suppression", "add", "shop", "x.test", "--white"]).await;
    assert!(said.contains("mails x.test"), "{said}");

    let login = running.account(tenant).await;
    let message = "From: <orders@shop.example.com>\r\nTo: <someone@receiver.test>\r\nSubject: x\r\n\r\nx";
    let reply = running.submit(&login, "orders@shop.example.com", "u7@receiver.test", message).await;
    assert!(
        reply.starts_with("250 ") && running.daemon.queue.totals().lanes == 0,
        "taken, and owed to nobody: {reply}"
    );
    let is_suppressed = |address: &str| {
        let (address, now) = (Address::parse(address).unwrap(), Timestamp::now());
        running.daemon.suppression.contains(tenant, None, &address, now).unwrap()
    };
    assert_eq!(
        [is_suppressed("u7@receiver.test"), is_suppressed("a@x.test")],
        [true, false],
        "x.test is on the whitelist"
    );
    running.stop().await;
}
