//! Whether backups are being made: the instance is told when none was finished for too long, once until one is.
//!
//! Easy to get wrong: it is told once however long it lasts and however often the daemon starts, so that it was told
//! is in the batch that tells it; and a daemon that never made one counts from its first start, not from its last.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{INSTANCE, Kind, News, NotificationId, Notifications, bounds, key};
use crate::ext::Timestamp;
use crate::records::{self, AdminError, Damage};
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};

const DAY_SECS: u64 = 86_400;

/// When people are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The instance is told when the last backup was finished so long ago (7 days); zero is never.
    pub backup_overdue_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { backup_overdue_after: Duration::from_secs(7 * DAY_SECS) }
    }
}

/// How it is about backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupStanding {
    /// When the last one was finished.
    pub last: Option<Timestamp>,
    /// Whether that was too long ago, or none was made for as long.
    pub is_overdue: bool,
}

/// What is stored of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backups {
    /// The first start: from then on is counted until there was a backup.
    since: Timestamp,
    /// When the last one was finished.
    last: Option<Timestamp>,
    /// When it was told that none is made; `None` again after the next.
    told: Option<Timestamp>,
}

impl Backups {
    fn is_overdue(&self, after: Duration, now: Timestamp) -> bool {
        !after.is_zero() && now.since(self.last.unwrap_or(self.since)) >= after
    }

    fn text(&self, now: Timestamp) -> String {
        let days = now.since(self.last.unwrap_or(self.since)).as_secs() / DAY_SECS;
        let what = match self.last {
            Some(last) => format!("the last backup was finished {days} days ago, at {last}"),
            None => format!("no backup was made in the {days} days since the first start"),
        };
        format!("{what}; postern backup make FILE, and systemctl status postern-backup.timer")
    }
}

/// What was stored; a record that cannot be read is counted anew.
pub(super) fn load(store: &dyn Store) -> Result<(Option<Backups>, Vec<Damage>), StoreError> {
    let (found, damaged) = records::load(store, &backups_key())?;
    Ok((found.into_iter().next().map(|(_, backups)| backups), damaged))
}

impl Notifications {
    /// With other settings than the default.
    #[must_use]
    pub fn with_settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// How it is about backups.
    pub fn backup_standing(&self, now: Timestamp) -> BackupStanding {
        let backups = *records::read(&self.backups);
        let after = self.settings.backup_overdue_after;
        BackupStanding {
            last: backups.and_then(|backups| backups.last),
            is_overdue: backups.is_some_and(|backups| backups.is_overdue(after, now)),
        }
    }

    /// Tells the instance if no backup was made for too long and it was not told since the last.
    pub(super) async fn look_for_backups(&self, now: Timestamp) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let known = *records::read(&self.backups);
        let mut next = known.unwrap_or(Backups { since: now, last: None, told: None });
        let is_news = next.told.is_none() && next.is_overdue(self.settings.backup_overdue_after, now);
        if known.is_some() && !is_news {
            return Ok(());
        }
        let (mut batch, told) = if is_news {
            next.told = Some(now);
            let (subject, text) = ("backup".to_owned(), next.text(now));
            let (batch, told) = self.telling(News { tenant: INSTANCE, kind: Kind::BackupOverdue, subject, text }, now);
            (batch, Some(told))
        } else {
            (Batch::new(), None)
        };
        batch.set(backups_key(), codec::encode(&next));
        let backups = Arc::clone(&self.backups);
        turn.commit(batch, move || {
            *records::write(&backups) = Some(next);
            if let Some(told) = told {
                told();
            }
        })
        .await?;
        Ok(())
    }

    /// A backup was finished: what was told of there being none is over, and taken from the list.
    pub(super) async fn note_backup(&self, at: Timestamp) -> Result<(), AdminError> {
        let turn = self.desk.turn().await;
        let known = *records::read(&self.backups);
        // Seen again after a crash, or by a daemon that reads its log anew.
        if known.is_some_and(|known| known.last.is_some_and(|last| last >= at)) {
            return Ok(());
        }
        let next = Backups { since: known.map_or(at, |known| known.since), last: Some(at), told: None };
        let over: Vec<NotificationId> = {
            let all = records::read(&self.all);
            let own = all.range(bounds(INSTANCE)).filter(|(_, one)| one.kind == Kind::BackupOverdue);
            own.map(|((_, id), _)| *id).collect()
        };
        let mut batch = Batch::new();
        batch.set(backups_key(), codec::encode(&next));
        for id in &over {
            batch.remove(key(INSTANCE, *id));
        }
        let (all, backups) = (Arc::clone(&self.all), Arc::clone(&self.backups));
        turn.commit(batch, move || {
            *records::write(&backups) = Some(next);
            let mut all = records::write(&all);
            for id in over {
                all.remove(&(INSTANCE, id));
            }
        })
        .await?;
        Ok(())
    }
}

fn backups_key() -> Key {
    vec![prefix::NOTIFICATION, b'b']
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Actor;
    use crate::events::{Consumer, Event, EventKind, InstanceEvent};
    use crate::notifications::{Shown, Which};
    use crate::store::MemoryStore;

    const START: Timestamp = Timestamp(1_800_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn open(store: &Arc<MemoryStore>, days: u64) -> Notifications {
        let room = Notifications::open(store.clone(), Arc::new(|_| (INSTANCE, "mx.example".to_owned()))).unwrap();
        room.with_settings(Settings { backup_overdue_after: Duration::from_secs(days * DAY_SECS) })
    }

    fn after_days(days: u64) -> Timestamp {
        START.plus(Duration::from_secs(days * DAY_SECS))
    }

    fn told(room: &Notifications) -> Vec<Shown> {
        let all = room.list(&Actor::local(0), INSTANCE, Which::All).unwrap();
        all.into_iter().filter(|shown| shown.notification.kind == Kind::BackupOverdue).collect()
    }

    async fn backup(room: &Notifications, at: Timestamp) {
        let taken = InstanceEvent::BackupTaken { key: "k1".to_owned(), messages: 0, unreadable: 0 };
        room.consume(&[Event { at, kind: EventKind::Instance(taken) }]).await.unwrap();
    }

    #[tokio::test]
    async fn a_daemon_that_never_made_one_is_told_once_however_often_it_starts() {
        let store = Arc::new(MemoryStore::new());
        open(&store, 7).look_for_backups(START).await.unwrap();
        // Each start and each look in between: the count begins with the first.
        for day in 1..=6 {
            open(&store, 7).look_for_backups(after_days(day)).await.unwrap();
        }
        let room = open(&store, 7);
        assert!(told(&room).is_empty());
        assert_eq!(room.backup_standing(after_days(6)), BackupStanding { last: None, is_overdue: false });
        for day in 7..40 {
            let room = open(&store, 7);
            room.look_for_backups(after_days(day)).await.unwrap();
            room.look_for_backups(after_days(day).plus(MINUTE)).await.unwrap();
        }
        let room = open(&store, 7);
        let list = told(&room);
        assert_eq!(list.len(), 1, "once, and not once a day");
        assert_eq!(list[0].notification.at, after_days(7));
        assert!(list[0].notification.text.starts_with("no backup was made in the 7 days"), "{list:?}");
        assert!(room.backup_standing(after_days(40)).is_overdue);
    }

    #[tokio::test]
    async fn a_backup_ends_it_and_the_next_time_is_told_anew() {
        let store = Arc::new(MemoryStore::new());
        let room = open(&store, 7);
        for day in [0, 8] {
            room.look_for_backups(after_days(day)).await.unwrap();
        }
        assert_eq!(told(&room).len(), 1);
        backup(&room, after_days(9)).await;
        assert!(told(&room).is_empty(), "it is over");
        let last = Some(after_days(9));
        assert_eq!(room.backup_standing(after_days(15)), BackupStanding { last, is_overdue: false });
        room.look_for_backups(after_days(15)).await.unwrap();
        assert!(told(&room).is_empty());
        room.look_for_backups(after_days(16)).await.unwrap();
        // Seen again, it ends nothing.
        backup(&room, after_days(9)).await;
        let list = told(&room);
        assert_eq!(list.len(), 1);
        let text = &list[0].notification.text;
        assert!(text.starts_with("the last backup was finished 7 days ago"), "{text}");
        let again = open(&store, 7);
        again.look_for_backups(after_days(17)).await.unwrap();
        assert_eq!(told(&again), list, "after a restart neither more nor less");
    }

    #[tokio::test]
    async fn none_is_told_when_it_is_off_and_a_clock_set_back_tells_nothing() {
        let store = Arc::new(MemoryStore::new());
        let off = open(&store, 0);
        for day in [0, 1_000] {
            off.look_for_backups(after_days(day)).await.unwrap();
        }
        assert!(told(&off).is_empty() && !off.backup_standing(after_days(1_000)).is_overdue);
        let on = open(&store, 7);
        backup(&on, after_days(1_000)).await;
        on.look_for_backups(after_days(2)).await.unwrap();
        assert!(told(&on).is_empty());
        on.look_for_backups(after_days(1_007)).await.unwrap();
        assert_eq!(told(&on).len(), 1);
    }
}
