//! Checks of this machine: permissions, clock, disk, certificates, addresses. No network.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::Finding;
use crate::cli::output::{size, span};
use crate::config::Config;
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::net::{Certificates, Expiry, Issuer};
use crate::web::VipJson;

/// A certificate that ends within this is warned about.
const EXPIRY_WARNED: Duration = Duration::from_secs(21 * 86_400);
/// No clock may show a time before this release: 2026-01-01.
const CLOCK_MIN: Timestamp = Timestamp(1_767_225_600_000);
/// Nor one after 2100-01-01.
const CLOCK_MAX: Timestamp = Timestamp(4_102_444_800_000);
/// Free inodes below this share of all are warned about, in percent.
const INODES_FREE_PERCENT_MIN: u64 = 5;
/// What to do where something is missing that is there from the first day.
const MADE_BY_INIT: &str = "postern init makes it, or see the daemon's log";

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut found = vec![clock(Timestamp::now(), is_synchronised())];
    found.push(match config.master_key.path(std::env::var_os("CREDENTIALS_DIRECTORY").as_deref().map(Path::new)) {
        Ok(path) => private("master key", &path, 0o077, (MADE_BY_INIT, "chmod 600")),
        Err(text) => Finding::warn("master key", text, "not checked; it comes from systemd"),
    });
    found.push(private("data folder", &config.data, 0o027, (MADE_BY_INIT, "chmod 700")));
    found.push(socket(&config.web.socket));
    found.extend(disk(config));
    found.extend(certificates(config));
    found
}

/// What the system says about its clock: yes, no, or nobody to ask.
fn is_synchronised() -> Option<bool> {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    let asked = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output().ok()?;
    match String::from_utf8_lossy(&asked.stdout).trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn clock(now: Timestamp, is_synchronised: Option<bool>) -> Finding {
    let keep = "set it, and keep it set: timedatectl set-ntp true";
    if now < CLOCK_MIN || now > CLOCK_MAX {
        return Finding::fail("clock", format!("shows {now}"), keep);
    }
    match is_synchronised {
        Some(true) => Finding::ok("clock", "synchronised"),
        Some(false) => Finding::warn("clock", format!("shows {now} and is not synchronised"), keep),
        None => {
            let text = format!("shows {now}; whether it is synchronised is not known");
            Finding::warn("clock", text, "compare it with yours; chrony or systemd-timesyncd keeps it right")
        }
    }
}

fn socket(path: &Path) -> Finding {
    let missing = "the daemon makes it: systemctl start postern, or see its log";
    private("socket", path, 0o007, (missing, "restart the daemon; it makes the socket anew with mode"))
}

/// `denied` are mode bits nobody may have; the remedies are for a path that is not there, and for one
/// that is open to others.
fn private(check: &str, path: &Path, denied: u32, (missing, open): (&str, &str)) -> Finding {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Finding::warn(check, format!("{shown} cannot be looked at"), "run doctor as root")
        }
        Err(error) => Finding::fail(check, format!("{shown}: {error}"), missing),
        Ok(found) if found.mode() & denied != 0 => {
            let mode = found.mode() & 0o777;
            Finding::fail(check, format!("{shown} is open to others (mode {mode:o})"), format!("{open} {shown}"))
        }
        Ok(_) => Finding::ok(check, format!("{shown} is private")),
    }
}

fn disk(config: &Config) -> Vec<Finding> {
    let free = match rustix::fs::statvfs(&config.data) {
        Ok(free) => free,
        Err(error) => return vec![Finding::warn("disk", format!("cannot be asked: {error}"), "run doctor as root")],
    };
    let bytes = free.f_bavail.saturating_mul(free.f_frsize);
    // Some file systems have no fixed number of inodes and say 0.
    let percent = free.f_favail.saturating_mul(100).checked_div(free.f_files);
    vec![space(bytes, config.store.free_bytes_min), inodes(percent)]
}

fn space(bytes: u64, floor: u64) -> Finding {
    if bytes < floor {
        let remedy = "free some, or lower store.free_bytes_min; new mail is refused until then";
        Finding::fail("disk space", format!("{} free, the floor is {}", size(bytes), size(floor)), remedy)
    } else if bytes < floor.saturating_mul(2) {
        Finding::warn("disk space", format!("{} free, near the floor of {}", size(bytes), size(floor)), "free some")
    } else {
        Finding::ok("disk space", format!("{} free", size(bytes)))
    }
}

fn inodes(free_percent: Option<u64>) -> Finding {
    match free_percent {
        Some(percent) if percent < INODES_FREE_PERCENT_MIN => {
            Finding::warn("inodes", format!("{percent} % free"), "remove files, or use a larger file system")
        }
        Some(percent) => Finding::ok("inodes", format!("{percent} % free")),
        None => Finding::ok("inodes", "without limit"),
    }
}

fn certificates(config: &Config) -> Vec<Finding> {
    let folder = config.certificates.display();
    let open = match Certificates::open(&config.certificates, &config.hostname) {
        Ok(open) => open,
        Err(error) => {
            return vec![Finding::fail(
                "certificates",
                format!("{folder}: {error}"),
                "run doctor as root; docs/operate/tls.md",
            )];
        }
    };
    let mut found = Vec::new();
    if !open.has_default() {
        let remedy = format!("put fullchain.pem and privkey.pem into {folder}/{}", config.hostname);
        found.push(Finding::fail("certificate", format!("none for {}", config.hostname), remedy));
    }
    let now = Timestamp::now();
    found.extend(open.expiries().iter().map(|expiry| certificate(expiry, now)));
    found
}

fn certificate(expiry: &Expiry, now: Timestamp) -> Finding {
    let check = format!("certificate {}", expiry.folder);
    let left = expiry.not_after.since(now);
    let names = expiry.names.join(", ");
    if expiry.not_after <= now {
        Finding::fail(check, format!("of {names} has expired"), "renew it; it is taken over by itself")
    } else if expiry.not_before > now {
        Finding::fail(check, format!("of {names} is not valid yet"), "compare this machine's clock with yours")
    } else if left < EXPIRY_WARNED {
        Finding::warn(check, format!("of {names} ends in {}", span(left.as_secs())), "renew it now")
    } else if expiry.issuer == Issuer::Itself {
        let remedy = "clients do not trust it; put one of a certificate authority in its place: docs/operate/tls.md";
        Finding::warn(check, format!("of {names} is self-signed"), remedy)
    } else {
        Finding::ok(check, format!("of {names}, {} left", span(left.as_secs())))
    }
}

/// Whether each address is on this host.
pub(super) fn check_vips(vips: &[VipJson], is_present: fn(IpAddr) -> bool) -> Vec<Finding> {
    let one = |vip: &VipJson| {
        let local = vip.ipv4.map(IpAddr::V4).into_iter().chain(vip.ipv6.map(IpAddr::V6));
        let missing: Vec<String> =
            local.filter(|address| !is_present(*address)).map(|address| address.to_string()).collect();
        let check = format!("virtual IP {}", vip.ehlo);
        match missing.first() {
            None => Finding::ok(check, "on this host"),
            Some(first) => {
                let remedy = format!("its mail waits; add the address: ip address add {first} dev ...");
                Finding::fail(check, format!("{} is not on this host", missing.join(", ")), remedy)
            }
        }
    };
    vips.iter().map(one).collect()
}

/// Whether a certificate names what clients connect to.
pub(super) fn check_names(config: &Config, vips: &[VipJson]) -> Vec<Finding> {
    let Ok(open) = Certificates::open(&config.certificates, &config.hostname) else { return Vec::new() };
    let covered = |vip: &VipJson| {
        let name = Domain::parse(&vip.ehlo).ok()?;
        let check = format!("certificate for {name}");
        Some(if open.covers(&name) {
            Finding::ok(check, "there is one")
        } else {
            let remedy = "clients that connect to this name will warn; see docs/operate/tls.md";
            Finding::warn(check, "none has this name", remedy)
        })
    };
    vips.iter().filter_map(covered).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::Grade;
    use super::*;

    #[test]
    fn a_key_that_others_can_read_is_a_failure_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let open = private("master key", &path, 0o077, (MADE_BY_INIT, "chmod 600"));
        assert_eq!(open.grade, Grade::Fail);
        assert!(open.remedy.unwrap().starts_with("chmod 600 /"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(private("master key", &path, 0o077, (MADE_BY_INIT, "chmod 600")).grade, Grade::Ok);
        assert_eq!(private("master key", &folder.path().join("none"), 0o077, ("", "")).grade, Grade::Fail);
    }

    #[test]
    fn a_socket_that_is_not_there_is_made_by_the_daemon_and_not_by_init() {
        let folder = tempfile::tempdir().unwrap();
        let found = socket(&folder.path().join("admin.sock"));
        assert_eq!(found.grade, Grade::Fail);
        let remedy = found.remedy.unwrap();
        assert!(remedy.contains("start postern") && !remedy.contains("init"), "{remedy}");
    }

    #[test]
    fn a_clock_of_another_century_is_a_failure() {
        for (now, synchronised, grade) in [
            (0, Some(true), Grade::Fail),
            (5_000_000_000_000, Some(true), Grade::Fail),
            (1_795_342_500_000, Some(true), Grade::Ok),
            (1_795_342_500_000, Some(false), Grade::Warn),
            (1_795_342_500_000, None, Grade::Warn),
        ] {
            let found = clock(Timestamp(now), synchronised);
            assert_eq!((found.check.as_str(), found.grade), ("clock", grade));
            assert_eq!(found.remedy.is_some(), grade != Grade::Ok);
        }
    }

    #[test]
    fn too_little_room_is_told_before_it_is_too_late() {
        const FLOOR: u64 = 1 << 30;
        for (bytes, grade, remedy) in [
            (FLOOR - 1, Grade::Fail, "free some, or lower store.free_bytes_min"),
            (FLOOR, Grade::Warn, "free some"),
            (2 * FLOOR, Grade::Ok, ""),
        ] {
            let found = space(bytes, FLOOR);
            assert_eq!((found.check.as_str(), found.grade), ("disk space", grade), "{found:?}");
            assert!(found.remedy.unwrap_or_default().starts_with(remedy));
        }
        for (percent, grade) in [(Some(4), Grade::Warn), (Some(5), Grade::Ok), (None, Grade::Ok)] {
            assert_eq!(inodes(percent).grade, grade);
        }
    }

    #[test]
    fn a_certificate_is_warned_about_21_days_before_it_ends() {
        const DAY: u64 = 86_400_000;
        const NOW: u64 = 1_795_342_500_000;
        for (begins, ends, issuer, grade, text) in [
            (NOW - DAY, NOW, Issuer::Authority, Grade::Fail, "has expired"),
            (NOW + 1, NOW + 90 * DAY, Issuer::Authority, Grade::Fail, "is not valid yet"),
            (NOW - DAY, NOW + 21 * DAY - 1, Issuer::Authority, Grade::Warn, "ends in 20 d"),
            (NOW - DAY, NOW + 21 * DAY, Issuer::Authority, Grade::Ok, "21 d"),
            (NOW - DAY, NOW + 3_000 * DAY, Issuer::Itself, Grade::Warn, "is self-signed"),
            (NOW - DAY, NOW + DAY, Issuer::Itself, Grade::Warn, "ends in"),
        ] {
            let (not_before, not_after) = (Timestamp(begins), Timestamp(ends));
            let names = vec!["mx.shop.example".to_owned()];
            let found =
                certificate(&Expiry { folder: "mx".to_owned(), names, not_before, not_after, issuer }, Timestamp(NOW));
            assert_eq!(found.grade, grade, "{found:?}");
            assert!(found.found.starts_with("of mx.shop.example") && found.found.contains(text), "{found:?}");
            assert_eq!(found.remedy.is_some(), grade != Grade::Ok);
        }
    }

    #[test]
    fn each_address_of_a_virtual_ip_that_is_missing_is_named_with_the_command_that_adds_it() {
        let vip: VipJson = serde_json::from_value(serde_json::json!({
            "id": "1", "ipv4": "203.0.113.7", "ipv6": "2001:db8::7", "public_ipv4": null, "public_ipv6": null,
            "ehlo": "mx.shop.example", "tenant": "shop", "missing": [],
        }))
        .unwrap();
        for (is_present, grade, text) in [
            ((|_| true) as fn(IpAddr) -> bool, Grade::Ok, "on this host"),
            (|address| address.is_ipv4(), Grade::Fail, "2001:db8::7 is not on this host"),
            (|_| false, Grade::Fail, "203.0.113.7, 2001:db8::7 is not on this host"),
        ] {
            let found = check_vips(std::slice::from_ref(&vip), is_present).remove(0);
            assert_eq!((found.check.as_str(), found.grade), ("virtual IP mx.shop.example", grade));
            assert_eq!(found.found, text);
            assert!(grade == Grade::Ok || found.remedy.unwrap().contains("ip address add "));
        }
    }
}
