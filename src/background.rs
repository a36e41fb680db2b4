//! Tasks that live as long as the daemon: how they are told to stop and waited for, and the
//! loop of those that work periodically or when nudged.

use std::future::Future;
use std::time::Duration;

pub use tokio_util::sync::CancellationToken as Shutdown;
pub use tokio_util::task::TaskTracker as Tasks;

/// Calls `work` once at the start, then every `period`, and at once after each `nudge`,
/// until `shutdown`. `work` is idempotent and takes no input.
pub async fn periodically<W, F>(period: Duration, nudge: &tokio::sync::Notify, shutdown: &Shutdown, mut work: W)
where
    W: FnMut() -> F,
    F: Future<Output = ()>,
{
    loop {
        work().await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = nudge.notified() => {}
            () = tokio::time::sleep(period) => {}
        }
    }
}
