//! Reads what lies in a segment, frame by frame, group by group, past damage.
//!
//! A group counts if its seal is whole and every frame before it is. After something unreadable the
//! scan looks for the next header of this use of the file, at every multiple of eight bytes.
//! Easy to get wrong: frames of a group that failed may lie behind a later, shorter group; group
//! numbers only grow, so a lower one is a leftover and not damage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::durable;
use super::frame::{ALIGNMENT, HEADER_BYTES, Header, Kind, MAGIC, Salt, Seal};

/// Bytes read at a time when looking for a header or checking a payload.
const WINDOW_BYTES: usize = 256 * 1024;

/// A frame and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Offset of the header.
    pub offset: u64,
    /// The header.
    pub header: Header,
}

/// What the scan came across.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A frame with a whole header; its payload was not looked at.
    Frame(Placed),
    /// Bytes that are no frame, between frames that are.
    Unreadable {
        /// Where they begin.
        from: u64,
        /// Where the next frame begins.
        to: u64,
    },
}

/// Goes through the frames of one use of a file.
pub struct Frames<'a> {
    file: &'a File,
    salt: Salt,
    at: u64,
    end: u64,
    group: u64,
    waiting: Option<Placed>,
}

impl<'a> Frames<'a> {
    /// Frames between two offsets.
    pub fn new(file: &'a File, salt: Salt, from: u64, end: u64) -> Self {
        Self { file, salt, at: from, end, group: 0, waiting: None }
    }

    /// The next frame or unreadable stretch; `None` at the end. Errors are the device's.
    pub fn next_found(&mut self) -> io::Result<Option<Found>> {
        if let Some(frame) = self.waiting.take() {
            return Ok(Some(self.pass(frame)));
        }
        if let Some(frame) = self.header_at(self.at)? {
            return Ok(Some(self.pass(frame)));
        }
        let from = self.at;
        let Some(frame) = self.search(from.saturating_add(ALIGNMENT))? else {
            self.at = self.end;
            return Ok(None);
        };
        self.waiting = Some(frame);
        Ok(Some(Found::Unreadable { from, to: frame.offset }))
    }

    /// Where the scan stands.
    pub fn position(&self) -> u64 {
        self.at
    }

    fn pass(&mut self, frame: Placed) -> Found {
        self.group = frame.header.group;
        self.at = frame.offset.saturating_add(frame.header.frame_bytes());
        Found::Frame(frame)
    }

    fn header_at(&self, offset: u64) -> io::Result<Option<Placed>> {
        if offset.saturating_add(HEADER_BYTES as u64) > self.end {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_BYTES];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(self.accept(&bytes, offset)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn accept(&self, bytes: &[u8], offset: u64) -> Option<Placed> {
        let header = Header::from_bytes(bytes, &self.salt, offset)?;
        let fits = header.payload_bytes <= self.end && offset.checked_add(header.frame_bytes())? <= self.end;
        (fits && header.group >= self.group).then_some(Placed { offset, header })
    }

    fn search(&self, from: u64) -> io::Result<Option<Placed>> {
        let mut at = from;
        let mut window = vec![0; WINDOW_BYTES + HEADER_BYTES];
        while at.saturating_add(HEADER_BYTES as u64) <= self.end {
            let wanted = usize::try_from(self.end - at).unwrap_or(usize::MAX).min(window.len());
            let read = read_up_to(self.file, &mut window[..wanted], at)?;
            for hit in memchr::memmem::find_iter(&window[..read], &MAGIC) {
                let offset = at + hit as u64;
                if hit < WINDOW_BYTES
                    && offset.is_multiple_of(ALIGNMENT)
                    && let Some(frame) = self.accept(window.get(hit..read).unwrap_or_default(), offset)
                {
                    return Ok(Some(frame));
                }
            }
            if read < wanted {
                break;
            }
            at += WINDOW_BYTES as u64;
        }
        Ok(None)
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Makes frames of some kinds between two offsets unreadable, durably if there was one: they never counted.
pub fn wipe(file: &File, salt: Salt, (from, end): (u64, u64), is_meant: impl Fn(Kind) -> bool) -> io::Result<()> {
    let mut frames = Frames::new(file, salt, from, end);
    let mut is_wiped = false;
    while let Some(found) = frames.next_found()? {
        if let Found::Frame(frame) = found
            && is_meant(frame.header.kind)
        {
            file.write_all_at(&[0; HEADER_BYTES], frame.offset)?;
            is_wiped = true;
        }
    }
    if is_wiped { durable::sync_data(file) } else { Ok(()) }
}

/// The payload of a small frame; `None` if its checksum does not match.
pub fn payload(file: &File, frame: &Placed) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; usize::try_from(frame.header.payload_bytes).map_err(io::Error::other)?];
    match file.read_exact_at(&mut bytes, frame.offset + HEADER_BYTES as u64) {
        Ok(()) => Ok((crc32c::crc32c(&bytes) == frame.header.payload_crc).then_some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a payload's checksum matches, without holding it in memory.
pub fn payload_is_whole(file: &File, frame: &Placed) -> io::Result<bool> {
    let mut window = vec![0; usize::try_from(frame.header.payload_bytes).unwrap_or(usize::MAX).min(WINDOW_BYTES)];
    let (mut at, mut left, mut crc) = (frame.offset + HEADER_BYTES as u64, frame.header.payload_bytes, 0);
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(window.len());
        if read_up_to(file, &mut window[..part], at)? < part {
            return Ok(false);
        }
        crc = crc32c::crc32c_append(crc, &window[..part]);
        at += part as u64;
        left -= part as u64;
    }
    Ok(crc == frame.header.payload_crc)
}

/// A group as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its frames with whole headers, the seal left out.
    pub frames: Vec<Placed>,
    /// Whether the seal and every frame's payload are whole: exactly what was written.
    pub is_complete: bool,
    /// Where it ends, or where the scan stood when it had to give up on it.
    pub end: u64,
    /// What was wrong, in words.
    pub faults: Vec<String>,
}

/// Reads the next group, checking every payload. `None` at the end.
pub fn next_group(frames: &mut Frames<'_>) -> io::Result<Option<Group>> {
    let mut group = Group::default();
    let (mut crc, mut number) = (0, None);
    loop {
        match frames.next_found()? {
            None => {
                group.end = frames.position();
                return Ok((!group.frames.is_empty() || !group.faults.is_empty()).then_some(group));
            }
            Some(Found::Unreadable { from, to }) => {
                group.faults.push(format!("bytes {from} to {to} are unreadable"));
                if group.frames.is_empty() {
                    group.end = to;
                    return Ok(Some(group));
                }
            }
            Some(Found::Frame(frame)) => {
                if number.is_some_and(|number| number != frame.header.group) {
                    group.faults.push(format!("the group before byte {} has no seal", frame.offset));
                    group.end = frame.offset;
                    frames.waiting = Some(frame);
                    return Ok(Some(group));
                }
                number = Some(frame.header.group);
                group.end = frames.position();
                if !payload_is_whole(frames.file, &frame)? {
                    group.faults.push(format!("the frame at byte {} fails its checksum", frame.offset));
                }
                if frame.header.kind == Kind::Seal {
                    finish(frames.file, &mut group, &frame, crc)?;
                    return Ok(Some(group));
                }
                crc = frame.header.fold_into(crc);
                group.frames.push(frame);
            }
        }
    }
}

fn finish(file: &File, group: &mut Group, frame: &Placed, crc: u32) -> io::Result<()> {
    let seal = payload(file, frame)?.as_deref().and_then(Seal::from_bytes);
    let start = group.frames.first().map_or(frame.offset, |first| first.offset);
    let fits = seal.is_some_and(|seal| {
        seal.start == start && u32::try_from(group.frames.len()) == Ok(seal.frames) && seal.group_crc == crc
    });
    if !fits && group.faults.is_empty() {
        group.faults.push(format!("the seal at byte {} does not fit its group", frame.offset));
    }
    group.is_complete = fits && group.faults.is_empty();
    Ok(())
}
