//! The daemon's part in who administers: the set-up link of a new instance, and writing down by and
//! by when sessions and keys were used.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::access::Actor;
use crate::background::{Shutdown, periodically};
use crate::ext::Timestamp;
use crate::people::People;

/// How often sessions and keys are looked at.
const PERSIST: Duration = Duration::from_secs(60);

/// Says in the log how the first admin is made, if there is none and the API is served over a
/// network at all. The link is good once, for a day, and made anew at every start.
pub(super) async fn welcome(people: &People, listen: &[SocketAddr]) {
    let Some(address) = listen.first() else { return };
    match people.set_up_link(&Actor::system("first start"), Timestamp::now()).await {
        Ok(None) => {}
        Ok(Some(link)) => tracing::warn!(
            "nobody administers this instance over the network yet; within a day: \
             POST https://{address}/api/v1/session/redeem with token {}, email and password, \
             or: postern user redeem {0} --email ADDRESS",
            link.token.as_str()
        ),
        Err(error) => tracing::warn!(%error, "the set-up link could not be made; postern user set-up-link makes one"),
    }
}

/// Writes what memory knows, and removes what is over, until the stop; then once more.
pub(super) async fn persist(people: Arc<People>, shutdown: Shutdown) {
    let write = || async {
        let now = Timestamp::now();
        if let Err(error) = people.persist(now).await {
            tracing::warn!(%error, "the last use of sessions and keys could not be written yet");
        }
        if let Err(error) = people.sweep_links(now).await {
            tracing::warn!(%error, "expired links could not be removed yet");
        }
    };
    periodically(PERSIST, &Notify::new(), &shutdown, write).await;
    write().await;
}
