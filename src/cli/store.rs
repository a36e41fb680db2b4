//! `postern store`: the data folder while no daemon has it open; the folder's lock sees to that.
//!
//! `verify` changes nothing. `salvage` reads the message segments and the copy of the records, and puts
//! what people manage and the mail that is not settled into a new data folder. Easy to get wrong: the
//! old folder is never written to.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::arguments::{Everywhere, Store};
use super::client::Fault;
use super::output::{print, print_json, size};
use crate::backup;
use crate::config::Config;
use crate::ext::Timestamp;
use crate::mail::{Body, Sealed};
use crate::queue::{FoundBody, Gap, Queue, Salvaged};
use crate::store::{self, Batch, FoundRecords, Opened};

/// Damage shown, at most.
const DAMAGE_SHOWN_MAX: usize = 100;

/// Where the store is within a data folder, as the daemon has it.
const STORE: &str = "store";

/// Carries out one of them on the configured data folder.
pub async fn run(everywhere: &Everywhere, config: &Config, command: &Store) -> Result<(), Fault> {
    let own = rustix::process::geteuid().as_raw();
    may_open(&config.store.folder, own).map_err(Fault::Failed)?;
    match command {
        Store::Verify => verify(everywhere, &config.store.folder),
        Store::Migrate { into } => migrate(everywhere, config, into).await,
        Store::Salvage { into: None, .. } => salvage(everywhere, config, None).await,
        Store::Salvage { into: Some(folder), held } => {
            let holds_something = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
            if holds_something {
                let text = format!("{} is not empty; name a new folder", folder.display());
                return Err(Fault::Failed(text));
            }
            let mail = if *held { Mail::Held } else { Mail::Due };
            salvage(everywhere, config, Some((folder, mail))).await
        }
    }
}

/// Whether there is a store, and files made while it is open will belong to the daemon's user:
/// one that root leaves behind keeps the daemon from starting.
pub(super) fn may_open(folder: &Path, own: u32) -> Result<(), String> {
    let shown = folder.display();
    let owner = match std::fs::metadata(folder) {
        Ok(found) => found.uid(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("there is no store at {shown}: no daemon has run with this configuration yet"));
        }
        Err(error) => return Err(format!("{shown}: {error}; run this as the user the daemon runs as")),
    };
    if owner == own {
        return Ok(());
    }
    Err(format!(
        "{shown} belongs to the user with number {owner}: run this as that user, or the daemon could not open the files \
         afterwards: runuser -u postern -- postern store ..."
    ))
}

pub(super) fn unopened(folder: &Path, error: &store::OpenError) -> Fault {
    match error {
        store::OpenError::InUse(_) => {
            Fault::Failed(format!("{error}; if that is the daemon, stop it first: systemctl stop postern"))
        }
        store::OpenError::Newer(_) => Fault::Configuration(error.to_string()),
        _ => Fault::Failed(format!("{}: {error}", folder.display())),
    }
}

fn verify(everywhere: &Everywhere, folder: &Path) -> Result<(), Fault> {
    let report = store::verify(folder).map_err(|error| unopened(folder, &error))?;
    if everywhere.json {
        print_json(&serde_json::json!({
            "records": report.records,
            "copied": report.copied,
            "bodies": report.bodies,
            "body_bytes": report.body_bytes,
            "segments": report.segments,
            "frames": report.frames,
            "damaged": report.damaged,
        }));
    } else {
        print(&format!(
            "{} records, {}; {} messages of {} in {} segments, {} checksums computed\n",
            report.records,
            report
                .copied
                .map_or("no copy of them yet".to_owned(), |copied| format!("{copied} compared with their copy")),
            report.bodies,
            size(report.body_bytes),
            report.segments,
            report.frames
        ));
        show_damage(&report.damaged);
    }
    match report.damaged.len() {
        0 => Ok(()),
        count => Err(Fault::Failed(format!("{count} damaged places; postern store salvage saves the mail"))),
    }
}

async fn migrate(everywhere: &Everywhere, config: &Config, into: &Path) -> Result<(), Fault> {
    let holds_something = std::fs::read_dir(into).is_ok_and(|mut entries| entries.next().is_some());
    if holds_something {
        return Err(Fault::Failed(format!("{} is not empty; name a new folder", into.display())));
    }
    let (old, folder, handle) = (config.store.clone(), into.to_owned(), tokio::runtime::Handle::current());
    let migrated = tokio::task::spawn_blocking(move || backup::migrate(old, &folder, &handle)).await;
    let migrated = migrated.map_err(|error| Fault::Failed(error.to_string()))??;
    if everywhere.json {
        print_json(&serde_json::json!({
            "records": migrated.records, "bodies": migrated.bodies, "files": migrated.files,
            "unreadable": migrated.unreadable,
        }));
    } else {
        print(&format!(
            "{} records, {} messages and {} files of past events are in {} and read back as they were.\nThe old folder \
             is as it was. To serve from the new one, set data to it; never start both.\n",
            migrated.records,
            migrated.bodies,
            migrated.files,
            into.display()
        ));
        show_damage(&migrated.unreadable);
    }
    match migrated.unreadable.len() {
        0 => Ok(()),
        count => Err(Fault::Failed(format!("{count} messages could not be read and are missing in the new folder"))),
    }
}

fn show_damage(damage: &[String]) {
    damage
        .iter()
        .take(DAMAGE_SHOWN_MAX)
        .for_each(|what| print(&format!("damaged: {}\n", crate::mail::printable(what))));
    if let Some(more) = damage.len().checked_sub(DAMAGE_SHOWN_MAX).filter(|more| *more > 0) {
        print(&format!("and {more} more\n"));
    }
}

/// What becomes of salvaged mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mail {
    /// It leaves as soon as its virtual IP is there.
    Due,
    /// It waits for people.
    Held,
}

/// What became of the bodies.
#[derive(Default, serde::Serialize)]
struct Tally {
    records: u64,
    bodies: u64,
    owed: u64,
    settled: u64,
    held: u64,
    failed: Vec<String>,
}

/// Whether a record is put into the new folder as it is. Mail is owed anew from its body; facts about
/// the past have files of their own.
fn is_salvaged(key: &[u8]) -> bool {
    let of_the_past = [store::prefix::ENGINE, store::prefix::EVENT, store::prefix::HISTORY];
    key.first().is_some_and(|first| !of_the_past.contains(first)) && !crate::queue::is_of_owed_mail(key)
}

async fn salvage(everywhere: &Everywhere, config: &Config, into: Option<(&PathBuf, Mail)>) -> Result<(), Fault> {
    let gap = Gap { from: last_written(&config.store.folder), to: Timestamp::now() };
    let records = store::salvage_records(&config.store.folder, is_salvaged);
    let records = records.map_err(|error| unopened(&config.store.folder, &error))?;
    let mut bodies = store::salvage(&config.store.folder).map_err(|error| unopened(&config.store.folder, &error))?;
    let queue = match into {
        None => None,
        Some((folder, _)) => Some(new_queue(config, folder, &records).await?),
    };
    let mut tally = Tally { records: records.records.len() as u64, ..Tally::default() };
    for body in bodies.by_ref() {
        tally.bodies += 1;
        let Some(queue) = &queue else { continue };
        let id = body.id.queue_id;
        let message = sealed(body.message);
        let found = FoundBody { body: body.id, envelope: &body.envelope, message, settled: body.settled };
        match queue.salvage(found, gap).await {
            Ok(Salvaged::Owed(_)) => tally.owed += 1,
            Ok(Salvaged::Settled | Salvaged::Known) => tally.settled += 1,
            Err(error) => tally.failed.push(format!("{id}: {error}")),
        }
    }
    tally.failed.extend(records.lacking.iter().map(|what| format!("records may be missing: {what}")));
    tally.failed.extend(bodies.damage().iter().cloned());
    if let (Some(queue), Some((_, Mail::Held))) = (&queue, into) {
        let held = queue.hold_salvaged(gap.to).await;
        tally.held = held.map_err(|error| Fault::Failed(format!("the mail could not be held: {error}")))?;
    }
    if everywhere.json {
        print_json(&serde_json::to_value(&tally).unwrap_or_default());
    } else {
        print(&words(&tally, into));
        show_damage(&tally.failed);
    }
    match tally.failed.len() {
        0 => Ok(()),
        count => Err(Fault::Failed(format!("{count} records, messages or segments could not be saved"))),
    }
}

/// When the instance that lost its records wrote last: a segment file changes with each group of commits.
fn last_written(store: &Path) -> Timestamp {
    let entries = std::fs::read_dir(store.join("segments")).into_iter().flatten().flatten();
    let times = entries.filter_map(|entry| entry.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    times.max().map_or_else(Timestamp::now, |since| Timestamp(0).plus(since))
}

fn words(tally: &Tally, into: Option<(&PathBuf, Mail)>) -> String {
    match into {
        None => format!(
            "{} records of what people manage, {} messages that may still be owed; nothing was changed\nTo save them: \
             postern store salvage --into FOLDER\n",
            tally.records, tally.bodies
        ),
        Some((folder, mail)) => format!(
            "{} records of what people manage; {} messages read, {} owed again in {}, {} settled already\nEach goes on \
             from when it was accepted: times its sender asked for, expiry, notices.\n{}\nTo serve from there: set data \
             to that folder, or move it in the old one's place.\nIf a virtual IP is missing, its mail waits for it: \
             postern vip add ... --id ID, with the id that the log names.\n",
            tally.records,
            tally.bodies,
            tally.owed,
            folder.display(),
            tally.settled,
            match mail {
                Mail::Held => format!("{} are held: postern queue release ID sends one.", tally.held),
                Mail::Due => "What operators had held, paused or moved is not known without the records, and leaves; \
                              with --held everything waits for postern queue release."
                    .to_owned(),
            }
        ),
    }
}

/// Bytes of records put into one batch.
const BATCH_BYTES: usize = 1024 * 1024;
/// Facts of the new store sort behind everything the old one can have made.
const COMMITS_BETWEEN: u64 = 1 << 32;

async fn new_queue(config: &Config, folder: &Path, records: &FoundRecords) -> Result<Queue, Fault> {
    // A data folder, with the store where the daemon will look for it.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| Fault::Failed(format!("{}: {error}", folder.display())))?;
    let settings = store::Settings { folder: folder.join(STORE), ..config.store.clone() };
    let commit = records.commit.saturating_add(COMMITS_BETWEEN);
    store::create_at(&settings, commit).map_err(|error| unopened(folder, &error))?;
    let opened = store::open(settings).map_err(|error| unopened(folder, &error))?;
    let (mut batch, mut bytes) = (Batch::new(), 0_usize);
    for (key, value) in &records.records {
        batch.set(key.clone(), value.clone());
        bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
        if bytes >= BATCH_BYTES {
            bytes = 0;
            put(&opened, std::mem::take(&mut batch)).await?;
        }
    }
    put(&opened, batch).await?;
    let queue = Queue::open(Arc::clone(&opened.records), opened.bodies, config.queue).await;
    queue.map_err(|error| Fault::Failed(format!("{}: {error}", folder.display())))
}

async fn put(opened: &Opened, batch: Batch) -> Result<(), Fault> {
    let put = opened.records.commit(batch).await;
    put.map_err(|error| Fault::Failed(format!("the records could not be written: {error}")))
}

/// The bytes of a message, cut where its header block ends.
fn sealed(bytes: bytes::Bytes) -> Sealed {
    let end = memchr::memmem::find(&bytes, b"\r\n\r\n").map_or(bytes.len(), |at| at.saturating_add(4));
    Sealed { head: bytes.slice(..end), body: Body::Memory(bytes.slice(end..)) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::arguments::Arguments;

    /// A machine whose daemon has run once.
    async fn machine(folder: &Path) -> (Everywhere, Config) {
        let text = format!(
            "hostname = \"mx.example.com\"\ndata = \"{data}\"\n[store]\nfree_bytes_min = \"16 MiB\"\n",
            data = folder.join("data").display()
        );
        let path = folder.join("postern.toml");
        std::fs::write(&path, &text).unwrap();
        let config = crate::config::read(&path, &text).unwrap();
        drop(new_queue(&config, &config.data, &FoundRecords::default()).await.unwrap());
        let line = ["postern", "check", "--json"];
        (<Arguments as clap::Parser>::try_parse_from(line).unwrap().everywhere, config)
    }

    #[tokio::test]
    async fn the_store_is_looked_for_where_the_daemon_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let (everywhere, config) = machine(folder.path()).await;
        assert_eq!(config.store.folder, config.data.join(STORE));
        run(&everywhere, &config, &Store::Verify).await.unwrap();
        let into = folder.path().join("new");
        run(&everywhere, &config, &Store::Salvage { into: Some(into.clone()), held: false }).await.unwrap();
        assert!(into.join(STORE).join("segments").is_dir());
        let held = Store::Salvage { into: Some(folder.path().join("held")), held: true };
        run(&everywhere, &config, &held).await.unwrap();
        assert!(last_written(&config.store.folder).since(Timestamp(0)) > Duration::ZERO);
        assert!(!config.data.join("lock").exists(), "nothing is left beside the store");
    }

    #[tokio::test]
    async fn a_folder_without_a_store_or_of_another_user_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (_, config) = machine(folder.path()).await;
        let none = folder.path().join("none");
        assert!(may_open(&none, 0).unwrap_err().contains("no daemon has run"));
        assert!(!none.exists());
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(may_open(&config.store.folder, own), Ok(()));
        assert!(may_open(&config.store.folder, own.wrapping_add(1)).unwrap_err().contains("runuser -u postern"));
    }

    #[test]
    fn a_message_is_cut_after_its_header_and_loses_nothing() {
        let message = sealed(bytes::Bytes::from_static(b"A: b\r\n\r\nbody"));
        assert_eq!(&message.head[..], b"A: b\r\n\r\n");
        assert_eq!(message.length(), 12);
        assert_eq!(sealed(bytes::Bytes::from_static(b"A: b\r\n")).length(), 6);
    }
}
