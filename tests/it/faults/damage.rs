//! A bit flipped, or the end cut off, in any file of the store: the daemon starts. In a message only that
//! message is set aside and reported; in the records or their copy nothing is lost. Only a format that
//! cannot be read is refused, with the remedy. `postern store salvage` finds tenants and mail as well.
//! Nothing arrives that was never sent, and nothing that had been delivered arrives again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use postern::cli::exit;

use crate::harness::load::{SinkMood, TlsSession};
use crate::harness::moments::{given_seed, seed, tell_seed};
use crate::harness::not_run;
use crate::harness::promise::{Promise, is_long, is_quick, row};

/// Flips and truncations in a short and in a long round.
const SHORT: (usize, usize) = (8, 4);
const LONG: (usize, usize) = (200, 50);
/// The first retry comes after 10 s and up to a fifth more: then everything owed is due at a start.
const UNTIL_DUE: Duration = Duration::from_secs(13);
/// Nothing arriving for so long means that nothing more will.
const QUIET: Duration = Duration::from_secs(3);
const LONG_QUIET: Duration = Duration::from_secs(20);
/// How the process ends when its storage fails: while it serves, and while it starts.
const MENDED_BY_THE_NEXT_START: [i32; 2] = [74, 1];
/// Starts on one harmed folder, at most.
const LIVES_MAX: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// What the short round harms: the same in every run.
const SHORT_SEED: u64 = 0x005E_ED0F_DA7A;

/// A generator whose numbers follow from its seed: a failure can be looked at again.
struct Dice(u64);

impl Dice {
    /// From the environment; else a long round's is its own, and a short round's that of every other.
    fn new() -> Self {
        let seed = given_seed().unwrap_or_else(|| if is_long() { seed() } else { SHORT_SEED });
        tell_seed(seed);
        Self(seed.max(1))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[derive(Clone, Copy, Debug)]
enum Harm {
    Flip,
    CutOff,
}

/// Files of the store that hold something, with the length of that.
fn written_files(folder: &Path, found: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            written_files(&path, found);
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            found.push((path, last as u64 + 1));
        }
    }
    found.sort();
}

/// Harms one file below `data`; what was done.
fn harm(data: &Path, harm: Harm, dice: &mut Dice) -> (PathBuf, String) {
    let mut files = Vec::new();
    written_files(&data.join("store"), &mut files);
    // The record engine has many small files, mail lies in few large ones: each kind gets its share.
    let wants_segment = dice.below(2) == 0;
    files.retain(|(path, _)| path.starts_with(data.join("store/segments")) == wants_segment);
    let (path, length) = files.swap_remove(usize::try_from(dice.below(files.len() as u64)).unwrap());
    let at = dice.below(length);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    match harm {
        Harm::Flip => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << dice.below(8))], at).unwrap();
        }
        Harm::CutOff => file.set_len(at).unwrap(),
    }
    let name = path.strip_prefix(data).unwrap().to_owned();
    let what = format!("{harm:?} at {at} of {length} in {}", name.display());
    (name, what)
}

/// An installation that owes mail and has delivered some, stopped in order.
struct Base {
    promise: Promise,
    data: PathBuf,
    owed: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
}

impl Base {
    fn make(folder: &Path) -> Self {
        let mut promise = Promise::make(folder, &folder.join("data"), SinkMood::Takes);
        let senders = promise.senders();
        wait_until(|| promise.sink.arrivals.len() > 8);
        promise.sink.set_mood(SinkMood::Shut);
        let before = promise.ledger.len();
        wait_until(|| promise.ledger.len() > before + 15);
        senders.stop();
        assert!(promise.instance.stop().success());
        thread::sleep(UNTIL_DUE);
        promise.sink.set_mood(SinkMood::Takes);
        let data = promise.instance.data.clone();
        let delivered = promise.sink.arrivals.serials();
        // Everything taken is owed, also what was taken while its client was told to stop.
        let owed = promise.missing();
        assert!(!owed.is_empty() && !delivered.is_empty());
        Self { promise, data, owed, delivered }
    }

    /// Starts on the harmed copy and lets it settle. `Err` if the daemon refuses, or gives up.
    fn settle_in(&mut self, data: &Path) -> Result<BTreeSet<u64>, String> {
        let before: BTreeMap<u64, usize> =
            self.owed.iter().map(|serial| (*serial, self.promise.sink.arrivals.copies(*serial))).collect();
        self.promise.instance.use_data(data);
        let mut lives = 0;
        self.start_as_often_as_systemd(&mut lives)?;
        let mut left: BTreeSet<u64> = self.owed.clone();
        let mut changed = Instant::now();
        // One may never come; for more than one it is worth waiting long.
        while !left.is_empty() && changed.elapsed() < if left.len() == 1 { QUIET } else { LONG_QUIET } {
            if let Some(status) = self.promise.instance.ended() {
                if !MENDED_BY_THE_NEXT_START.contains(&status.code().unwrap_or(-1)) {
                    return Err(format!("it ended with {status}"));
                }
                self.start_as_often_as_systemd(&mut lives)?;
                changed = Instant::now();
            }
            let still = left.len();
            left.retain(|serial| self.promise.sink.arrivals.copies(*serial) == before[serial]);
            if left.len() < still {
                changed = Instant::now();
            }
            thread::sleep(Duration::from_millis(50));
        }
        let tenants = self.promise.instance.tool(&["tenant", "list"]);
        assert!(tenants.contains("shop"), "the tenant is gone: {tenants}");
        self.promise.instance.kill();
        Ok(left)
    }

    /// Damage met in the midst of work, or while the rooms open, ends the process; whoever watches it
    /// starts it again.
    fn start_as_often_as_systemd(&mut self, lives: &mut u32) -> Result<(), String> {
        loop {
            *lives += 1;
            match self.promise.instance.try_start() {
                Err(_) if *lives < LIVES_MAX => {}
                started => return started.map(drop).map_err(|why| format!("after {lives} starts: {why}")),
            }
        }
    }

    /// What `postern store salvage` makes of a harmed folder: everybody and all mail, whatever is harmed in
    /// records or copy. Every other thing is left for [`Base::settle_in`].
    fn salvage_of(&mut self, data: &Path, (into, what): (&Path, &str)) {
        let own = self.promise.instance.data.clone();
        self.promise.instance.use_data(data);
        let told = self.promise.instance.try_tool(&["store", "salvage", "--json", "--into", &into.to_string_lossy()]);
        let words = String::from_utf8_lossy(&told.stdout).into_owned();
        let code = told.status.code();
        let told: serde_json::Value = serde_json::from_str(&words).unwrap_or_else(|_| panic!("{what}: {words}"));
        assert_eq!(told["owed"], self.owed.len(), "{what}: {told}");
        let is_all = told["failed"] == serde_json::json!([]);
        assert_eq!(code, Some(if is_all { 0 } else { i32::from(exit::FAILED) }), "{what}: {told}");
        let is_of_copy = what.contains("store/copy");
        if !is_of_copy {
            assert_eq!(told["failed"], serde_json::json!([]), "{what}");
            self.promise.instance.use_data(into);
            self.promise.sink.set_mood(SinkMood::Shut);
            self.promise.instance.start();
            for (list, wanted) in [(["tenant", "list"].as_slice(), "shop"), (&["domain", "list", "shop"], "shop.test")]
            {
                assert!(self.promise.instance.tool(list).contains(wanted), "{what}: {list:?}");
            }
            let mut session = TlsSession::open(self.promise.instance.door).unwrap();
            session.login(&self.promise.load.login, &self.promise.load.password).unwrap();
            self.promise.instance.kill();
            self.promise.sink.set_mood(SinkMood::Takes);
        }
        fs::remove_dir_all(into).unwrap();
        self.promise.instance.use_data(&own);
    }

    fn log_since(&self, start: u64) -> String {
        let log = fs::read(self.promise.instance.log()).unwrap();
        String::from_utf8_lossy(&log[usize::try_from(start).unwrap()..]).into_owned()
    }
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited too long");
        thread::sleep(Duration::from_millis(10));
    }
}

/// How often each ending was seen.
#[derive(Debug, Default)]
struct Endings {
    unharmed: u64,
    set_aside: u64,
    made_anew: u64,
    salvaged: u64,
    mended: u64,
}

/// One harm to a copy of `base`, judged.
fn one(base: &mut Base, folder: &Path, (kind, dice): (Harm, &mut Dice), endings: &mut Endings) {
    let copy = folder.join("harmed");
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([&base.data, &copy]).status().unwrap();
    assert!(copied.success());
    let (file, what) = harm(&copy, kind, dice);
    let log_start = base.promise.instance.log().metadata().unwrap().len();
    let is_of_records = file.starts_with("store/records") || file.starts_with("store/copy");
    if is_of_records {
        base.salvage_of(&copy, (&folder.join("saved"), &what));
        endings.salvaged += 1;
    }
    let outcome = base.settle_in(&copy);
    let log = base.log_since(log_start);
    assert!(!log.contains("panicked at 'src") && !log.contains("panicked at src"), "{what}: our code panicked\n{log}");
    match outcome {
        Ok(left) if left.is_empty() && log.contains("made anew") => endings.made_anew += 1,
        Ok(left) if left.is_empty() => endings.unharmed += 1,
        Ok(left) if is_of_records => panic!("{what}: mail was lost with the records: {left:?}\n{log}"),
        Ok(left) => {
            assert!(log.contains("amage"), "{what}: {left:?} did not arrive and nothing was reported\n{log}");
            let is_segment = file.starts_with("store/segments");
            if matches!(kind, Harm::Flip) && is_segment {
                assert_eq!(left.len(), 1, "{what}: one bit took more than one message\n{log}");
            }
            endings.set_aside += 1;
        }
        // A format nobody can read is not guessed: the refusal says which line the file must hold.
        Err(why) if file.ends_with("store/format") => {
            assert!(log.contains("format"), "{what}: {why}\n{log}");
            fs::write(copy.join("store/format"), format!("postern store {}\n", postern::store::FORMAT)).unwrap();
            let left = base.settle_in(&copy).unwrap();
            assert!(left.is_empty(), "{what}: {why}; not there after the remedy: {left:?}");
            endings.mended += 1;
        }
        Err(why) => panic!("{what}: the daemon does not start: {why}\n{log}"),
    }
    println!("{what}: {endings:?}");
    let again: Vec<_> =
        base.delivered.iter().filter(|serial| base.promise.sink.arrivals.copies(**serial) > 1).collect();
    assert!(again.is_empty(), "{what}: delivered again after its delivery was recorded: {again:?}");
    let data = base.data.clone();
    base.promise.instance.use_data(&data);
    fs::remove_dir_all(&copy).unwrap();
}

#[test]
fn damage_in_any_file_stays_with_what_it_touched_and_everybody_and_all_other_mail_is_there() {
    if is_quick() {
        return not_run("damaged files", "left out of the quick run");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut base = Base::make(folder.path());
    let (flips, cuts) = if is_long() { LONG } else { SHORT };
    let mut dice = Dice::new();
    let mut endings = Endings::default();
    for _ in 0..flips {
        one(&mut base, folder.path(), (Harm::Flip, &mut dice), &mut endings);
    }
    for _ in 0..cuts {
        one(&mut base, folder.path(), (Harm::CutOff, &mut dice), &mut endings);
    }
    println!("damaged files: {flips} flips, {cuts} cuts; {endings:?}");
    let told =
        format!("{} set aside and reported, {} times the records made anew", endings.set_aside, endings.made_anew);
    let rounds = (flips + cuts).to_string();
    row(&[format!("damaged files: {told}"), rounds, base.owed.len().to_string()]);
    assert_eq!(base.promise.sink.arrivals.invented(&base.promise.load), Vec::<u64>::new(), "invented");
}

/// Flips a bit in the first line that says so in a segment.
fn flip_in_segment(data: &Path, line: &str) {
    let mut files = Vec::new();
    written_files(&data.join("store/segments"), &mut files);
    for (path, _) in files {
        let bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(line.len()).position(|window| window == line.as_bytes()) {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            return file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
        }
    }
    panic!("no segment holds {line:?}");
}

#[test]
fn what_verify_and_salvage_cannot_read_they_name_and_end_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut promise = Promise::make(folder.path(), &data, SinkMood::Shut);
    let senders = promise.senders();
    wait_until(|| promise.ledger.len() > 10);
    senders.stop();
    assert!(promise.instance.stop().success());
    let tool = |arguments: &[&str]| {
        let done = promise.instance.try_tool(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    let (code, told, _) = tool(&["store", "verify"]);
    assert!(code == Some(0) && !told.contains("damaged"), "{code:?} {told}");
    let (code, whole, _) = tool(&["store", "salvage", "--json"]);
    let whole: serde_json::Value = serde_json::from_str(&whole).unwrap();
    assert!(code == Some(0) && whole["failed"] == serde_json::json!([]), "{whole}");
    let bodies = whole["bodies"].as_u64().unwrap();

    let harmed = *promise.ledger.serials().first().unwrap();
    flip_in_segment(&data, &format!("X-Serial: {harmed}\r\n"));
    let saved = folder.path().join("saved").to_string_lossy().into_owned();
    for arguments in [&["store", "verify"][..], &["store", "salvage"], &["store", "salvage", "--into", &saved]] {
        let (code, told, why) = tool(arguments);
        assert_eq!(code, Some(i32::from(exit::FAILED)), "{arguments:?}: {told}{why}");
        assert!(told.contains("\ndamaged: "), "{arguments:?}: {told}{why}");
        assert!(
            why.lines().count() == 1 && why.contains("damaged places") | why.contains("could not be saved"),
            "{why}"
        );
    }
    // Everything else is in the new folder, which is whole.
    promise.instance.use_data(Path::new(&saved));
    let report = promise.store_report().unwrap();
    assert_eq!((report.bodies, report.damaged), (bodies - 1, Vec::new()));
}
