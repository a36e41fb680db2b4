//! When the daemon of a round dies: at random moments, mostly young, now and then old enough for
//! checkpoints and reclaimed segments to lie behind it, and in the midst of making the copy of its records.
//!
//! The first copy and the first checkpoint come five seconds after a start: rounds that all die before that would
//! show nothing of either.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// Repeats the moments of an earlier run, as far as the machine lets it.
const SEED: &str = "POSTERN_CRASH_SEED";
/// How long the daemon may take to do what a round waits for; generous because machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A late round lasts so long at least, and up to ...
const LATE_MS: u64 = 4_800;
/// ... so much longer: its end falls before, into and behind the first checkpoint.
const LATE_SPREAD_MS: u64 = 2_500;
/// A round that dies in the midst of a new copy does so within this after the copy was begun.
const COPY_SPREAD_MS: u64 = 8;

/// What was given by [`SEED`].
pub fn given_seed() -> Option<u64> {
    std::env::var(SEED).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{SEED}={text} is no number")))
}

/// What the moments are made of: what was given, else the clock.
pub fn seed() -> u64 {
    static MADE: OnceLock<u64> = OnceLock::new();
    let clock = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros().try_into().unwrap();
    *MADE.get_or_init(|| given_seed().unwrap_or_else(clock))
}

/// Says how these moments can be had again. The output of a test is shown if it fails.
pub fn tell_seed(seed: u64) {
    println!("the same moments again: {SEED}={seed}");
}

fn random_ms(what: &str, round: u64, below: u64) -> Duration {
    let mut hasher = DefaultHasher::new();
    (seed(), what, round).hash(&mut hasher);
    Duration::from_millis(hasher.finish() % below)
}

/// A short pause that differs from round to round, so that faults fall everywhere.
pub fn pause(round: u64) -> Duration {
    Duration::from_millis(120) + random_ms("pause", round, 700)
}

/// When the daemon of a round dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Within a second, with a copy of the records there.
    Early,
    /// After five to seven seconds, behind a checkpoint or within one.
    Late,
    /// While it writes the copy of its records, which it found missing.
    InNewCopy,
}

/// Every fourth round is a long one.
pub fn moment(round: u64) -> Moment {
    match round % 8 {
        0 => Moment::InNewCopy,
        4 => Moment::Late,
        _ => Moment::Early,
    }
}

/// How long a round lasts at least; for [`Moment::InNewCopy`] from when the copy was begun.
pub fn lasts(round: u64) -> Duration {
    match moment(round) {
        Moment::Early => pause(round),
        Moment::Late => Duration::from_millis(LATE_MS) + random_ms("late", round, LATE_SPREAD_MS),
        Moment::InNewCopy => random_ms("copy", round, COPY_SPREAD_MS),
    }
}

/// What running daemons were seen to do to their store, and what was found when they had died.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Rounds in which a checkpoint was appended to the copy of the records.
    pub checkpoints: u64,
    /// Rounds in which a copy was begun anew.
    pub copies: u64,
    /// Files of segments that were given back.
    pub given_back: u64,
    /// Deaths after which the records were compared with a copy of them.
    pub compared: u64,
    /// Deaths after which there was no whole copy.
    pub without_copy: u64,
}

/// Looks at the store of a running daemon from outside.
pub struct Watch {
    store: PathBuf,
    copy: Option<(OsString, u64)>,
    segments: BTreeSet<OsString>,
    appended: bool,
    begun: bool,
}

impl Watch {
    pub fn begin(store: &Path) -> Self {
        let (store, segments) = (store.to_owned(), BTreeSet::new());
        let mut watch = Self { store, copy: None, segments, appended: false, begun: false };
        watch.copy = watch.newest_copy();
        watch.segments = watch.names("segments");
        watch
    }

    /// Looks once more, and enters what changed.
    pub fn look(&mut self, seen: &mut Seen) {
        let copy = self.newest_copy();
        let is_same = |one: &(OsString, u64), other: &(OsString, u64)| one.0 == other.0;
        let appended = matches!((&self.copy, &copy), (Some(one), Some(two)) if is_same(one, two) && two.1 > one.1);
        let is_new = copy.as_ref().is_some_and(|two| !self.copy.as_ref().is_some_and(|one| is_same(one, two)));
        let begun = is_new || self.names("copy").iter().any(|name| name == "new");
        seen.checkpoints += u64::from(appended && !self.appended);
        seen.copies += u64::from(begun && !self.begun);
        (self.appended, self.begun, self.copy) = (self.appended || appended, self.begun || begun, copy);
        let segments = self.names("segments");
        seen.given_back += self.segments.difference(&segments).count() as u64;
        self.segments = segments;
    }

    /// Whether a whole copy is there.
    pub fn has_copy(&self) -> bool {
        self.copy.is_some()
    }

    /// Whether a copy was begun since this began.
    pub fn saw_new_copy(&self) -> bool {
        self.begun
    }

    fn newest_copy(&self) -> Option<(OsString, u64)> {
        let whole = |name: &OsString| Path::new(name).extension().is_some_and(|extension| extension == "records");
        let name = self.names("copy").into_iter().rfind(whole)?;
        // It may be removed by now.
        let length = fs::metadata(self.store.join("copy").join(&name)).ok()?.len();
        Some((name, length))
    }

    fn names(&self, folder: &str) -> BTreeSet<OsString> {
        let entries = fs::read_dir(self.store.join(folder)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    }
}

/// Looks again and again until `is_done`; `Err` when patience ends.
pub fn watch_until(
    watch: &mut Watch,
    seen: &mut Seen,
    every: Duration,
    is_done: impl Fn(&Watch, &Seen) -> bool,
) -> Result<(), ()> {
    let began = Instant::now();
    loop {
        watch.look(seen);
        if is_done(watch, seen) {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(());
        }
        std::thread::sleep(every);
    }
}
