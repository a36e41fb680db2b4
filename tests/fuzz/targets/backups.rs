//! Backups: the sealed stream, and the entries in it.

use std::io::{self, Read, Write};

use postern::backup::{self, Contents, Counts, Entry, Manifest, fill, parse, put, verify};
use postern::ext::Timestamp;
use postern::mail::{BodyId, QueueId};
use postern::seal::{BackupKey, MasterKey, OpeningReader, SealingWriter, StreamError};

use super::feed::{Feed, pieces};

/// Octets of plain text in a chunk, and of a chunk and the header of a stream.
const CHUNK: usize = 64 * 1024;
const SEALED: usize = CHUNK + 16;
const HEADER: usize = 64;

fn key() -> BackupKey {
    BackupKey::from_bytes([7; 32])
}

fn sealed(parts: &[&[u8]]) -> Vec<u8> {
    let mut writer = SealingWriter::new(Vec::new(), &key()).unwrap();
    parts.iter().for_each(|part| writer.write_all(part).unwrap());
    writer.finish().unwrap()
}

/// What is read of a stream, and why no more of it is.
fn opened(bytes: &[u8], (key, step): (&BackupKey, usize)) -> (Vec<u8>, Option<io::Error>) {
    let (mut plain, mut part) = (Vec::new(), vec![0; step]);
    let mut reader = match OpeningReader::new(bytes, key) {
        Ok(reader) => reader,
        Err(error) => return (plain, Some(error)),
    };
    loop {
        match reader.read(&mut part) {
            Ok(0) => return (plain, None),
            Ok(count) => plain.extend_from_slice(&part[..count]),
            Err(error) => return (plain, Some(error)),
        }
        assert!(plain.len() <= bytes.len(), "more came out than went in");
    }
}

fn harmed(feed: &mut Feed<'_>, whole: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let place = usize::try_from(feed.number() % whole.len() as u64).unwrap();
    let chunks = (whole.len() - HEADER).div_ceil(SEALED);
    let chunk = |number: usize| HEADER + number * SEALED..(HEADER + (number + 1) * SEALED).min(whole.len());
    match feed.below(7) {
        0 => {}
        1 => bytes[place] ^= feed.byte(),
        2 => bytes.truncate(place),
        3 => bytes.extend_from_slice(feed.take(40)),
        4 => drop(bytes.drain(place..(place + 1 + feed.below(40)).min(whole.len()))),
        5 => {
            // Chunks in another order, or one of them twice.
            let order: Vec<usize> = (0..chunks).map(|_| feed.below(chunks)).collect();
            bytes.truncate(HEADER);
            order.iter().for_each(|number| bytes.extend_from_slice(&whole[chunk(*number)]));
        }
        _ => {
            // The same plain text under the same key, in another stream.
            let (other, which) = (sealed(&[plain]), feed.below(chunks));
            bytes[chunk(which)].copy_from_slice(&other[chunk(which)]);
        }
    }
    bytes
}

/// A stream opens as it was sealed, or not: what comes out before that is found is whole chunks of the beginning.
pub fn sealed_stream(input: &[u8]) {
    let mut feed = Feed(input);
    let length = [0, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 99].get(feed.below(32)).copied();
    let (sizes, step) = (feed.take(3), 1 + 97 * usize::from(feed.byte()));
    let mut harm = Feed(feed.take(24));
    let text = feed.rest();
    let plain = match length {
        Some(length) => [text, b"."].concat().iter().copied().cycle().take(length).collect(),
        None => text.to_vec(),
    };
    let parts: Vec<&[u8]> =
        if length.is_some() { plain.chunks(1 + 31 * step).collect() } else { pieces(&plain, sizes) };
    let whole = sealed(&parts);
    let (read, error) = opened(&whole, (&key(), step));
    assert!(error.is_none() && read == plain, "{error:?}");
    let bytes = harmed(&mut harm, &whole, &plain);
    let (read, error) = opened(&bytes, (&key(), step));
    if bytes == whole {
        assert!(error.is_none() && read == plain);
    } else {
        let error = error.expect("what was harmed is opened to its end");
        let is_told = error.get_ref().is_some_and(|inner| inner.is::<StreamError>());
        assert!(is_told && read.len().is_multiple_of(CHUNK) && plain.starts_with(&read), "{error}");
    }
    let (read, error) = opened(&whole, (&BackupKey::from_bytes([8; 32]), step));
    assert!(read.is_empty() && error.is_some(), "another key");
    assert!(opened(text, (&key(), step)).1.is_some(), "octets of nobody are opened");
}

/// What a backup holds is read as it was written; one that is not what its end says is refused.
pub fn backup(input: &[u8]) {
    raw(input);
    let mut feed = Feed(input);
    let (fault, which) = (feed.below(8), usize::from(feed.byte()));
    let (wrapped, texts) = (key().wrap(&MasterKey::from_bytes([1; 32])), feed.rest());
    let mut written = Written::default();
    written.make(&mut Feed(texts), &wrapped);
    let is_whole = written.harm(fault, which);
    let mut bytes = Vec::new();
    written.entries.iter().for_each(|(entry, _)| put(&mut bytes, entry).unwrap());
    match (verify(&packed(&bytes)[..], &key()), is_whole) {
        (Ok(contents), true) => assert_eq!(contents, written.contents()),
        (Err(_), false) => {}
        (read, _) => panic!("fault {fault} at {which}: {read:?} of {:?}", written.entries),
    }
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packer = zstd::stream::write::Encoder::new(SealingWriter::new(Vec::new(), &key()).unwrap(), 1).unwrap();
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap().finish().unwrap()
}

/// Any octets as entries: each is written as it was read, within their length.
fn raw(input: &[u8]) {
    let (mut rest, mut buffer, mut last) = (input, Vec::new(), None);
    while fill(&mut rest, &mut buffer).is_ok() {
        assert!(buffer.len() + rest.len() + 4 <= input.len());
        let Ok(entry) = parse(&buffer) else { return };
        let mut again = Vec::new();
        put(&mut again, &entry).unwrap();
        assert_eq!(parse(&again[4..]).unwrap(), entry);
        assert_eq!(u32::from_le_bytes(again[..4].try_into().unwrap()) as usize, again.len() - 4);
        last = Some(matches!(entry, Entry::Finished(_)));
    }
    if verify(&packed(input)[..], &key()).is_ok() {
        assert_eq!((last, rest.len()), (Some(true), 0), "whole without its end");
    }
}

/// Entries of a backup as the daemon writes them, and whether they are counted.
#[derive(Default)]
struct Written<'a> {
    entries: Vec<(Entry<'a>, bool)>,
    counts: Counts,
}

impl<'a> Written<'a> {
    fn put(&mut self, entry: Entry<'a>) {
        self.entries.push((entry, false));
    }

    fn counted(&mut self, entry: Entry<'a>) {
        self.entries.push((entry, true));
    }

    fn make(&mut self, feed: &mut Feed<'a>, wrapped: &'a [u8]) {
        self.put(Entry::Manifest(manifest()));
        self.put(Entry::MasterKey(wrapped));
        self.files(feed);
        self.put(Entry::Store(feed.number()));
        while !feed.is_empty() && self.entries.len() < 60 {
            let id = BodyId { queue_id: QueueId([feed.byte(); 16]), number: 0 };
            match feed.below(5) {
                0 => {
                    self.counts.records += 1;
                    self.counted(Entry::Set(feed.until(0), feed.until(0)));
                }
                1 => {
                    self.counts.records += 1;
                    self.counted(Entry::Remove(feed.until(0)));
                }
                2 => {
                    self.counts.unreadable += 1;
                    self.counted(Entry::Unreadable(id, "it cannot be read"));
                }
                _ => self.body(feed, id),
            }
        }
        self.files(feed);
        self.put(Entry::Finished(self.counts));
    }

    fn files(&mut self, feed: &mut Feed<'a>) {
        for place in [backup::Place::Configuration, backup::Place::Certificates, backup::Place::History] {
            let name = str::from_utf8(feed.until(0)).unwrap_or("name");
            self.counted(Entry::File(place, name));
            self.put(Entry::Part(feed.until(0)));
            self.put(Entry::End);
            self.counts.files += 1;
        }
    }

    fn body(&mut self, feed: &mut Feed<'a>, id: BodyId) {
        let (envelope, parts) = (feed.until(0), [feed.until(0), feed.until(0)]);
        let length = (parts[0].len() + parts[1].len()) as u64;
        let is_readable = feed.below(4) > 0;
        self.entries.push((Entry::Body(id, envelope, length), is_readable));
        parts.iter().for_each(|part| self.put(Entry::Part(part)));
        if is_readable {
            self.counts.bodies += 1;
            self.counts.body_bytes += length;
            self.put(Entry::End);
        } else {
            self.counts.unreadable += 1;
            self.counted(Entry::Unreadable(id, "its checksum does not match"));
        }
    }

    /// Does what `fault` says; whether it is still what the daemon would write.
    fn harm(&mut self, fault: usize, which: usize) -> bool {
        let counted: Vec<usize> = (0..self.entries.len()).filter(|at| self.entries[*at].1).collect();
        let one = counted[which % counted.len()];
        let last = self.entries.len() - 1;
        match fault {
            1 => drop(self.entries.remove(one)),
            2 => self.entries.insert(one, self.entries[one].clone()),
            3 => drop(self.entries.remove(which % 2)),
            4 => drop(self.entries.pop()),
            5 => self.entries.push((Entry::End, false)),
            6 => {
                let mut counts = self.counts;
                let wrong = 1 + which as u64;
                match which % 4 {
                    0 => counts.records += wrong,
                    1 => counts.bodies += wrong,
                    2 => counts.body_bytes += wrong,
                    _ => counts.files += wrong,
                }
                self.entries[last].0 = Entry::Finished(counts);
            }
            _ => return true,
        }
        false
    }

    fn contents(&self) -> Contents {
        let Manifest { hostname, release, taken, .. } = manifest();
        let Counts { records, bodies, body_bytes, unreadable, files } = self.counts;
        Contents { hostname, release, taken, records, bodies, body_bytes, unreadable, files }
    }
}

fn manifest() -> Manifest {
    let (hostname, release) = ("mail.example".to_owned(), "0.1.0".to_owned());
    Manifest { hostname, release, store_format: 2, taken: Timestamp(1_795_342_500_000) }
}
