//! `postern store`: the data folder while no daemon has it open; the folder's lock sees to that.
//!
//! `verify` changes nothing. `salvage` reads the message segments alone and owes what is not settled
//! in a new data folder. Easy to get wrong: the old folder is never written to.

use std::path::Path;
use std::sync::Arc;

use super::arguments::{Everywhere, Store};
use super::client::Fault;
use super::output::{print, print_json, size};
use crate::config::Config;
use crate::ext::Timestamp;
use crate::mail::{Body, Sealed};
use crate::queue::{FoundBody, Queue, Salvaged};
use crate::store;

/// Damage shown, at most.
const DAMAGE_SHOWN_MAX: usize = 100;

/// Carries out one of them on the configured data folder.
pub async fn run(everywhere: &Everywhere, config: &Config, command: &Store) -> Result<(), Fault> {
    match command {
        Store::Verify => verify(everywhere, &config.store.folder),
        Store::Salvage { into: None } => salvage(everywhere, config, None).await,
        Store::Salvage { into: Some(folder) } => {
            let holds_something = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
            if holds_something {
                let text = format!("{} is not empty; name a new folder", folder.display());
                return Err(Fault::Failed(text));
            }
            salvage(everywhere, config, Some(folder)).await
        }
    }
}

fn unopened(folder: &Path, error: &store::OpenError) -> Fault {
    Fault::Failed(format!("{}: {error}", folder.display()))
}

fn verify(everywhere: &Everywhere, folder: &Path) -> Result<(), Fault> {
    let report = store::verify(folder).map_err(|error| unopened(folder, &error))?;
    if everywhere.json {
        print_json(&serde_json::json!({
            "records": report.records,
            "bodies": report.bodies,
            "body_bytes": report.body_bytes,
            "segments": report.segments,
            "frames": report.frames,
            "damaged": report.damaged,
        }));
    } else {
        print(&format!(
            "{} records, {} messages of {} in {} segments, {} checksums computed\n",
            report.records,
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

fn show_damage(damage: &[String]) {
    damage
        .iter()
        .take(DAMAGE_SHOWN_MAX)
        .for_each(|what| print(&format!("damaged: {}\n", crate::mail::printable(what))));
    if let Some(more) = damage.len().checked_sub(DAMAGE_SHOWN_MAX).filter(|more| *more > 0) {
        print(&format!("and {more} more\n"));
    }
}

/// What became of the bodies.
#[derive(Default, serde::Serialize)]
struct Tally {
    bodies: u64,
    owed: u64,
    settled: u64,
    failed: Vec<String>,
}

async fn salvage(everywhere: &Everywhere, config: &Config, into: Option<&Path>) -> Result<(), Fault> {
    let mut bodies = store::salvage(&config.store.folder).map_err(|error| unopened(&config.store.folder, &error))?;
    let queue = match into {
        None => None,
        Some(folder) => Some(new_queue(config, folder).await?),
    };
    let mut tally = Tally::default();
    for body in bodies.by_ref() {
        tally.bodies += 1;
        let Some(queue) = &queue else { continue };
        let id = body.id.queue_id;
        let message = sealed(body.message);
        let found = FoundBody { body: body.id, envelope: &body.envelope, message, settled: body.settled };
        match queue.salvage(found, Timestamp::now()).await {
            Ok(Salvaged::Owed(_)) => tally.owed += 1,
            Ok(Salvaged::Settled | Salvaged::Known) => tally.settled += 1,
            Err(error) => tally.failed.push(format!("{id}: {error}")),
        }
    }
    tally.failed.extend(bodies.damage().iter().cloned());
    if everywhere.json {
        print_json(&serde_json::to_value(&tally).unwrap_or_default());
    } else {
        print(&words(&tally, into));
        show_damage(&tally.failed);
    }
    match tally.failed.len() {
        0 => Ok(()),
        count => Err(Fault::Failed(format!("{count} messages or segments could not be saved"))),
    }
}

fn words(tally: &Tally, into: Option<&Path>) -> String {
    match into {
        None => format!(
            "{} messages may still be owed; nothing was changed\nTo owe them again: postern store salvage --into FOLDER\n",
            tally.bodies
        ),
        Some(folder) => format!(
            "{} messages read, {} owed again in {}, {} settled already\nTenants, virtual IPs, domains and accounts are \
             records and not part of it.\n",
            tally.bodies,
            tally.owed,
            folder.display(),
            tally.settled
        ),
    }
}

async fn new_queue(config: &Config, folder: &Path) -> Result<Queue, Fault> {
    // The store's place within the data folder stays the same.
    let place = config.store.folder.strip_prefix(&config.data).unwrap_or(Path::new("store"));
    let folder = folder.join(place);
    std::fs::create_dir_all(&folder).map_err(|error| Fault::Failed(format!("{}: {error}", folder.display())))?;
    let settings = store::Settings { folder: folder.clone(), ..config.store.clone() };
    let opened = store::open(settings).map_err(|error| unopened(&folder, &error))?;
    let queue = Queue::open(Arc::clone(&opened.records), opened.bodies, config.queue).await;
    queue.map_err(|error| Fault::Failed(format!("{}: {error}", folder.display())))
}

/// The bytes of a message, cut where its header block ends.
fn sealed(bytes: bytes::Bytes) -> Sealed {
    let end = memchr::memmem::find(&bytes, b"\r\n\r\n").map_or(bytes.len(), |at| at.saturating_add(4));
    Sealed { head: bytes.slice(..end), body: Body::Memory(bytes.slice(end..)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_after_its_header_and_loses_nothing() {
        let message = sealed(bytes::Bytes::from_static(b"A: b\r\n\r\nbody"));
        assert_eq!(&message.head[..], b"A: b\r\n\r\n");
        assert_eq!(message.length(), 12);
        assert_eq!(sealed(bytes::Bytes::from_static(b"A: b\r\n")).length(), 6);
    }
}
