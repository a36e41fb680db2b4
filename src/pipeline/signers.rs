//! The threads that sign: started when first needed, taking messages in the order they came.
//!
//! Easy to get wrong: a signature takes a third of a millisecond, so a thread woken and put to sleep
//! for each costs a good part of what it does. While messages wait, a thread here takes the next one
//! without sleeping, which a general pool of blocking threads with a semaphore before it does not.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// The handle: dropping it lets the threads end once nothing waits.
pub(crate) struct Signers {
    shared: Arc<Shared>,
}

struct Shared {
    threads_max: usize,
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// At most one for each message being accepted, which `submission.draft_bytes_max` bounds.
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads asleep: nobody is woken while there are none.
    idle: usize,
    is_closed: bool,
}

/// A job ended without an answer: it panicked, or no thread could be started for it.
#[derive(Debug, thiserror::Error)]
#[error("the signing thread gave no answer")]
pub(crate) struct NoAnswer;

impl Signers {
    /// No more than `threads_max` of them, and at least one.
    pub(crate) fn new(threads_max: usize) -> Self {
        let (waiting, more) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { threads_max: threads_max.max(1), waiting, more }) }
    }

    /// Runs `job` after those before it. A caller that goes away while it waits costs nothing: its
    /// job is dropped unworked.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        self.shared.put(Box::new(move || {
            if !answer.is_closed() {
                // Whoever asked may go away meanwhile.
                let _ = answer.send(job());
            }
        }));
        answered.await.map_err(|_| NoAnswer)
    }
}

impl Drop for Signers {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.more.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        // No job runs under the lock, so a panic cannot leave it half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(self: &Arc<Self>, job: Job) {
        let mut waiting = self.lock();
        waiting.jobs.push_back(job);
        if waiting.idle >= waiting.jobs.len() {
            self.more.notify_one();
        } else if waiting.threads < self.threads_max {
            let shared = Arc::clone(self);
            let started = thread::Builder::new().name("sign".to_owned()).spawn(move || shared.work());
            match started {
                Ok(_) => waiting.threads += 1,
                // Nobody would ever take it: dropped, it answers its caller with NoAnswer.
                Err(_) if waiting.threads == 0 => waiting.jobs.clear(),
                Err(_) => self.more.notify_one(),
            }
        }
    }

    fn work(&self) {
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                drop(waiting);
                // The panic is logged where it happens; the caller sees that no answer came.
                let _ = catch_unwind(AssertUnwindSafe(job));
                waiting = self.lock();
                continue;
            }
            if waiting.is_closed {
                return;
            }
            waiting.idle += 1;
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn jobs_are_done_in_the_order_they_came() {
        let signers = Signers::new(1);
        let done = Arc::new(Mutex::new(Vec::new()));
        let jobs = (0..100).map(|number| {
            let done = Arc::clone(&done);
            signers.run(move || done.lock().unwrap().push(number))
        });
        futures_util::future::join_all(jobs).await;
        assert_eq!(*done.lock().unwrap(), (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_panic_harms_its_own_job_only() {
        let signers = Signers::new(1);
        assert!(signers.run(|| panic!("as the test wants it")).await.is_err());
        assert_eq!(signers.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_done() {
        let signers = Signers::new(1);
        let (go, gate) = mpsc::channel::<()>();
        let (began, begun) = oneshot::channel();
        let mut first = Box::pin(signers.run(move || {
            began.send(()).unwrap();
            gate.recv().unwrap();
        }));
        let (tell, told) = mpsc::channel();
        let second = signers.run(move || tell.send(()).unwrap());
        // Polled once, so that it is in the line.
        assert!((&mut first).now_or_never().is_none());
        begun.await.unwrap();
        // The same, and given up.
        assert!(second.now_or_never().is_none());
        go.send(()).unwrap();
        first.await.unwrap();
        signers.run(|| ()).await.unwrap();
        assert!(told.try_recv().is_err());
    }

    #[tokio::test]
    async fn threads_end_with_their_handle() {
        let signers = Signers::new(2);
        signers.run(|| ()).await.unwrap();
        let shared = Arc::downgrade(&signers.shared);
        drop(signers);
        while shared.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
