//! The calendar on disk: read at the start, written every minute and at the end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::StartError;
use crate::background::{Shutdown, periodically};
use crate::calendar::{Calendar, Kept};
use crate::ext::Timestamp;
use crate::store::{Batch, Key, Store, codec, prefix};

/// How often the wall clock is looked at.
const LOOKED_EVERY: Duration = Duration::from_secs(60);

fn key() -> Key {
    [&[prefix::QUEUE_STATE][..], b"calendar"].concat()
}

/// The calendar as it was left. A damaged one begins anew from the wall clock.
pub(super) fn open(store: &dyn Store) -> Result<Calendar, StartError> {
    let stored = store.get(&key());
    let stored = stored.map_err(|error| StartError::Unavailable(format!("the calendar cannot be read: {error}")))?;
    let kept = stored.and_then(|bytes| match codec::decode::<Kept>(&bytes) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::error!(%error, "the calendar's record is damaged; it begins again from the clock");
            None
        }
    });
    Ok(Calendar::resume(kept, Timestamp::now()))
}

/// Looks at the wall clock, and writes down what is believed of it, until `shutdown` and once more then.
pub(super) async fn keep(calendar: Calendar, store: Arc<dyn Store>, shutdown: Shutdown) {
    let look = || async {
        let Some(kept) = calendar.look(Timestamp::now()) else { return };
        let mut batch = Batch::new();
        batch.set(key(), codec::encode(&kept));
        if let Err(error) = store.commit(batch).await {
            tracing::warn!(%error, "the calendar could not be stored");
        }
    };
    periodically(LOOKED_EVERY, &Notify::new(), &shutdown, look).await;
    look().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn the_calendar_outlives_a_restart_and_a_damaged_record() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let now = Timestamp::now();
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        // It was left ten days ago; half a day counts.
        let left = Timestamp(now.0 - 10 * 86_400_000);
        let kept = Kept { believed: left, wall: left, even_ms: None };
        let mut batch = Batch::new();
        batch.set(key(), codec::encode(&kept));
        store.commit(batch).await.unwrap();
        let calendar = open(&*store).unwrap();
        let capped = calendar.cap(now);
        assert!(capped >= left.plus(hours(12)) && capped < left.plus(hours(13)), "{capped}");
        let stop = Shutdown::new();
        stop.cancel();
        keep(calendar, Arc::clone(&store), stop).await;
        let again = open(&*store).unwrap();
        assert!(again.doubt(now).is_some() && again.cap(now) < left.plus(hours(13)));
        let mut batch = Batch::new();
        batch.set(key(), vec![0xff; 3]);
        store.commit(batch).await.unwrap();
        assert_eq!(open(&*store).unwrap().cap(now), now);
    }
}
