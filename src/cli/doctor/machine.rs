//! Checks of this machine: permissions, clock, disk, certificates, addresses. No network.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::Finding;
use crate::cli::output::{size, span};
use crate::config::Config;
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::net::{self, Certificates, Issuer};
use crate::web::VipJson;

/// A certificate that ends within this is warned about.
const EXPIRY_WARNED: Duration = Duration::from_secs(21 * 86_400);
/// No clock may show a time before this release: 2026-01-01.
const CLOCK_MIN: Timestamp = Timestamp(1_767_225_600_000);
/// Nor one after 2100-01-01.
const CLOCK_MAX: Timestamp = Timestamp(4_102_444_800_000);
/// Free inodes below this share of all are warned about, in percent.
const INODES_FREE_PERCENT_MIN: u64 = 5;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut found = vec![clock(Timestamp::now())];
    found.push(match config.master_key.path(std::env::var_os("CREDENTIALS_DIRECTORY").as_deref().map(Path::new)) {
        Ok(path) => private("master key", &path, 0o077, "chmod 600"),
        Err(text) => Finding::warn("master key", text, "not checked; it comes from systemd"),
    });
    found.push(private("data folder", &config.data, 0o027, "chmod 700"));
    found.push(private("socket", &config.web.socket, 0o007, "restart the daemon; it makes the socket anew with mode"));
    found.extend(disk(config));
    found.extend(certificates(config));
    found
}

fn clock(now: Timestamp) -> Finding {
    if now < CLOCK_MIN || now > CLOCK_MAX {
        return Finding::fail("clock", format!("shows {now}"), "set it, and keep it set: timedatectl set-ntp true");
    }
    let is_synchronised = Path::new("/run/systemd/timesync/synchronized").exists();
    if is_synchronised {
        Finding::ok("clock", "synchronised")
    } else {
        Finding::ok("clock", format!("shows {now}; compare it with yours"))
    }
}

/// `denied` are mode bits nobody may have.
fn private(check: &str, path: &Path, denied: u32, remedy: &str) -> Finding {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Finding::warn(check, format!("{shown} cannot be looked at"), "run doctor as root")
        }
        Err(error) => {
            Finding::fail(check, format!("{shown}: {error}"), "postern init makes it, or see the daemon's log")
        }
        Ok(found) if found.mode() & denied != 0 => {
            let mode = found.mode() & 0o777;
            Finding::fail(check, format!("{shown} is open to others (mode {mode:o})"), format!("{remedy} {shown}"))
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
    let floor = config.store.free_bytes_min;
    let space = if bytes < floor {
        let remedy = "free some, or lower store.free_bytes_min; new mail is refused until then";
        Finding::fail("disk space", format!("{} free, the floor is {}", size(bytes), size(floor)), remedy)
    } else if bytes < floor.saturating_mul(2) {
        Finding::warn("disk space", format!("{} free, near the floor of {}", size(bytes), size(floor)), "free some")
    } else {
        Finding::ok("disk space", format!("{} free", size(bytes)))
    };
    // Some file systems have no fixed number of inodes and say 0.
    let percent = free.f_favail.saturating_mul(100).checked_div(free.f_files);
    let inodes = match percent {
        Some(percent) if percent < INODES_FREE_PERCENT_MIN => {
            Finding::warn("inodes", format!("{percent} % free"), "remove files, or use a larger file system")
        }
        Some(percent) => Finding::ok("inodes", format!("{percent} % free")),
        None => Finding::ok("inodes", "without limit"),
    };
    vec![space, inodes]
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
    let now = Timestamp::now();
    let mut found = Vec::new();
    if !open.has_default() {
        let remedy = format!("put fullchain.pem and privkey.pem into {folder}/{}", config.hostname);
        found.push(Finding::fail("certificate", format!("none for {}", config.hostname), remedy));
    }
    for expiry in open.expiries() {
        let check = format!("certificate {}", expiry.folder);
        let left = expiry.not_after.since(now);
        let names = expiry.names.join(", ");
        found.push(if expiry.not_after <= now {
            Finding::fail(check, format!("of {names} has expired"), "renew it; it is taken over by itself")
        } else if left < EXPIRY_WARNED {
            Finding::warn(check, format!("of {names} ends in {}", span(left.as_secs())), "renew it now")
        } else if expiry.issuer == Issuer::Itself {
            let remedy =
                "clients do not trust it; put one of a certificate authority in its place: docs/operate/tls.md";
            Finding::warn(check, format!("of {names} is self-signed"), remedy)
        } else {
            Finding::ok(check, format!("of {names}, {} left", span(left.as_secs())))
        });
    }
    found
}

/// Whether each address is on this host.
pub(super) fn check_vips(vips: &[VipJson]) -> Vec<Finding> {
    let one = |vip: &VipJson| {
        let local = vip.ipv4.map(std::net::IpAddr::V4).into_iter().chain(vip.ipv6.map(std::net::IpAddr::V6));
        let missing: Vec<String> =
            local.filter(|address| !net::is_present(*address)).map(|address| address.to_string()).collect();
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
        let open = private("master key", &path, 0o077, "chmod 600");
        assert_eq!(open.grade, Grade::Fail);
        assert!(open.remedy.unwrap().starts_with("chmod 600 /"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(private("master key", &path, 0o077, "chmod 600").grade, Grade::Ok);
        assert_eq!(private("master key", &folder.path().join("none"), 0o077, "").grade, Grade::Fail);
    }

    #[test]
    fn a_clock_of_another_century_is_a_failure() {
        assert_eq!(clock(Timestamp(0)).grade, Grade::Fail);
        assert_eq!(clock(Timestamp(1_795_342_500_000)).grade, Grade::Ok);
        assert_eq!(clock(Timestamp(5_000_000_000_000)).grade, Grade::Fail);
    }
}
