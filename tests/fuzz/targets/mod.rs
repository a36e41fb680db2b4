//! Every fuzz target as a plain function: it takes any bytes and panics if a promise is broken.
//!
//! Two programs share this folder: `tests/it/fuzz.rs` runs the targets on stable Rust over the
//! corpus and over mutated input, and `tests/fuzz` runs one of them under libFuzzer by hand.
//! A target asserts properties (round trips, bounds, equality with a model), never only "no panic".

mod backups;
mod copy;
mod dialogue;
mod disk;
mod door;
mod feed;
pub mod kinds;
mod lists;
mod message;
mod mime;
mod peer;
mod published;
mod records;
mod returned;
mod words;

/// One target.
pub struct Target {
    /// Its name, and that of its folder in `tests/fuzz/corpus`.
    pub name: &'static str,
    /// Panics if the input breaks a promise.
    pub run: fn(&[u8]),
    /// Mutated inputs in one run of the tests; chosen so that no target takes long in a debug build.
    pub rounds: u32,
}

/// All of them, in the order of the path of a message.
pub const TARGETS: &[Target] = &[
    Target { name: "lines", run: door::lines, rounds: 600 },
    Target { name: "command", run: door::command, rounds: 10_000 },
    Target { name: "session", run: door::session, rounds: 4_000 },
    Target { name: "data", run: door::data, rounds: 8_000 },
    Target { name: "stuffing", run: door::stuffing, rounds: 8_000 },
    Target { name: "xtext", run: words::xtext, rounds: 10_000 },
    Target { name: "address", run: words::address, rounds: 10_000 },
    Target { name: "ids", run: words::ids, rounds: 4_000 },
    Target { name: "dkim_record", run: words::dkim_record, rounds: 4_000 },
    Target { name: "header", run: message::header, rounds: 6_000 },
    Target { name: "from", run: message::from, rounds: 6_000 },
    Target { name: "pipeline", run: message::pipeline, rounds: 300 },
    Target { name: "notice", run: message::notice, rounds: 2_000 },
    Target { name: "media_type", run: mime::media_type, rounds: 6_000 },
    Target { name: "encodings", run: mime::encodings, rounds: 4_000 },
    Target { name: "rewrite", run: mime::rewrite, rounds: 3_000 },
    Target { name: "tree", run: mime::tree, rounds: 2_000 },
    Target { name: "reply", run: peer::reply, rounds: 6_000 },
    Target { name: "ehlo", run: peer::ehlo, rounds: 6_000 },
    Target { name: "judged", run: published::judged, rounds: 2_000 },
    Target { name: "dialogue", run: dialogue::dialogue, rounds: 4_000 },
    Target { name: "tlsrpt_record", run: published::tlsrpt_record, rounds: 8_000 },
    Target { name: "mta_sts", run: published::mta_sts, rounds: 6_000 },
    Target { name: "returned", run: returned::returned, rounds: 2_000 },
    Target { name: "tags", run: returned::tags, rounds: 4_000 },
    Target { name: "csv", run: lists::csv, rounds: 1_500 },
    Target { name: "import", run: lists::import, rounds: 1_500 },
    Target { name: "stored", run: records::stored, rounds: 6_000 },
    Target { name: "routes", run: records::routes, rounds: 3_000 },
    Target { name: "sealed", run: records::sealed, rounds: 3_000 },
    Target { name: "operations", run: disk::operations, rounds: 6_000 },
    Target { name: "journal", run: disk::journal, rounds: 1_500 },
    Target { name: "copy", run: copy::copy, rounds: 800 },
    Target { name: "sealed_stream", run: backups::sealed_stream, rounds: 60 },
    Target { name: "backup", run: backups::backup, rounds: 800 },
    Target { name: "archive", run: disk::archive, rounds: 400 },
    Target { name: "config", run: disk::config, rounds: 600 },
    Target { name: "certificates", run: disk::certificates, rounds: 150 },
];
