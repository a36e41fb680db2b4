//! `postern init`: what a machine needs before the first start. Refuses to overwrite anything.
//!
//! Works without a daemon and touches three places: the configuration folder, the certificate
//! folder, the data folder. Easy to get wrong: the daemon runs as its own user and must be able to
//! read the key; whoever runs this as root is told how, or it is done if that user exists already.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::arguments::Init;
use super::client::Fault;
use super::output;
use crate::config;
use crate::net::Certificates;
use crate::seal::MasterKey;
use crate::web::INSTANCE_NAME;

/// The user the systemd unit runs the daemon as.
const USER: &str = "postern";

/// Where everything goes.
#[derive(Debug)]
struct Places {
    config: PathBuf,
    key: PathBuf,
    certificates: PathBuf,
    data: PathBuf,
}

/// Sets the machine up, or says why not, before anything was changed.
pub fn run(init: &Init) -> Result<(), Fault> {
    let places = Places {
        config: init.config_dir.join("postern.toml"),
        key: init.config_dir.join("master.key"),
        certificates: init.config_dir.join("certificates"),
        data: init.data_dir.clone(),
    };
    check(init, &places)?;
    let text = configuration(init, &places);
    let config = make(init, &places, &text)?;
    let records = super::runtime()?
        .block_on(crate::daemon::prepare(&config))
        .map_err(|error| Fault::Failed(format!("{error}; remove what was made and run init again")))?;
    let handed_over = hand_over(init, &places)?;
    output::print(&next_steps(init, &places, (handed_over, &records)));
    Ok(())
}

fn check(init: &Init, places: &Places) -> Result<(), Fault> {
    if !init.hostname.as_str().contains('.') {
        return Err(Fault::Failed(format!("{} is not a full name such as mx.example.com", init.hostname)));
    }
    for folder in [&init.config_dir, &init.data_dir] {
        if !folder.is_absolute() {
            return Err(Fault::Failed(format!("{} must be an absolute path", folder.display())));
        }
    }
    for path in [&places.config, &places.key] {
        if fs::symlink_metadata(path).is_ok() {
            let text = format!("{} is there already; nothing was changed (init never overwrites)", path.display());
            return Err(Fault::Failed(text));
        }
    }
    let holds_something = fs::read_dir(&places.data).is_ok_and(|mut entries| entries.next().is_some());
    if holds_something {
        let text = format!("the data folder {} is not empty; nothing was changed", places.data.display());
        return Err(Fault::Failed(text));
    }
    Ok(())
}

/// The example file with the paths that differ from the defaults set.
fn configuration(init: &Init, places: &Places) -> String {
    let example = config::example(&init.hostname);
    let set = [("data", &places.data), ("certificates", &places.certificates), ("master_key", &places.key)];
    let line = |line: &str| {
        let wanted = set.iter().find(|(name, _)| line.starts_with(&format!("#{name} = ")));
        match wanted {
            Some((name, path)) if !line.ends_with(&format!("\"{}\"", path.display())) => {
                format!("{name} = {}\n", toml_string(path))
            }
            _ => format!("{line}\n"),
        }
    };
    example.lines().map(line).collect()
}

fn toml_string(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}

fn make(init: &Init, places: &Places, text: &str) -> Result<config::Config, Fault> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| Fault::Failed(format!("{}: {error}", path.display()));
    make_folder(&init.config_dir, 0o755).map_err(|error| failed(&init.config_dir, &error))?;
    make_folder(&places.certificates, 0o750).map_err(|error| failed(&places.certificates, &error))?;
    make_folder(&places.data, 0o700).map_err(|error| failed(&places.data, &error))?;
    MasterKey::generate(&places.key).map_err(|error| failed(&places.key, &error))?;
    if !places.certificates.join(init.hostname.as_str()).exists() {
        Certificates::write_self_signed(&places.certificates, &init.hostname)
            .map_err(|error| failed(&places.certificates, &error))?;
    }
    // Last, so that an interrupted run may be repeated after removing what it made.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&places.config)
        .map_err(|error| failed(&places.config, &error))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| failed(&places.config, &error))?;
    config::load(&places.config).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Fault::Configuration(lines.join("\npostern: "))
    })
}

fn make_folder(path: &Path, mode: u32) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Whether the daemon's user owns what it must read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandOver {
    /// It does now.
    Done,
    /// There is no such user yet.
    NoUser,
    /// Not running as root: the files belong to whoever ran this.
    NotRoot,
}

fn hand_over(init: &Init, places: &Places) -> Result<HandOver, Fault> {
    if !rustix::process::geteuid().is_root() {
        return Ok(HandOver::NotRoot);
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let Some((uid, gid)) = user_numbers(&users, USER) else { return Ok(HandOver::NoUser) };
    // The unit may set the folder to 0750: the daemon reads it as a member of its group.
    chown(&init.config_dir, None, Some(gid))
        .map_err(|error| Fault::Failed(format!("{}: {error}", init.config_dir.display())))?;
    let mut paths = vec![places.key.clone(), places.data.clone(), places.certificates.clone()];
    everything_in(&places.data, &mut paths);
    everything_in(&places.certificates.join(init.hostname.as_str()), &mut paths);
    paths.push(places.certificates.join(init.hostname.as_str()));
    for path in paths {
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid))
            .map_err(|error| Fault::Failed(format!("{}: {error}", path.display())))?;
    }
    Ok(HandOver::Done)
}

/// Every file and folder below `folder`; links are not followed.
fn everything_in(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            everything_in(&entry.path(), found);
        }
        found.push(entry.path());
    }
}

fn user_numbers(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let uid = fields.nth(1)?.parse().ok()?;
        Some((uid, fields.next()?.parse().ok()?))
    })
}

/// A record to publish and what it is for.
type Advice = (String, String);

fn next_steps(init: &Init, places: &Places, (handed_over, records): (HandOver, &[Advice])) -> String {
    let name = &init.hostname;
    let is_default = places.config == Path::new(config::DEFAULT_PATH);
    let config = if is_default { String::new() } else { format!(" --config {}", places.config.display()) };
    let start = if is_default && handed_over != HandOver::NotRoot {
        "systemctl enable --now postern     (the unit file is systemd/postern.service)".to_owned()
    } else {
        format!("postern{config} serve     (systemd/postern.service reads {})", config::DEFAULT_PATH)
    };
    format!(
        "{made}\n{user}\
         DNS records to publish for this machine:\n  {name}.  A     (its IPv4 address)\n  {name}.  AAAA  (its IPv6 address, if it has one)\n  \
         PTR of each address: {name}.  (set where you rent the address)\n\
         {keys}\n\
         Next:\n  {start}\n  postern{config} doctor\n  \
         postern{config} domain verify {INSTANCE_NAME} {name}     (once the records above are published)\n  \
         postern{config} tenant add shop\n  postern{config} vip add ADDRESS --ehlo {name} --tenant shop\n  \
         postern{config} domain add shop DOMAIN     (prints the records that prove it is yours)\n  \
         postern{config} domain verify shop DOMAIN\n  postern{config} smtp-account add shop\n  \
         postern{config} user set-up-link     (the first admin of the API on admin.listen; the log has one too)\n",
        made = made(init, places),
        keys = records.iter().map(|(line, purpose)| format!("  {line}\n      {purpose}\n")).collect::<String>(),
        user = user_steps(init, places, handed_over),
    )
}

/// What was made, in two columns.
fn made(init: &Init, places: &Places) -> String {
    let rows = [
        (&places.config, "configuration".to_owned()),
        (&places.key, "master key; keep a copy in a safe place, never beside a backup of the data".to_owned()),
        (
            &places.certificates,
            format!("certificates; a self-signed one for {} until you put a real one there", init.hostname),
        ),
        (&places.data, "data folder".to_owned()),
    ];
    let widest = rows.iter().map(|(path, _)| path.display().to_string().len()).max().unwrap_or(0);
    let row = |(path, what): &(&PathBuf, String)| format!("  {:<widest$}  {what}\n", path.display().to_string());
    format!("Made:\n{}", rows.iter().map(row).collect::<String>())
}

fn user_steps(init: &Init, places: &Places, handed_over: HandOver) -> String {
    match handed_over {
        HandOver::Done => format!("They belong to the user {USER}, as which the daemon runs.\n\n"),
        HandOver::NotRoot => "Run the daemon as the user who ran this, or give these files to its user.\n\n".to_owned(),
        HandOver::NoUser => format!(
            "Make the daemon's user and give it its files:\n  \
             useradd --system --user-group --home-dir {data} --shell /usr/sbin/nologin {USER}\n  \
             chown -R {USER}:{USER} {data} {certificates} {key}\n  chgrp {USER} {config}\n\n",
            config = init.config_dir.display(),
            data = places.data.display(),
            certificates = places.certificates.display(),
            key = places.key.display(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Domain;

    fn init(folder: &Path) -> Init {
        Init {
            hostname: Domain::parse("mx.example.com").unwrap(),
            config_dir: folder.join("etc"),
            data_dir: folder.join("data"),
        }
    }

    #[test]
    fn a_fresh_machine_gets_a_configuration_that_checks_a_private_key_and_a_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let init = init(folder.path());
        run(&init).unwrap();
        let config = config::load(&init.config_dir.join("postern.toml")).unwrap();
        assert_eq!(config.data, init.data_dir);
        assert_eq!(config.certificates, init.config_dir.join("certificates"));
        let key = init.config_dir.join("master.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        MasterKey::load(&key).unwrap();
        assert!(init.config_dir.join("certificates/mx.example.com/fullchain.pem").exists());
        assert_eq!(fs::metadata(&init.data_dir).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_to_do_next_depends_on_who_ran_it_and_where_it_went() {
        let usual = Init {
            hostname: Domain::parse("mx.example.com").unwrap(),
            config_dir: "/etc/postern".into(),
            data_dir: "/var/lib/postern".into(),
        };
        let places = |init: &Init| Places {
            config: init.config_dir.join("postern.toml"),
            key: init.config_dir.join("master.key"),
            certificates: init.config_dir.join("certificates"),
            data: init.data_dir.clone(),
        };
        let records = [("p1._domainkey.mx.example.com. IN TXT \"v=DKIM1\"".to_owned(), "DKIM key".to_owned())];
        let done = next_steps(&usual, &places(&usual), (HandOver::Done, &records));
        assert!(done.contains("systemctl enable --now postern") && !done.contains("useradd"), "{done}");
        assert!(done.contains("\n  p1._domainkey.mx.example.com. IN TXT \"v=DKIM1\"\n      DKIM key\n"), "{done}");
        assert!(
            next_steps(&usual, &places(&usual), (HandOver::NoUser, &[])).contains("chown -R postern:postern /var/lib")
        );
        let folder = tempfile::tempdir().unwrap();
        let own = init(folder.path());
        let elsewhere = next_steps(&own, &places(&own), (HandOver::NotRoot, &[]));
        assert!(elsewhere.contains("etc/postern.toml serve") && !elsewhere.contains("systemctl"), "{elsewhere}");
    }

    #[test]
    fn nothing_is_ever_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let init = init(folder.path());
        run(&init).unwrap();
        let key = fs::read(init.config_dir.join("master.key")).unwrap();
        let again = run(&init).unwrap_err().to_string();
        assert!(again.contains("postern.toml is there already") && again.contains("nothing was changed"), "{again}");
        assert_eq!(fs::read(init.config_dir.join("master.key")).unwrap(), key);
        fs::remove_file(init.config_dir.join("postern.toml")).unwrap();
        assert!(run(&init).unwrap_err().to_string().contains("master.key is there already"));
    }

    #[test]
    fn a_data_folder_in_use_or_a_bare_hostname_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let mut init = init(folder.path());
        fs::create_dir_all(&init.data_dir).unwrap();
        fs::write(init.data_dir.join("x"), "x").unwrap();
        assert!(run(&init).unwrap_err().to_string().contains("is not empty"));
        init.hostname = Domain::parse("mx").unwrap();
        assert!(run(&init).unwrap_err().to_string().contains("not a full name"));
        assert!(!init.config_dir.exists());
    }

    #[test]
    fn the_daemons_user_is_found_by_its_exact_name() {
        let users = "postern2:x:7:8::/:/\npostern:x:990:991::/:/\n";
        assert_eq!(user_numbers(users, "postern"), Some((990, 991)));
        assert_eq!(user_numbers(users, "post"), None);
    }
}
