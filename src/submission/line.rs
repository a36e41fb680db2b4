//! Lines of commands out of a stream of octets: only CR LF ends one, and an endless line is
//! dropped as it comes. Pure. Easy to get wrong: a bare LF must not end a command, and a client
//! that sends nothing else must be told so rather than left waiting.

use bytes::{Buf, BytesMut};

use crate::smtp::LINE_OCTETS_MAX;

/// Octets of one endless line that are read and dropped before the peer is hung up on.
const DROPPED_OCTETS_MAX: usize = 256 * 1024;

/// What stands at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Front {
    /// A whole line of that many octets, without its CR LF; take it with [`LineReader::consume`].
    Line(usize),
    /// No whole line yet.
    Partial,
    /// A line over the limit ended; it is gone from the input.
    TooLong,
    /// A line goes on for ever.
    Endless,
    /// A line ended in a bare LF.
    BareLf,
}

/// Finds lines.
#[derive(Debug, Default)]
pub struct LineReader {
    /// Octets at the front of the input known to hold no LF.
    searched: usize,
    /// Octets of the current line dropped so far.
    dropped: usize,
}

impl LineReader {
    /// Looks at the front of `input`.
    pub fn front(&mut self, input: &mut BytesMut) -> Front {
        let unseen = input.get(self.searched..).unwrap_or_default();
        let Some(found) = memchr::memchr(b'\n', unseen) else {
            return self.without_end(input);
        };
        let at = self.searched + found;
        self.searched = 0;
        let has_cr = at > 0 && input.get(at - 1) == Some(&b'\r');
        if self.dropped > 0 || at > LINE_OCTETS_MAX + 1 {
            self.dropped = 0;
            input.advance(at + 1);
            return if has_cr { Front::TooLong } else { Front::BareLf };
        }
        if has_cr { Front::Line(at - 1) } else { Front::BareLf }
    }

    fn without_end(&mut self, input: &mut BytesMut) -> Front {
        self.searched = input.len();
        if input.len() > LINE_OCTETS_MAX + 1 {
            // The last octet stays: it may be the CR of the line's end.
            let dropped = input.len() - 1;
            input.advance(dropped);
            self.searched = input.len();
            self.dropped = self.dropped.saturating_add(dropped);
        }
        if self.dropped > DROPPED_OCTETS_MAX { Front::Endless } else { Front::Partial }
    }

    /// Takes the line of [`Front::Line`] and its CR LF off the input.
    pub fn consume(&mut self, input: &mut BytesMut, length: usize) {
        input.advance(length.saturating_add(2).min(input.len()));
    }

    /// Forgets everything, as the input was replaced.
    pub fn restart(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_at_any_split() {
        let text = b"NOOP\r\n\r\nQUIT\r\n";
        for piece in 1..text.len() {
            let (mut reader, mut input, mut lines) = (LineReader::default(), BytesMut::new(), Vec::new());
            for part in text.chunks(piece) {
                input.extend_from_slice(part);
                while let Front::Line(length) = reader.front(&mut input) {
                    lines.push(input[..length].to_vec());
                    reader.consume(&mut input, length);
                }
            }
            assert_eq!(lines, [b"NOOP".to_vec(), b"".to_vec(), b"QUIT".to_vec()]);
        }
    }

    #[test]
    fn a_bare_lf_ends_no_command() {
        let mut input = BytesMut::from(&b"NOOP\nQUIT\r\n"[..]);
        assert_eq!(LineReader::default().front(&mut input), Front::BareLf);
    }

    #[test]
    fn an_endless_line_fills_no_memory_and_ends_the_session() {
        let (mut reader, mut input) = (LineReader::default(), BytesMut::new());
        for turn in 0.. {
            input.extend_from_slice(&[b'x'; 4096]);
            match reader.front(&mut input) {
                Front::Partial => assert!(input.len() <= LINE_OCTETS_MAX + 4096),
                Front::Endless => return,
                other => panic!("{other:?}"),
            }
            assert!(turn < 100);
        }
    }

    #[test]
    fn after_a_line_that_is_too_long_the_next_one_is_read() {
        for length in [LINE_OCTETS_MAX + 1, LINE_OCTETS_MAX + 2, 3 * LINE_OCTETS_MAX] {
            let (mut reader, mut input) = (LineReader::default(), BytesMut::new());
            let text = [vec![b'x'; length], b"\r\nNOOP\r\n".to_vec()].concat();
            let mut fronts = Vec::new();
            for part in text.chunks(1000) {
                input.extend_from_slice(part);
                loop {
                    match reader.front(&mut input) {
                        Front::Partial => break,
                        Front::Line(length) => {
                            reader.consume(&mut input, length);
                            fronts.push(Front::Line(length));
                        }
                        other => fronts.push(other),
                    }
                }
            }
            assert_eq!(fronts, [Front::TooLong, Front::Line(4)], "{length}");
        }
    }
}
