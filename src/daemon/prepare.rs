//! What `postern init` puts into a new data folder: the key that notices of the instance are signed
//! with, so that its DNS records can be printed before the first start.
//!
//! Easy to get wrong: this opens the store itself, under its lock, and closes it again before it
//! returns, so that the files can be given to the daemon's user.

use super::{StartError, world};
use crate::config::Config;
use crate::domains;
use crate::ext::Timestamp;

/// Makes the instance's key; gives the DNS records to publish for it, as lines of a zone file with
/// what each is for.
///
/// # Errors
/// The first step that failed, as a sentence that names the setting or path.
pub async fn prepare(config: &Config) -> Result<Vec<(String, String)>, StartError> {
    let key = world::master_key(config, None)?;
    let opened = world::open_store(config).await?;
    let key = world::with_other_key(&*opened.records, key)?;
    let made = domains::make_instance_key(&*opened.records, key, &config.hostname, Timestamp::now()).await;
    // The last holder closes it, which syncs and stops its threads: not on an async worker.
    let closed = tokio::task::spawn_blocking(move || drop(opened)).await;
    closed.map_err(|error| StartError::Unavailable(format!("the store could not be closed: {error}")))?;
    let records = made.map_err(|error| StartError::Unavailable(format!("the instance's key: {error}")))?;
    Ok(records.iter().map(|record| (record.zone_line(), record.purpose.clone())).collect())
}
