//! Takes choices, numbers and texts off the front of an input.

/// An input that is used up from the front; past its end everything is zero or empty.
pub struct Feed<'a>(pub &'a [u8]);

impl<'a> Feed<'a> {
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| (number << 8) | u64::from(self.byte()))
    }

    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Octets up to the next `end`, which is dropped.
    pub fn until(&mut self, end: u8) -> &'a [u8] {
        let at = self.0.iter().position(|byte| *byte == end).unwrap_or(self.0.len());
        let taken = self.take(at);
        self.byte();
        taken
    }

    /// Text up to the next NUL.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.until(0)).into_owned()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// `input` in pieces whose lengths `choices` says, over and over; the last piece is the rest.
pub fn pieces<'a>(input: &'a [u8], choices: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = input;
    for choice in choices.iter().cycle().take(input.len()) {
        if rest.is_empty() || choices.iter().all(|choice| *choice == 0) {
            break;
        }
        let (piece, left) = rest.split_at(usize::from(*choice).min(rest.len()));
        pieces.push(piece);
        rest = left;
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

/// `bytes` as they are stored: CR LF only, no NUL.
pub fn with_line_ends(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'\r' => {
                rest = after.strip_prefix(b"\n").unwrap_or(after);
                out.extend_from_slice(b"\r\n");
            }
            b'\n' => out.extend_from_slice(b"\r\n"),
            0 => {}
            other => out.push(*other),
        }
    }
    out
}

/// Panics unless CR and LF stand in pairs only.
pub fn assert_line_ends(bytes: &[u8], what: &str) {
    let mut before = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'\n' {
            assert_eq!(before, b'\r', "{what}: a bare LF at {at}");
        } else {
            assert_ne!(before, b'\r', "{what}: a bare CR before {at}");
        }
        before = *byte;
    }
    assert_ne!(before, b'\r', "{what}: a bare CR at the end");
}
