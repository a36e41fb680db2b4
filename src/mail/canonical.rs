//! The relaxed canonical forms of DKIM (RFC 6376 s3.4.2 and s3.4.4), streamed into a digest.
//!
//! Ours because the forms must be those of the standard to the byte, or no other verifier agrees:
//! mail-auth 0.13 counts a line of blanks at the end of a body as text, and a form feed in a header
//! as white space. Slices may be cut anywhere; memory does not grow with the body.

use aws_lc_rs::digest::{Context, Digest, SHA256};

/// Octets gathered before they are hashed: a call of the digest for each line costs as much as its octets.
const GATHERED_OCTETS: usize = 4096;

/// Hashes a body in relaxed form. Lines end in CRLF; a CR or LF alone counts as text.
pub struct BodyHasher {
    digest: Context,
    /// Canonical text that is not hashed yet.
    gathered: Vec<u8>,
    /// Line ends seen and not written: they count only if text follows.
    line_ends: u64,
    /// White space seen and not written: it counts only if text follows on the same line.
    has_blank: bool,
    /// A CR was the last octet of the slice before.
    has_cr: bool,
    has_text: bool,
}

impl BodyHasher {
    /// Of an empty body so far.
    pub fn new() -> Self {
        Self {
            digest: Context::new(&SHA256),
            gathered: Vec::with_capacity(GATHERED_OCTETS),
            line_ends: 0,
            has_blank: false,
            has_cr: false,
            has_text: false,
        }
    }

    /// Takes the next slice.
    pub fn update(&mut self, slice: &[u8]) {
        let mut rest = slice;
        while let Some(&first) = rest.first() {
            if self.has_cr {
                self.has_cr = false;
                if first == b'\n' {
                    self.end_line();
                    rest = rest.get(1..).unwrap_or_default();
                } else {
                    self.write(b"\r");
                }
                continue;
            }
            let step = match first {
                b' ' | b'\t' => {
                    self.has_blank = true;
                    1
                }
                b'\r' => {
                    self.has_cr = true;
                    1
                }
                _ => {
                    let (run, _) = rest.split_at(run_length(rest));
                    self.write(run);
                    run.len()
                }
            };
            rest = rest.get(step..).unwrap_or_default();
        }
    }

    /// The hash of all slices.
    pub fn finish(mut self) -> Digest {
        if self.has_cr {
            self.write(b"\r");
        }
        if self.has_text {
            self.hash(b"\r\n");
        }
        self.digest.update(&self.gathered);
        self.digest.finish()
    }

    fn end_line(&mut self) {
        self.has_blank = false;
        self.line_ends = self.line_ends.saturating_add(1);
    }

    /// Writes text, and before it what turned out to count.
    fn write(&mut self, text: &[u8]) {
        while self.line_ends > 0 {
            self.line_ends -= 1;
            self.hash(b"\r\n");
        }
        if self.has_blank {
            self.has_blank = false;
            self.hash(b" ");
        }
        self.hash(text);
        self.has_text = true;
    }

    fn hash(&mut self, text: &[u8]) {
        if self.gathered.len() + text.len() > GATHERED_OCTETS {
            self.digest.update(&self.gathered);
            self.gathered.clear();
        }
        if text.len() > GATHERED_OCTETS {
            self.digest.update(text);
        } else {
            self.gathered.extend_from_slice(text);
        }
    }
}

/// How many octets from the start are canonical as they stand: text, single spaces between text,
/// and CRLF between text. At least 1 if the first octet is text.
fn run_length(octets: &[u8]) -> usize {
    let mut end = 0;
    loop {
        let tail = octets.get(end..).unwrap_or_default();
        end += tail.iter().position(|octet| matches!(octet, b' ' | b'\t' | b'\r')).unwrap_or(tail.len());
        match octets.get(end..).unwrap_or_default() {
            [b' ', next, ..] if is_text(*next) => end += 2,
            [b'\r', b'\n', next, ..] if is_text(*next) => end += 3,
            _ => return end,
        }
    }
}

fn is_text(octet: u8) -> bool {
    !matches!(octet, b' ' | b'\t' | b'\r')
}

/// Writes one header field in relaxed form. With [`LineEnd::Kept`] it ends in CRLF.
pub fn write_header(name: &str, raw_value: &[u8], line_end: LineEnd, out: &mut Vec<u8>) {
    out.extend(name.bytes().map(|byte| byte.to_ascii_lowercase()));
    out.push(b':');
    let start = out.len();
    let mut has_blank = false;
    for &byte in raw_value {
        match byte {
            b'\r' | b'\n' => {}
            b' ' | b'\t' => has_blank = true,
            _ => {
                if has_blank && out.len() > start {
                    out.push(b' ');
                }
                has_blank = false;
                out.push(byte);
            }
        }
    }
    if line_end == LineEnd::Kept {
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether the field's own CRLF belongs to what is signed: not for the signature itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    /// Of every signed field.
    Kept,
    /// Of the DKIM-Signature being made (RFC 6376 s3.7).
    Dropped,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rules of RFC 6376 s3.4.4 one after the other, without any cleverness.
    fn by_the_book(body: &[u8]) -> Vec<u8> {
        let text = body.iter().map(|byte| char::from(*byte)).collect::<String>();
        let mut lines: Vec<String> = text
            .split("\r\n")
            .map(|line| {
                let mut reduced = String::new();
                for character in line.trim_end_matches([' ', '\t']).chars() {
                    match character {
                        ' ' | '\t' if reduced.ends_with(' ') => {}
                        ' ' | '\t' => reduced.push(' '),
                        other => reduced.push(other),
                    }
                }
                reduced
            })
            .collect();
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines.iter().flat_map(|line| line.chars().chain("\r\n".chars())).map(|character| character as u8).collect()
    }

    fn hash(slices: &[&[u8]]) -> Vec<u8> {
        let mut hasher = BodyHasher::new();
        slices.iter().for_each(|slice| hasher.update(slice));
        hasher.finish().as_ref().to_vec()
    }

    fn sha256(bytes: &[u8]) -> Vec<u8> {
        aws_lc_rs::digest::digest(&SHA256, bytes).as_ref().to_vec()
    }

    #[test]
    fn the_examples_of_rfc_6376_s3_4_5_come_out_as_printed() {
        assert_eq!(hash(&[b" C \r\nD \t E\r\n\r\n\r\n"]), sha256(b" C\r\nD E\r\n"));
        let mut header = Vec::new();
        write_header("A", b" X\r\n", LineEnd::Kept, &mut header);
        write_header("B ".trim(), b" Y\t\r\n\tZ  \r\n", LineEnd::Kept, &mut header);
        assert_eq!(header, b"a:X\r\nb:Y Z\r\n");
    }

    #[test]
    fn lines_of_blanks_at_the_end_do_not_count() {
        assert_eq!(hash(&[b"text\r\n \r\n\t\r\n"]), sha256(b"text\r\n"));
        assert_eq!(hash(&[b" \r\n"]), sha256(b""));
        assert_eq!(hash(&[b""]), sha256(b""));
        assert_eq!(hash(&[b"no end"]), sha256(b"no end\r\n"));
    }

    proptest! {
        #[test]
        fn any_body_cut_anywhere_hashes_as_the_standard_says(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("\r\n"), Just(" "), Just("\t"), Just("  "), Just("a"), Just("word"), Just("="), Just("\u{c}"),
                ],
                0..40,
            ),
            cuts in proptest::collection::vec(0_usize..60, 0..4),
        ) {
            let body = parts.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            cuts.sort_unstable();
            let mut slices = Vec::new();
            let mut from = 0;
            for cut in cuts {
                slices.push(&body[from..cut]);
                from = cut;
            }
            slices.push(&body[from..]);
            prop_assert_eq!(hash(&slices), sha256(&by_the_book(&body)));
        }
    }
}
