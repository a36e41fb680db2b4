//! The second copy of the store's records.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use postern::store::{
    COPY_FORMAT, CopyFile, CopyGroup, CopyWriter, FrameSalt, Operation, Position, copy_head, is_copied, prefix,
};

use super::feed::Feed;

const SALT: FrameSalt = FrameSalt([0x5a; 24]);
const NAME: &str = "0000000000000001.records";

/// A key and its value, `None` if it is removed.
type Changed = (Vec<u8>, Option<Vec<u8>>);

/// A group as it was written.
struct Written {
    start: usize,
    end: u64,
    position: Position,
    changes: Vec<Changed>,
}

/// A base and changes behind it, written by the store's own writers.
fn built(file: &File, feed: &mut Feed<'_>) -> Vec<Written> {
    const FIRST: [u8; 7] =
        [prefix::TENANT, prefix::MESSAGE, prefix::EVENT, prefix::HISTORY, prefix::ENGINE, prefix::SUPPRESSION, 0xff];
    let head = copy_head(SALT, COPY_FORMAT);
    std::os::unix::fs::FileExt::write_all_at(file, &head, 0).unwrap();
    let (mut groups, mut at): (Vec<Written>, u64) = (Vec::new(), head.len() as u64);
    for number in 1..=1 + feed.below(4) as u64 {
        let position = Position { commit: number * 10, segment: number, offset: u64::from(feed.byte()) };
        let mut group = CopyGroup::begin(CopyWriter { file, salt: SALT, group: number, at }, position);
        let mut changes = Vec::new();
        for _ in 0..feed.below(6) {
            let first = FIRST[feed.below(FIRST.len())];
            let key = [&[first], feed.until(0)].concat();
            let value = feed.flag().then(|| feed.until(0).to_vec());
            group.put(&key, value.as_deref()).unwrap();
            changes.push((key, value));
        }
        changes.retain(|(key, _)| is_copied(key));
        let (start, end) = (at, group.end(None).unwrap());
        groups.push(Written { start: usize::try_from(start).unwrap(), end, position, changes });
        at = end;
    }
    groups
}

/// Does harm to one place from `from` on.
fn harm(bytes: &mut Vec<u8>, from: usize, feed: &mut Feed<'_>) {
    let at = from + usize::from(u16::from_be_bytes([feed.byte(), feed.byte()])) % (bytes.len() - from).max(1);
    let at = at.min(bytes.len());
    match feed.below(6) {
        0 if at < bytes.len() => bytes[at] ^= feed.byte(),
        1 => bytes.truncate(at),
        2 => {
            let end = (at + usize::from(feed.byte())).min(bytes.len());
            bytes[at..end].fill(feed.byte());
        }
        3 => bytes[at..].fill(0),
        4 => bytes.extend_from_slice(feed.take(80)),
        _ => {
            // A frame that lay elsewhere.
            let (to, many) = (at / 8 * 8, 8 * feed.below(40));
            let source = usize::from(feed.byte()) * 8 % bytes.len().max(1);
            if to >= from {
                let many = many.min(bytes.len() - to).min(bytes.len() - source);
                bytes.copy_within(source..source + many, to);
            }
        }
    }
}

/// Every change of a copy, or why they are not given.
fn changes(file: &CopyFile) -> Result<Vec<Changed>, String> {
    let mut all = Vec::new();
    let read = file.each(&mut |operations| {
        all.extend(operations.into_iter().map(|operation| match operation {
            Operation::Set(key, value) => (key.to_vec(), Some(value.to_vec())),
            Operation::Remove(key) => (key.to_vec(), None),
        }));
        Ok(())
    });
    match read {
        Ok(()) => Ok(all),
        Err(error) => {
            assert!(all.is_empty(), "changes were given of a copy that is not whole: {error}");
            Err(error.to_string())
        }
    }
}

/// The group that a copy ends with, if its changes can be had; what is given is what was written up to there.
fn read(folder: &Path, groups: &[Written]) -> Result<usize, String> {
    let file = CopyFile::look(folder).map_err(|error| error.to_string())?.expect("there is a file");
    let last = groups.iter().position(|group| group.position == file.position);
    let last = last.expect("it ends where nobody wrote an end");
    assert_eq!(file.bytes(), groups[last].end);
    let expected: Vec<_> = groups[..=last].iter().flat_map(|group| group.changes.clone()).collect();
    assert_eq!(changes(&file)?, expected);
    Ok(last)
}

/// A copy gives what was written up to some group, or nothing; one that was cut off in its last change has the others.
pub fn copy(input: &[u8]) {
    let mut feed = Feed(input);
    let (is_torn, is_gone_on_with, newer) = (feed.flag(), feed.below(8) == 1, feed.byte());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let groups = built(&file, &mut feed);
    let last = groups.len() - 1;
    assert_eq!(read(folder.path(), &groups), Ok(last));

    let whole = fs::read(&path).unwrap();
    let from = if is_torn { groups[last].start } else { 0 };
    let mut bytes = whole.clone();
    for _ in 0..feed.below(4) {
        harm(&mut bytes, from, &mut feed);
    }
    fs::write(&path, &bytes).unwrap();
    let found = read(folder.path(), &groups);
    if bytes == whole {
        assert_eq!(found, Ok(last));
    } else if is_torn && last > 0 {
        assert!(found == Ok(last) || found == Ok(last - 1), "the changes before the last one are lost: {found:?}");
    }
    if is_gone_on_with && let Ok(Some(opened)) = CopyFile::newest(folder.path()) {
        assert_eq!(fs::metadata(&path).unwrap().len(), opened.bytes(), "it goes on behind what is torn");
        assert_eq!(read(folder.path(), &groups), found);
    }

    let format = COPY_FORMAT + 1 + u32::from(newer);
    let head = copy_head(SALT, format);
    bytes.splice(..head.len().min(bytes.len()), head);
    fs::write(&path, &bytes).unwrap();
    let error = CopyFile::look(folder.path()).err().expect("a later form is never guessed").to_string();
    assert!(error.contains(&format!("has format {format}")), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}
