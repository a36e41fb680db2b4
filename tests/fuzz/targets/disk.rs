//! What is read from disk: the journal, the files of past events, the configuration, certificates.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::LazyLock;

use postern::events::{Archive, Event, EventKind, MailEvent};
use postern::ext::Timestamp;
use postern::mail::{BodyId, Domain, QueueId};
use postern::net::Certificates;
use postern::store::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, FrameSalt, FrameSeal, Frames, Group, NO_BODY, Operation, Operations,
    codec, dead_entries, next_group, operations as read_operations, settled_entries,
};
use serde::Serialize;

use super::feed::Feed;

/// A batch frame is read as it was written, and any bytes are read within their length.
pub fn operations(input: &[u8]) {
    if let Some((commit, list)) = read_operations(input) {
        assert!(list.len() <= input.len() / 5);
        let mut written = Operations::new(commit, 0);
        for operation in &list {
            match operation {
                Operation::Set(key, value) => written.set(key, value),
                Operation::Remove(key) => written.remove(key),
            }
        }
        assert_eq!(written.into_bytes(), input);
    }
    assert_eq!(dead_entries(input).len(), input.len() / 26);
    let settled: usize = settled_entries(input).iter().map(|(_, numbers)| 18 + 2 * numbers.len()).sum();
    assert!(settled <= input.len());
}

const SALT: FrameSalt = FrameSalt([0x5a; 24]);

struct Journal {
    bytes: Vec<u8>,
    /// Every group as it was written, and whether its bytes are still those.
    groups: Vec<(u64, Group, bool)>,
}

impl Journal {
    fn frame(&mut self, group: u64, kind: FrameKind, body: BodyId, payload: &[u8]) -> FrameHeader {
        let header = FrameHeader {
            kind,
            group,
            payload_bytes: payload.len() as u64,
            body,
            envelope_bytes: 0,
            payload_crc: crc32c::crc32c(payload),
        };
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(&header.to_bytes(&SALT, offset));
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(offset as usize + header.frame_bytes() as usize, 0);
        header
    }

    fn group(&mut self, feed: &mut Feed<'_>, number: u64) {
        let start = self.bytes.len() as u64;
        let (mut group, mut crc) = (Group::default(), 0);
        for frame in 0..=feed.below(4) {
            let kind = [FrameKind::Body, FrameKind::Batch, FrameKind::Settled, FrameKind::Dead][feed.below(4)];
            let length = feed.below(90);
            let payload = feed.take(length);
            let id = BodyId { queue_id: QueueId([feed.byte(); 16]), number: frame as u16 };
            let body = if kind == FrameKind::Body { id } else { NO_BODY };
            let offset = self.bytes.len() as u64;
            let header = self.frame(number, kind, body, payload);
            crc = header.fold_into(crc);
            group.frames.push(postern::store::Placed { offset, header });
        }
        let seal = FrameSeal { start, frames: group.frames.len() as u32, group_crc: crc };
        self.frame(number, FrameKind::Seal, NO_BODY, &seal.to_bytes());
        group.is_complete = true;
        group.end = self.bytes.len() as u64;
        self.groups.push((start, group, true));
    }

    /// Does harm to one place, and remembers which groups it met.
    fn harm(&mut self, feed: &mut Feed<'_>) {
        let length = self.bytes.len();
        let at = usize::from(u16::from_be_bytes([feed.byte(), feed.byte()])) % length;
        let before = self.bytes.clone();
        match feed.below(5) {
            0 => self.bytes[at] ^= feed.byte(),
            1 => {
                let to = (at + usize::from(feed.byte())).min(length);
                self.bytes[at..to].fill(feed.byte());
            }
            2 => {
                // A frame that lay elsewhere.
                let from = usize::from(u16::from_be_bytes([feed.byte(), feed.byte()])) % length / 8 * 8;
                let (at, many) = (at / 8 * 8, 8 * feed.below(40));
                let many = many.min(length - at).min(length - from);
                self.bytes.copy_within(from..from + many, at);
            }
            3 => {
                let many = feed.below(80);
                let text = feed.take(many);
                let many = text.len().min(length - at);
                self.bytes[at..at + many].copy_from_slice(&text[..many]);
            }
            _ => self.bytes[at..].fill(0),
        }
        for (start, group, is_whole) in &mut self.groups {
            let range = *start as usize..group.end as usize;
            *is_whole &= self.bytes[range.clone()] == before[range];
        }
    }
}

/// A damaged journal gives every group that is whole and no group that was never written.
pub fn journal(input: &[u8]) {
    let mut feed = Feed(input);
    let mut journal = Journal { bytes: Vec::new(), groups: Vec::new() };
    for number in 1..=1 + feed.below(5) as u64 {
        journal.group(&mut feed, number);
    }
    for _ in 0..feed.below(6) {
        journal.harm(&mut feed);
    }
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&journal.bytes, 0).unwrap();
    let length = journal.bytes.len() as u64;
    let mut frames = Frames::new(&file, SALT, 0, length);
    let (mut found, mut position) = (Vec::new(), 0);
    while let Some(group) = next_group(&mut frames).unwrap() {
        assert!(group.end >= position && group.end <= length, "the scan goes back");
        position = group.end;
        let before: Option<&Group> = found.last();
        assert!(before.is_none_or(|group| group.is_complete || !group.faults.is_empty()), "damage without a word");
        found.push(group);
        assert!(found.len() as u64 <= length / FRAME_HEADER_BYTES as u64 + 2, "the scan does not end");
    }
    for group in found.iter().filter(|group| group.is_complete) {
        assert!(journal.groups.iter().any(|(_, written, _)| written == group), "a group nobody wrote: {group:?}");
    }
    for (start, written, _) in journal.groups.iter().filter(|(_, _, is_whole)| *is_whole) {
        assert!(found.contains(written), "the whole group at {start} was not found: {found:?}");
    }
}

/// What lies before the compressed part of a frame of past events.
#[derive(Serialize)]
struct Index {
    last: Vec<u8>,
    messages: Vec<u32>,
}

const DAY: Timestamp = Timestamp(1_795_342_500_000);

fn event(id: QueueId) -> (Vec<u8>, Vec<u8>) {
    let event = Event { at: DAY, kind: EventKind::Mail(id, MailEvent::Retired) };
    ([b"e", &id.0[..]].concat(), codec::encode(&event))
}

fn archive_frame(id: QueueId) -> Vec<u8> {
    let index = codec::encode(&Index { last: event(id).0, messages: vec![crc32c::crc32c(&id.0)] });
    let packed = zstd::bulk::compress(&codec::encode(&vec![event(id)]), 3).unwrap();
    let sum = crc32c::crc32c_append(crc32c::crc32c(&index), &packed);
    let mut bytes = b"postern1".to_vec();
    for number in [index.len() as u32, packed.len() as u32, sum] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    [bytes, index, packed].concat()
}

/// Whatever lies between two frames of past events, both are found, and a damaged one is left out.
pub fn archive(input: &[u8]) {
    let mut feed = Feed(input);
    let (place, mask) = (usize::from(feed.byte()), feed.byte());
    let (first, second) = (QueueId::new(DAY), QueueId::new(DAY));
    let mut damaged = archive_frame(first);
    let place = place % damaged.len();
    damaged[place] ^= mask;
    let folder = tempfile::tempdir().unwrap();
    let day = &DAY.rfc3339()[..10];
    let bytes = [&damaged[..], feed.rest(), &archive_frame(second), b"postern1"].concat();
    fs::write(folder.path().join(format!("{day}.events")), bytes).unwrap();
    let archive = Archive::open(folder.path()).unwrap();
    assert_eq!(archive.of_message(second).unwrap(), vec![event(second)]);
    let found = archive.of_message(first).unwrap();
    assert_eq!(found, if mask == 0 { vec![event(first)] } else { Vec::new() });
}

/// Every mistake of a configuration is told on one line, with a place that exists.
pub fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let path = Path::new("/etc/postern/postern.toml");
    match postern::config::read(path, &text) {
        Ok(config) => {
            assert!(config.hostname.as_str().contains('.'));
            assert!(config.data.is_absolute() && config.certificates.is_absolute());
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            let lines = text.split('\n').count();
            for problem in problems {
                let shown = problem.to_string();
                assert!(!problem.text.is_empty() && shown.len() < 4_000 + 4 * text.len());
                assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{shown} of {lines} lines");
                assert!(!shown.chars().any(char::is_control), "{shown:?}");
            }
        }
    }
}

static PAIR: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    Certificates::write_self_signed(folder.path(), &name()).unwrap();
    let read = |file| fs::read(folder.path().join(name().as_str()).join(file)).unwrap();
    (read("fullchain.pem"), read("privkey.pem"))
});

fn name() -> Domain {
    Domain::parse("mx.shop.example").unwrap()
}

/// A certificate that was replaced by anything else: the old pair stays, and a folder that never
/// had a sound one is left out with a reason.
pub fn certificates(input: &[u8]) {
    let mut feed = Feed(input);
    let choices = feed.byte();
    let (mut chain, mut key) = PAIR.clone();
    let harmed = if choices & 1 == 0 { &mut chain } else { &mut key };
    let at = usize::from(u16::from_be_bytes([feed.byte(), feed.byte()])) % harmed.len();
    match choices & 6 {
        0 => *harmed = feed.rest().to_vec(),
        2 => harmed.truncate(at),
        _ => harmed[at] ^= feed.byte(),
    }
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join(name().as_str());
    let write = |chain: &[u8], key: &[u8]| {
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("fullchain.pem"), chain).unwrap();
        fs::write(own.join("privkey.pem"), key).unwrap();
    };
    write(&chain, &key);
    let fresh = Certificates::open(folder.path(), &name()).unwrap();
    // A changed octet may make it a sound certificate of another name.
    let is_sound = !fresh.expiries().is_empty();
    assert!(is_sound || !fresh.has_default());
    fs::remove_dir_all(&own).unwrap();
    write(&PAIR.0, &PAIR.1);
    let certificates = Certificates::open(folder.path(), &name()).unwrap();
    assert!(certificates.has_default() && certificates.covers(&name()));
    fs::remove_dir_all(&own).unwrap();
    write(&chain, &key);
    let reloaded = certificates.reload().unwrap();
    assert!(is_sound || certificates.has_default(), "a sound certificate was given up for a broken one");
    assert_eq!(reloaded.problems.is_empty(), is_sound, "{reloaded:?}");
    for (folder, reason) in reloaded.problems {
        assert!(folder == name().as_str() && !reason.is_empty());
    }
}
