//! The fuzz targets on stable Rust: every file of the corpus, then mutated input from a seed.
//!
//! `POSTERN_FUZZ_SECONDS=N` feeds each target for N seconds instead of for its rounds;
//! `POSTERN_FUZZ_SEED=N` repeats a run, `POSTERN_FUZZ_ROUNDS=N` multiplies the rounds by N.
//! docs/how-to/fuzz.md says how a target is added and a crash is kept.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[path = "../fuzz/mutate.rs"]
mod mutate;
#[path = "../fuzz/targets/mod.rs"]
pub mod targets;

use mutate::Random;
use targets::{TARGETS, Target};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// The files of a target's corpus, by name.
fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder().join("corpus").join(target.name)).expect("every target has a corpus");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// How long a target is fed after its corpus.
#[derive(Clone, Copy)]
enum Feeding {
    Rounds(u64),
    For(Duration),
}

impl Feeding {
    fn of(target: &Target) -> Self {
        match number("POSTERN_FUZZ_SECONDS") {
            Some(seconds) => Self::For(Duration::from_secs(seconds)),
            None => Self::Rounds(u64::from(target.rounds) * number("POSTERN_FUZZ_ROUNDS").unwrap_or(1)),
        }
    }

    fn is_over(self, fed: u64, began: Instant) -> bool {
        match self {
            Self::Rounds(rounds) => fed >= rounds,
            Self::For(time) => began.elapsed() >= time,
        }
    }
}

/// Runs one target; a failing input is written where the message says.
fn run(target: &Target) {
    let seed = number("POSTERN_FUZZ_SEED").unwrap_or_else(|| u64::from_be_bytes(postern::ext::random_bytes()));
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "{} has an empty corpus", target.name);
    println!("{}: {} files, POSTERN_FUZZ_SEED={seed}", target.name, corpus.len());
    for (path, input) in &corpus {
        attempt(target, input, &path.display().to_string());
    }
    let inputs: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();
    let words = mutate::dictionary(&fs::read_to_string(folder().join("dictionary")).unwrap());
    let began = Instant::now();
    let fed = feed(target, Feeding::of(target), seed, |random| mutate::mutated(random, &inputs, &words));
    println!("{}: {fed} inputs in {} ms", target.name, began.elapsed().as_millis());
}

/// Gives a target one input after the other; how many. One that saw none was not tested, and that is a failure.
fn feed(target: &Target, feeding: Feeding, seed: u64, make: impl Fn(&mut Random) -> Vec<u8>) -> u64 {
    let (mut random, began, mut fed) = (Random(seed), Instant::now(), 0);
    while !feeding.is_over(fed, began) {
        let input = make(&mut random);
        attempt(target, &input, &format!("round {fed} of POSTERN_FUZZ_SEED={seed}"));
        fed += 1;
    }
    assert!(fed > 0, "{} saw no input in its time", target.name);
    fed
}

fn attempt(target: &Target, input: &[u8], what: &str) {
    let Err(cause) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) else { return };
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
    fs::write(&kept, input).unwrap();
    let text = cause.downcast_ref::<String>().cloned();
    let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
    panic!("{}, {what}: {text}\ninput: {}\nkept in {}", target.name, input.escape_ascii(), kept.display());
}

fn run_by_name(name: &str) {
    run(TARGETS.iter().find(|target| target.name == name).expect("a target of that name"));
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run_by_name(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_a_test_and_every_corpus_a_target() {
            let tests = [$(stringify!($name)),*];
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(tests.to_vec(), names);
            for entry in fs::read_dir(folder().join("corpus")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(names.contains(&name.as_str()), "corpus/{name} has no target");
            }
        }
    };
}

tests! {
    lines command session data stuffing xtext address ids dkim_record header from pipeline notice
    media_type encodings rewrite tree reply ehlo judged dialogue tlsrpt_record mta_sts returned tags csv import stored
    routes sealed operations journal copy sealed_stream backup archive config certificates
}

#[test]
fn a_broken_promise_is_found_and_its_input_is_kept() {
    let careless = Target { name: "careless", run: |input| assert!(!input.contains(&b'@'), "an at"), rounds: 1 };
    let found = (0..200).find_map(|seed| {
        let input = mutate::mutated(&mut Random(seed), &[b"a@b".to_vec(), b"ab".to_vec()], &[]);
        catch_unwind(|| attempt(&careless, &input, "round 0")).err().map(|cause| (input, cause))
    });
    let (input, cause) = found.expect("no input with an at in 200 rounds");
    let text = cause.downcast_ref::<String>().unwrap();
    assert!(text.contains("an at") && text.contains("round 0"), "{text}");
    assert_eq!(fs::read(Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz-careless")).unwrap(), input);
}

#[test]
fn a_target_that_sees_no_input_in_its_time_fails() {
    let target = Target { name: "unseen", run: |_| {}, rounds: 1 };
    for (feeding, is_seen) in
        [(Feeding::For(Duration::ZERO), false), (Feeding::Rounds(0), false), (Feeding::Rounds(1), true)]
    {
        let fed = catch_unwind(AssertUnwindSafe(|| feed(&target, feeding, 1, |_| Vec::new())));
        assert_eq!(fed.is_ok(), is_seen);
    }
}

#[test]
fn every_kind_of_record_can_be_fuzzed() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/mod.rs")).unwrap();
    let mut prefixes = 0;
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("pub const ")) {
        let Some((name, value)) = line.trim_end_matches(';').split_once(": u8 = ") else { continue };
        let first = value.strip_prefix("b'").map_or(0, |letter| letter.as_bytes()[0]);
        prefixes += 1;
        // What is due has keys only.
        let is_known = name == "DUE" || targets::kinds::KINDS.iter().any(|kind| kind.prefix == first);
        assert!(is_known, "tests/fuzz/targets/kinds.rs has no kind of record for {name}");
    }
    assert!(prefixes > 30, "prefixes are no longer recognised");
}

#[test]
fn the_same_seed_makes_the_same_inputs() {
    let make = || {
        let mut random = Random(7);
        (0..50).map(|_| mutate::mutated(&mut random, &[b"abc".to_vec()], &[b"word".to_vec()])).collect::<Vec<_>>()
    };
    assert_eq!(make(), make());
    assert_eq!(mutate::dictionary("# x\n\"a\\x0d\\\"\\\\\"\n"), [b"a\r\"\\".to_vec()]);
}
