//! Looks, without starting, at the files the configuration names and the daemon cannot start without.
//!
//! Easy to get wrong: what this user may not read may be all right for the daemon's; that is said and is
//! not called wrong. No secret is shown.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use super::world;
use crate::config::{Config, SecretPlace};

/// What a look at the files came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What the daemon would refuse to start with, each a sentence, as it would say it.
    pub problems: Vec<String>,
    /// What could not be looked at from here, each a sentence.
    pub unseen: Vec<String>,
}

/// Looks at the master key, the certificates and the roots of one's own.
pub fn look(config: &Config) -> Look {
    let mut look = Look::default();
    match &config.master_key {
        SecretPlace::Credential(name) if std::env::var_os("CREDENTIALS_DIRECTORY").is_none() => {
            look.unseen.push(format!("the master key is the credential {name:?}, which only systemd has"));
        }
        SecretPlace::File(path) if is_closed(path) => look.unseen.push(not_yours("the master key", path)),
        _ => look.problems.extend(world::master_key(config, None).err().map(|error| error.to_string())),
    }
    if let Err(error) = world::certificates(config) {
        match closed_certificate(&config.certificates) {
            true => look.unseen.push(not_yours("the certificate folder", &config.certificates)),
            false => look.problems.push(error.to_string()),
        }
    }
    match &config.trusted_roots {
        Some(path) if is_closed(path) => look.unseen.push(not_yours("tls.trusted_roots", path)),
        _ => look.problems.extend(world::client_tls(config, None).err().map(|error| error.to_string())),
    }
    look
}

fn not_yours(what: &str, path: &Path) -> String {
    format!("{what} {} is not open to you; check as root or as the daemon's user", path.display())
}

/// Whether it is there, or may be, and this user may not read it.
fn is_closed(path: &Path) -> bool {
    File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// Whether this user may not read the certificate folder or something in it.
fn closed_certificate(folder: &Path) -> bool {
    let names = match std::fs::read_dir(folder) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()),
        Err(error) => return error.kind() == ErrorKind::PermissionDenied,
    };
    names
        .into_iter()
        .any(|name| is_closed(&name) || ["privkey.pem", "fullchain.pem"].iter().any(|file| is_closed(&name.join(file))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::seal::MasterKey;

    #[test]
    fn what_the_daemon_would_not_start_with_is_told_all_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let own = |name: &str| folder.path().join(name);
        let text = format!(
            "hostname = \"mx.example.com\"\ndata = \"{0}/data\"\n[tls]\ncertificates = \"{0}/certificates\"\n\
             trusted_roots = \"{0}/roots.pem\"\n[secrets]\nmaster_key = \"{0}/master.key\"\n",
            folder.path().display()
        );
        let config = crate::config::read(&own("postern.toml"), &text).unwrap();
        let missing = look(&config).problems;
        assert_eq!(missing.len(), 3, "{missing:?}");
        assert!(missing[0].contains("master.key") && missing[0].contains("postern init"), "{missing:?}");
        assert!(missing[1].contains("the certificate folder"), "{missing:?}");
        assert!(missing[2].starts_with("tls.trusted_roots"), "{missing:?}");

        let key = MasterKey::generate(&own("master.key")).unwrap();
        std::fs::set_permissions(own("master.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let name = own("certificates").join("mx.example.com");
        std::fs::create_dir_all(&name).unwrap();
        let open = look(&config).problems;
        assert!(open[0].contains("its mode is 0644") && !open[0].contains(key.line().trim()), "{open:?}");
        assert!(open[1].contains("no usable certificate"), "{open:?}");

        std::fs::set_permissions(own("master.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["mx.example.com".to_owned()]).unwrap();
        std::fs::write(name.join("fullchain.pem"), made.cert.pem()).unwrap();
        std::fs::write(name.join("privkey.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(own("roots.pem"), made.cert.pem()).unwrap();
        assert_eq!(look(&config), Look::default());
    }

    #[test]
    fn a_credential_is_not_called_wrong_where_systemd_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let text = "hostname = \"mx.example.com\"\n[secrets]\nmaster_key = \"credential:postern\"\n";
        let config = crate::config::read(&folder.path().join("postern.toml"), text).unwrap();
        let found = look(&config);
        assert!(found.unseen.iter().any(|line| line.contains("credential")), "{found:?}");
        assert!(!found.problems.iter().any(|line| line.contains("credential")), "{found:?}");
    }
}
