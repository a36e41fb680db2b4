//! The gate before new work: while memory or file descriptors run short, new sessions and new
//! messages are refused early and new connections out wait, so that what was accepted goes on.
//!
//! Recipe: one [`Gate`] for the daemon; whoever is about to begin something asks [`Gate::admit`].
//! It refuses to know what the work is. Disk space and drafts have limits of their own
//! ([`crate::store::Health`], `drafts_bytes_max`).
//! While memory is short, bodies on their way in are spilled to disk earlier.
//! Easy to get wrong: it must open again by itself, and not flutter: it opens well below the mark
//! at which it shut.

mod fill;
mod probe;
mod relief;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use fill::{Fill, Shortage, Work};
pub use probe::{Machine, Probe};

use fill::Latch;

/// When the gate shuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of memory this process may take; 0 to go by the control group, the resource limits
    /// and the machine alone (0).
    pub memory_bytes_max: u64,
    /// New work is refused while more than this part of the memory is taken (75).
    pub memory_percent: u8,
    /// New sessions are refused while more than this part of the file descriptors is open (75);
    /// half of the rest is for deliveries, the other half for the store, DNS and the operator.
    pub descriptors_percent: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory_bytes_max: 0, memory_percent: 75, descriptors_percent: 75 }
    }
}

/// How full the process is, and what is refused for that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The tightest limit of memory; `None` if nobody can tell.
    pub memory: Option<Fill>,
    /// Open file descriptors.
    pub descriptors: Option<Fill>,
    /// Why new sessions are refused now, if they are.
    pub shortage: Option<Shortage>,
}

/// Decides whether new work is begun. Cheap to ask; the system is asked a few times a second.
pub struct Gate {
    settings: Settings,
    probe: Box<dyn Probe>,
    state: Mutex<State>,
    /// When free memory is given back next.
    relief_due: Mutex<Instant>,
}

/// How old an answer of the system may be.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How old it may be where somebody would be refused for what was begun since.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often free memory is given back to the system while none is short.
const RELIEVE_EVERY: Duration = Duration::from_secs(60);
/// When it is done first: what the start took and freed.
const RELIEVE_FIRST: Duration = Duration::from_secs(3);

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    load: Load,
    /// Descriptors taken since the last look, by work that was admitted.
    taken: u64,
    memory: Latch,
    sessions: Latch,
    deliveries: Latch,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Gate").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate that watches this process.
    pub fn new(settings: Settings) -> Self {
        Self::with_probe(settings, Box::new(Machine::new(settings.memory_bytes_max)))
    }

    /// A gate that watches what `probe` says.
    pub fn with_probe(settings: Settings, probe: Box<dyn Probe>) -> Self {
        let relief_due = Mutex::new(Instant::now() + RELIEVE_FIRST);
        Self { settings, probe, state: Mutex::default(), relief_due }
    }

    /// Whether `work` may begin now. A session or delivery that is admitted opens a descriptor.
    ///
    /// # Errors
    /// What is short.
    pub fn admit(&self, work: Work) -> Result<(), Shortage> {
        match self.look_for(work) {
            (state, Some(shortage)) => {
                drop(state);
                self.shed(work, shortage);
                Err(shortage)
            }
            (mut state, None) => {
                if work != Work::Message {
                    state.taken = state.taken.saturating_add(1);
                }
                Ok(())
            }
        }
    }

    /// Whether `work` would be admitted now; counts nothing.
    pub fn is_open_to(&self, work: Work) -> bool {
        self.look(LOOK_EVERY).shortage(work).is_none()
    }

    /// What keeps `work` from being admitted now, as carefully as [`Gate::admit`] asks; counts nothing.
    pub fn shortage_of(&self, work: Work) -> Option<Shortage> {
        self.look_for(work).1
    }

    /// What keeps `work` from beginning. Many may have begun and ended since the last look: asked once more before
    /// anybody is refused.
    fn look_for(&self, work: Work) -> (MutexGuard<'_, State>, Option<Shortage>) {
        let mut state = self.look(LOOK_EVERY);
        if state.taken > 0 && state.shortage(work).is_some() {
            drop(state);
            state = self.look(LOOK_AGAIN);
        }
        let shortage = state.shortage(work);
        (state, shortage)
    }

    /// A descriptor is opened by work that has a reserve of its own and was not asked for by [`Gate::admit`].
    pub fn count_taken(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.taken = state.taken.saturating_add(1);
    }

    /// Counts that `work` was refused by somebody who asked for [`Gate::shortage_of`].
    pub fn shed(&self, work: Work, shortage: Shortage) {
        metrics::counter!(crate::metrics::SHED, "work" => work.name(), "shortage" => shortage.name()).increment(1);
    }

    /// Looks by itself, and gives free pages back to the system: each time while memory runs short, else soon
    /// after the start and once a minute, because an allocator with an area for each thread keeps the most that
    /// each of them ever took. To be called every second or so, off the async workers. Says whether it gave back.
    pub fn relieve(&self) -> bool {
        let is_short = self.load().shortage == Some(Shortage::Memory);
        let now = Instant::now();
        let mut due = self.relief_due.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_short && now < *due {
            return false;
        }
        *due = now + RELIEVE_EVERY;
        drop(due);
        relief::give_back();
        true
    }

    /// How full the process is.
    pub fn load(&self) -> Load {
        self.look(LOOK_EVERY).load
    }

    /// The state, not older than `age`.
    fn look(&self, age: Duration) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.is_none_or(|looked| looked.elapsed() >= age) {
            state.looked = Some(Instant::now());
            state.taken = 0;
            (state.load.memory, state.load.descriptors) = (self.probe.memory(), self.probe.descriptors());
        }
        let before = state.load.shortage;
        state.judge(&self.settings);
        tell(before, &state.load);
        state
    }
}

impl State {
    fn judge(&mut self, settings: &Settings) {
        let open = self.load.descriptors.map(|fill| fill.with(self.taken));
        self.memory.judge(self.load.memory, settings.memory_percent);
        self.sessions.judge(open, settings.descriptors_percent);
        self.deliveries.judge(open, settings.descriptors_percent.saturating_add(100) / 2);
        self.load.shortage = self.shortage(Work::Session);
    }

    fn shortage(&self, work: Work) -> Option<Shortage> {
        let (memory, descriptors) = match work {
            Work::Session | Work::Administration => (self.memory.is_shut(), self.sessions.is_shut()),
            // A long message needs a file to spill into.
            Work::Message => (self.memory.is_shut(), self.deliveries.is_shut()),
            // What was accepted is delivered, however little memory there is.
            Work::Delivery => (false, self.deliveries.is_shut()),
        };
        match (memory, descriptors) {
            (true, _) => Some(Shortage::Memory),
            (false, true) => Some(Shortage::Descriptors),
            (false, false) => None,
        }
    }
}

/// Says once that the gate shut or opened.
fn tell(before: Option<Shortage>, load: &Load) {
    match (before, load.shortage) {
        (None, Some(shortage)) => {
            let fill = match shortage {
                Shortage::Memory => load.memory,
                Shortage::Descriptors => load.descriptors,
            };
            let (used, limit) = fill.map_or((0, 0), |fill| (fill.used, fill.limit));
            let of = fill.map_or("", |fill| fill.of);
            tracing::warn!(used, limit, of, "{}: new sessions are refused until there is room", shortage.words());
        }
        (Some(_), None) => tracing::info!("there is room again: new sessions are taken"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Told {
        memory: AtomicU64,
        descriptors: AtomicU64,
    }

    impl Probe for Arc<Told> {
        fn memory(&self) -> Option<Fill> {
            Some(Fill { used: self.memory.load(Ordering::SeqCst), limit: 1000, of: "test" })
        }

        fn descriptors(&self) -> Option<Fill> {
            Some(Fill { used: self.descriptors.load(Ordering::SeqCst), limit: 256, of: "test" })
        }
    }

    fn gate() -> (Gate, Arc<Told>) {
        let told = Arc::new(Told { memory: AtomicU64::new(0), descriptors: AtomicU64::new(20) });
        (Gate::with_probe(Settings::default(), Box::new(Arc::clone(&told))), told)
    }

    fn after_a_look(gate: &Gate) {
        gate.state.lock().unwrap().looked = None;
    }

    #[test]
    fn short_memory_refuses_new_mail_but_not_deliveries_and_opens_well_below_the_mark() {
        let (gate, told) = gate();
        for (used, is_open) in [(749, true), (750, false), (700, false), (650, false), (649, true), (749, true)] {
            told.memory.store(used, Ordering::SeqCst);
            after_a_look(&gate);
            assert_eq!(gate.is_open_to(Work::Session), is_open, "{used}");
            assert_eq!(gate.is_open_to(Work::Message), is_open, "{used}");
            assert!(gate.is_open_to(Work::Delivery), "{used}");
            assert_eq!(gate.load().shortage.is_none(), is_open);
        }
    }

    #[test]
    fn descriptors_are_kept_for_deliveries_and_some_beyond_those() {
        let (gate, told) = gate();
        let mut found = Vec::new();
        for used in [20, 191, 192, 222, 223, 256] {
            told.descriptors.store(used, Ordering::SeqCst);
            after_a_look(&gate);
            found.push((used, gate.is_open_to(Work::Session), gate.is_open_to(Work::Delivery)));
        }
        let expected = [
            (20, true, true),
            (191, true, true),
            (192, false, true),
            (222, false, true),
            (223, false, false),
            (256, false, false),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_burst_between_two_looks_does_not_run_past_the_mark() {
        let (gate, _) = gate();
        // Whatever the clock does, a burst is counted by itself.
        let admitted = {
            gate.load();
            gate.state.lock().unwrap().looked = Some(Instant::now() + Duration::from_secs(60));
            (0..1000).filter(|_| gate.admit(Work::Session).is_ok()).count()
        };
        assert_eq!(admitted, 192 - 20);
        assert_eq!(gate.admit(Work::Session), Err(Shortage::Descriptors));
        assert_eq!(gate.admit(Work::Delivery), Ok(()));
    }

    #[test]
    fn administration_is_short_when_sessions_are_and_what_it_takes_is_counted() {
        let (gate, told) = gate();
        gate.load();
        gate.state.lock().unwrap().looked = Some(Instant::now() + Duration::from_secs(60));
        (20..192).for_each(|_| {
            assert_eq!(gate.shortage_of(Work::Administration), None);
            gate.count_taken();
        });
        assert_eq!(gate.shortage_of(Work::Administration), Some(Shortage::Descriptors));
        assert_eq!(gate.admit(Work::Session), Err(Shortage::Descriptors));
        told.memory.store(800, Ordering::SeqCst);
        after_a_look(&gate);
        assert_eq!(gate.shortage_of(Work::Administration), Some(Shortage::Memory));
        told.memory.store(0, Ordering::SeqCst);
        after_a_look(&gate);
        assert_eq!(gate.shortage_of(Work::Administration), None, "what ended since is not counted any more");
    }

    #[test]
    fn free_memory_is_given_back_once_a_minute_and_all_the_time_while_it_is_short() {
        let (gate, told) = gate();
        assert!(!gate.relieve(), "the start is not over");
        *gate.relief_due.lock().unwrap() = Instant::now();
        assert!(gate.relieve());
        assert!(!gate.relieve(), "not again within the minute");
        told.memory.store(800, Ordering::SeqCst);
        after_a_look(&gate);
        assert!(gate.relieve() && gate.relieve());
        told.memory.store(0, Ordering::SeqCst);
        after_a_look(&gate);
        assert!(!gate.relieve());
    }

    #[test]
    fn a_gate_that_cannot_tell_stays_open() {
        struct Silent;
        impl Probe for Silent {
            fn memory(&self) -> Option<Fill> {
                None
            }
            fn descriptors(&self) -> Option<Fill> {
                None
            }
        }
        let gate = Gate::with_probe(Settings::default(), Box::new(Silent));
        assert_eq!(gate.admit(Work::Session), Ok(()));
        assert_eq!(gate.load(), Load::default());
    }
}
