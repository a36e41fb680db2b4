//! The text of a message on the wire: dot-stuffing, line ends, chunks (RFC 5321 s4.5.2, RFC 3030).
//!
//! Only CR LF . CR LF ends DATA. A bare CR or LF never ends anything: it is written as CR LF in
//! the stored message (or refuses it), so that no later hop can see an end there either.
//! Easy to get wrong: after a bare CR or LF no line has begun, so a dot there is just a dot.

use memchr::{memchr3, memmem};

/// Limits of one message and what to do with bare line ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataLimits {
    /// Octets of the message.
    pub message_bytes_max: u64,
    /// Octets of its header block.
    pub header_bytes_max: usize,
    /// What a CR or LF alone does.
    pub bare_line_ends: BareLineEnds,
}

/// What a CR without LF or an LF without CR does to a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BareLineEnds {
    /// It is stored as CR LF.
    #[default]
    Normalise,
    /// The message is refused.
    Refuse,
}

/// What is wrong with a message; the first fault counts, the rest is drained unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFault {
    /// Over [`DataLimits::message_bytes_max`].
    TooLarge,
    /// The header block is over [`DataLimits::header_bytes_max`].
    HeaderTooLarge,
    /// It holds a NUL (RFC 5322 s4 forbids it).
    Nul,
    /// It holds a bare CR or LF and [`BareLineEnds::Refuse`] is set.
    BareLineEnd,
}

/// Whether DATA has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More is to come.
    More,
    /// The final dot was read; what is left of the input are commands.
    Ended,
}

/// How the message comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Dotted,
    Chunked,
}

/// Where in a line the reader stands; what is named was read and not yet written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// After a true CR LF, or at the very start.
    LineStart,
    /// After a dot at the start of a line.
    Dot,
    /// After dot and CR at the start of a line.
    DotCr,
    /// Within a line.
    Within,
    /// After a CR within a line.
    Cr,
    /// After a bare CR or LF that was stored as CR LF: for a dot no line start.
    AfterBare,
}

/// Reads one message, in pieces of any size, and splits it into header block and body.
///
/// It holds at most the header block and what was read since [`DataReader::take_body`].
#[derive(Debug)]
pub struct DataReader {
    framing: Framing,
    limits: DataLimits,
    at: At,
    header: Option<Vec<u8>>,
    /// The header block while it is incomplete, then body octets not yet taken.
    out: Vec<u8>,
    /// How much of `out` was searched for the end of the header block.
    searched: usize,
    received: u64,
    fault: Option<DataFault>,
}

impl DataReader {
    /// A reader of DATA: [`DataReader::read`] until it says `Ended`.
    pub fn dotted(limits: DataLimits) -> Self {
        Self::new(Framing::Dotted, limits)
    }

    /// A reader of BDAT chunks: [`DataReader::read`] each, then [`DataReader::end_chunks`].
    pub fn chunked(limits: DataLimits) -> Self {
        Self::new(Framing::Chunked, limits)
    }

    fn new(framing: Framing, limits: DataLimits) -> Self {
        Self {
            framing,
            limits,
            at: At::LineStart,
            header: None,
            out: Vec::new(),
            searched: 0,
            received: 0,
            fault: None,
        }
    }

    /// Takes octets from the front of `input`: all of them, or those up to the final dot.
    pub fn read(&mut self, input: &mut &[u8]) -> Progress {
        while let Some(first) = input.first().copied() {
            let step = match (self.at, first) {
                (At::LineStart, b'.') if self.framing == Framing::Dotted => self.go(At::Dot, 1),
                (At::LineStart | At::AfterBare, _) => self.go(At::Within, 0),
                (At::Dot, b'\r') => self.go(At::DotCr, 1),
                // RFC 5321 s4.5.2: the first dot of a line that holds more is taken away.
                (At::Dot, _) => self.go(At::Within, 0),
                (At::DotCr, b'\n') => {
                    *input = input.get(1..).unwrap_or_default();
                    self.split_header(Whole::Yes);
                    return Progress::Ended;
                }
                (At::Cr, b'\n') => {
                    self.push(b"\r\n");
                    self.go(At::LineStart, 1)
                }
                (At::DotCr | At::Cr, _) => self.bare(0),
                (At::Within, b'\r') => self.go(At::Cr, 1),
                (At::Within, b'\n') => self.bare(1),
                (At::Within, 0) => {
                    self.fail(DataFault::Nul);
                    1
                }
                (At::Within, _) => {
                    let verbatim = verbatim_length(input);
                    self.push(input.get(..verbatim).unwrap_or_default());
                    verbatim
                }
            };
            *input = input.get(step..).unwrap_or_default();
        }
        self.split_header(Whole::No);
        Progress::More
    }

    /// Ends a chunked message after its last chunk; a last line without CR LF gets one.
    pub fn end_chunks(&mut self) {
        if self.at == At::Cr {
            self.bare(0);
        }
        if self.at == At::Within {
            self.push(b"\r\n");
        }
        self.at = At::LineStart;
        self.split_header(Whole::Yes);
    }

    /// The first fault, if there is one.
    pub fn fault(&self) -> Option<DataFault> {
        self.fault
    }

    /// Gives up on the message: what follows is drained and nothing is kept.
    pub fn discard(&mut self) {
        self.fail(DataFault::TooLarge);
    }

    /// Octets of the message so far, also those that were not kept.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Octets of body read since the last [`DataReader::take_body`].
    pub fn body_pending(&self) -> usize {
        if self.header.is_some() { self.out.len() } else { 0 }
    }

    /// The body octets read since the last call. Empty while the header block is incomplete.
    pub fn take_body(&mut self) -> Vec<u8> {
        if self.header.is_some() { std::mem::take(&mut self.out) } else { Vec::new() }
    }

    /// The header block without the empty line, and the body octets not taken before.
    pub fn finish(self) -> Result<(Vec<u8>, Vec<u8>), DataFault> {
        match (self.fault, self.header) {
            (Some(fault), _) => Err(fault),
            (None, Some(header)) => Ok((header, self.out)),
            (None, None) => Ok((self.out, Vec::new())),
        }
    }

    fn go(&mut self, at: At, consumed: usize) -> usize {
        self.at = at;
        consumed
    }

    fn bare(&mut self, consumed: usize) -> usize {
        match self.limits.bare_line_ends {
            BareLineEnds::Normalise => self.push(b"\r\n"),
            BareLineEnds::Refuse => self.fail(DataFault::BareLineEnd),
        }
        self.go(At::AfterBare, consumed)
    }

    fn push(&mut self, octets: &[u8]) {
        self.received = self.received.saturating_add(octets.len() as u64);
        if self.fault.is_some() {
            return;
        }
        if self.received > self.limits.message_bytes_max {
            self.fail(DataFault::TooLarge);
        } else {
            self.out.extend_from_slice(octets);
        }
    }

    fn fail(&mut self, fault: DataFault) {
        self.fault.get_or_insert(fault);
        self.out = Vec::new();
        self.header = None;
    }

    /// Looks for the empty line that ends the header block, in what would be stored.
    fn split_header(&mut self, whole: Whole) {
        if self.header.is_some() || self.fault.is_some() {
            return;
        }
        let found = if self.out.starts_with(b"\r\n") {
            Some((0, 2))
        } else {
            let from = self.searched.saturating_sub(3);
            let unseen = self.out.get(from..).unwrap_or_default();
            memmem::find(unseen, b"\r\n\r\n").map(|at| (from + at + 2, from + at + 4))
        };
        self.searched = self.out.len();
        let length = found.map_or(self.out.len(), |(end, _)| end);
        if length > self.limits.header_bytes_max {
            self.fail(DataFault::HeaderTooLarge);
        } else if let Some((end, body)) = found {
            let rest = self.out.split_off(body);
            self.out.truncate(end);
            self.header = Some(std::mem::replace(&mut self.out, rest));
        } else if whole == Whole::Yes {
            self.header = Some(std::mem::take(&mut self.out));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    Yes,
    No,
}

/// How much of `input` can be stored as it stands: up to a bare CR or LF, a NUL, a line that
/// begins with a dot, or a line end too near the end of `input` to tell.
fn verbatim_length(input: &[u8]) -> usize {
    let mut length = 0;
    while let Some(rest) = input.get(length..) {
        let Some(at) = memchr3(b'\r', b'\n', 0, rest) else { return input.len() };
        match rest.get(at..at + 3) {
            Some([b'\r', b'\n', next]) if *next != b'.' => length += at + 2,
            _ => return length + at,
        }
    }
    input.len()
}

/// Writes a message's text for DATA: a dot before each line that begins with one.
#[derive(Clone, Copy, Debug)]
pub struct DotStuffer {
    before: Before,
}

/// What stands before the next octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    LineEnd,
    Cr,
    Other,
}

impl Default for DotStuffer {
    fn default() -> Self {
        Self { before: Before::LineEnd }
    }
}

impl DotStuffer {
    /// A stuffer at the start of a message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes the next piece of the message, of any size, to the end of `out`.
    pub fn write(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        out.reserve(piece.len() + 8);
        let mut rest = piece;
        match (self.before, rest) {
            (Before::LineEnd, [b'.', ..]) => out.push(b'.'),
            (Before::Cr, [b'\n', b'.', ..]) => {
                out.extend_from_slice(b"\n.");
                rest = &rest[1..];
            }
            _ => {}
        }
        while let Some(at) = memmem::find(rest, b"\r\n.") {
            let (line, next) = rest.split_at(at + 2);
            out.extend_from_slice(line);
            out.push(b'.');
            // The dot itself goes with the next line; the search cannot find it again.
            rest = next;
        }
        out.extend_from_slice(rest);
        self.before = match (self.before, piece) {
            (before, []) => before,
            (_, [.., b'\r', b'\n']) | (Before::Cr, [b'\n']) => Before::LineEnd,
            (_, [.., b'\r']) => Before::Cr,
            _ => Before::Other,
        };
    }

    /// Writes the final dot, after a CR LF if the last line has none.
    pub fn end(self, out: &mut Vec<u8>) {
        if self.before != Before::LineEnd {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
    }
}

#[cfg(test)]
mod tests;
