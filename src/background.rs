//! Tasks that live as long as the daemon: how they are told to stop, waited for, and noticed
//! when they die; and the loop of those that work periodically or when nudged.
//!
//! Recipe: one [`Background`] per daemon; [`Background::vital`] for tasks without which the daemon
//! is a lie, [`Background::spawn`] for the rest; [`Background::stop`] at the end.
//! Easy to get wrong: a panic in a spawned task is silent in tokio; here it is logged, and a
//! vital task that ends before its time stops the whole daemon.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Notify;

pub use tokio_util::sync::CancellationToken as Shutdown;
pub use tokio_util::task::TaskTracker as Tasks;

/// Calls `work` once at the start, then every `period`, and at once after each `nudge`,
/// until `shutdown`. `work` is idempotent and takes no input; a call under way is never cut off.
pub async fn periodically<W, F>(period: Duration, nudge: &Notify, shutdown: &Shutdown, mut work: W)
where
    W: FnMut() -> F,
    F: Future<Output = ()>,
{
    loop {
        if shutdown.is_cancelled() {
            return;
        }
        work().await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = nudge.notified() => {}
            () = tokio::time::sleep(period) => {}
        }
    }
}

/// Calls `write` after each `changed`, with `gap` between two calls, until `shutdown`, and once more at its
/// end. What changes meanwhile is written with the next call; one under way is never cut off.
pub async fn after_changes<W, F>(changed: &Notify, gap: Duration, shutdown: &Shutdown, mut write: W)
where
    W: FnMut() -> F,
    F: Future<Output = ()>,
{
    loop {
        let stop = tokio::select! {
            () = shutdown.cancelled() => true,
            () = changed.notified() => false,
        };
        write().await;
        if stop {
            return;
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(gap) => {}
        }
    }
}

/// The tasks of one daemon.
#[derive(Clone, Default)]
pub struct Background {
    shutdown: Shutdown,
    tasks: Tasks,
    fallen: Arc<Mutex<Option<String>>>,
}

impl Background {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when everything is to stop.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Runs `work`; if it panics, that is logged under `name` and the others go on.
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(async move {
            if let Err(panic) = std::panic::AssertUnwindSafe(work).catch_unwind().await {
                tracing::error!(task = name, reason = said(&*panic), "a background task panicked");
            }
        });
    }

    /// Runs `work`, without which the daemon must not go on: if it panics or returns before the
    /// shutdown, [`Background::fallen`] says so and everything is told to stop.
    pub fn vital<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (shutdown, fallen) = (self.shutdown.clone(), Arc::clone(&self.fallen));
        self.tasks.spawn(async move {
            let ending = std::panic::AssertUnwindSafe(work).catch_unwind().await;
            let reason = match ending {
                Ok(()) if shutdown.is_cancelled() => return,
                Ok(()) => format!("{name} ended before its time"),
                Err(panic) => format!("{name} panicked: {}", said(&*panic)),
            };
            tracing::error!(task = name, reason, "a vital task ended; the daemon stops");
            fallen.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
            shutdown.cancel();
        });
    }

    /// Why a vital task ended before its time, if one did.
    pub fn fallen(&self) -> Option<String> {
        self.fallen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells every task to stop and waits at most `patience`; the number still running then.
    pub async fn stop(&self, patience: Duration) -> usize {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        self.tasks.len()
    }
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn until(is_so: impl Fn() -> bool) {
        let waited = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap();
    }

    #[tokio::test]
    async fn changes_are_written_together_with_a_gap_and_once_more_at_the_end() {
        let (calls, changed, shutdown) = (AtomicUsize::new(0), Notify::new(), Shutdown::new());
        let write = || async {
            calls.fetch_add(1, Ordering::SeqCst);
        };
        let driver = async {
            assert_eq!(calls.load(Ordering::SeqCst), 0, "nothing changed yet");
            changed.notify_one();
            until(|| calls.load(Ordering::SeqCst) == 1).await;
            // In the gap, which is longer than this test: left to the write at the end.
            changed.notify_one();
            tokio::task::yield_now().await;
            assert_eq!(calls.load(Ordering::SeqCst), 1);
            shutdown.cancel();
        };
        tokio::join!(after_changes(&changed, Duration::from_secs(3_600), &shutdown, write), driver);
        // Twice if the change in the gap was seen before the end.
        assert!((2..=3).contains(&calls.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn periodic_work_runs_at_once_then_by_period_and_by_nudge() {
        let (calls, nudge, shutdown) = (AtomicUsize::new(0), Notify::new(), Shutdown::new());
        let work = || async {
            calls.fetch_add(1, Ordering::SeqCst);
        };
        let driver = async {
            until(|| calls.load(Ordering::SeqCst) == 1).await;
            nudge.notify_one();
            until(|| calls.load(Ordering::SeqCst) == 2).await;
            until(|| calls.load(Ordering::SeqCst) == 3).await;
            shutdown.cancel();
        };
        tokio::join!(periodically(Duration::from_millis(200), &nudge, &shutdown, work), driver);
    }

    #[tokio::test]
    async fn a_vital_task_that_dies_stops_everything_and_is_named() {
        let background = Background::new();
        background.vital("dispatcher", async { panic!("on purpose") });
        background.shutdown().cancelled().await;
        assert_eq!(background.fallen().as_deref(), Some("dispatcher panicked: on purpose"));
        assert_eq!(background.stop(Duration::from_secs(1)).await, 0);
    }

    #[tokio::test]
    async fn another_task_that_dies_stops_nothing() {
        let background = Background::new();
        background.spawn("sweep", async { panic!("on purpose") });
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!background.shutdown().is_cancelled());
        assert_eq!(background.fallen(), None);
    }

    #[tokio::test]
    async fn a_task_that_will_not_stop_is_counted_after_the_patience() {
        let background = Background::new();
        background.spawn("stubborn", std::future::pending());
        assert_eq!(background.stop(Duration::from_millis(20)).await, 1);
    }
}
