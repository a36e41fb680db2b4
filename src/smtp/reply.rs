//! Replies as bytes, both directions (RFC 5321 s4.2): written by the server, parsed by the client.
//!
//! It refuses to know what a reply means. Easy to get wrong: a peer's reply is hostile input, so
//! the length of a line, the number of lines and the whole are bounded, and every text is made
//! printable before anybody sees it.

use crate::mail::{EnhancedStatus, Reply, ReplyCode, printable};

/// Octets in one reply line of a peer, at most; RFC 5321 s4.5.3.1.5 asks for 512, some say more.
pub const REPLY_LINE_OCTETS_MAX: usize = 4096;
/// Lines in one reply of a peer, at most.
pub const REPLY_LINES_MAX: usize = 200;
/// Octets in one reply of a peer, at most.
pub const REPLY_OCTETS_MAX: usize = 64 * 1024;
/// Octets of text in one line that we write, so that the line stays below 512 (RFC 5321 s4.5.3.1.5).
const TEXT_OCTETS_MAX: usize = 480;

/// Writes `reply`, every line of it, to the end of `out`; one write then carries them all.
/// Anything but printable ASCII becomes `?`; long lines are broken at a space if there is one.
pub fn write_reply(reply: &Reply, out: &mut Vec<u8>) {
    let mut pieces: Vec<&str> = reply.text.iter().flat_map(|line| Pieces(Some(line))).collect();
    if pieces.is_empty() {
        pieces.push("");
    }
    let last = pieces.len() - 1;
    for (number, piece) in pieces.into_iter().enumerate() {
        out.extend_from_slice(reply.code.0.to_string().as_bytes());
        out.push(if number == last { b' ' } else { b'-' });
        if let Some(status) = reply.status {
            out.extend_from_slice(status.to_string().as_bytes());
            out.push(b' ');
        }
        out.extend(piece.chars().map(|character| match u8::try_from(character) {
            Ok(byte) if (32..127).contains(&byte) => byte,
            _ => b'?',
        }));
        out.extend_from_slice(b"\r\n");
    }
}

/// A text in pieces of at most [`TEXT_OCTETS_MAX`] octets.
struct Pieces<'a>(Option<&'a str>);

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.take()?;
        if text.len() <= TEXT_OCTETS_MAX {
            return Some(text);
        }
        let limit = (0..=TEXT_OCTETS_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        let (head, _) = text.split_at(limit);
        let at = head.rfind(' ').filter(|at| *at > 0).unwrap_or(limit);
        let (piece, rest) = text.split_at(at);
        self.0 = Some(rest.trim_start_matches(' '));
        Some(piece)
    }
}

/// What keeps a peer's bytes from being a reply. The connection is of no use afterwards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedReply {
    /// A line over [`REPLY_LINE_OCTETS_MAX`].
    #[error("the peer's reply has a line of over {REPLY_LINE_OCTETS_MAX} octets")]
    LineTooLong,
    /// Over [`REPLY_LINES_MAX`] lines or [`REPLY_OCTETS_MAX`] octets.
    #[error("the peer's reply has too many lines")]
    TooLong,
    /// No three digits from 200 to 599, or no space or `-` after them. Holds the line, printable.
    #[error("the peer's reply is not SMTP: {0}")]
    NotAReply(String),
    /// Lines of one reply with different codes.
    #[error("the peer's reply mixes the codes {0} and {1}")]
    MixedCodes(u16, u16),
}

/// Turns the bytes of a peer into replies; keeps what is not yet a whole one.
#[derive(Debug, Default)]
pub struct ReplyParser {
    /// An unfinished line.
    line: Vec<u8>,
    code: Option<u16>,
    status: Option<EnhancedStatus>,
    text: Vec<String>,
    octets: usize,
}

impl ReplyParser {
    /// A parser that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a reply has begun and is not whole yet.
    pub fn is_midway(&self) -> bool {
        !self.line.is_empty() || self.code.is_some()
    }

    /// Takes bytes from the front of `input`, up to the end of one reply at most, and gives that
    /// reply when it is whole. Call again while `input` is not empty. A lone LF ends a line too:
    /// nothing can be smuggled to a client by it. Text that is not UTF-8 is kept with marks.
    pub fn parse(&mut self, input: &mut &[u8]) -> Result<Option<Reply>, MalformedReply> {
        while !input.is_empty() {
            let (taken, rest, is_whole) = match memchr::memchr(b'\n', input) {
                Some(at) => (&input[..at], &input[at + 1..], true),
                None => (*input, &input[input.len()..], false),
            };
            if self.line.len() + taken.len() > REPLY_LINE_OCTETS_MAX {
                return Err(MalformedReply::LineTooLong);
            }
            *input = rest;
            self.line.extend_from_slice(taken);
            if !is_whole {
                return Ok(None);
            }
            let line = std::mem::take(&mut self.line);
            if let Some(reply) = self.take_line(line.strip_suffix(b"\r").unwrap_or(&line))? {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    fn take_line(&mut self, line: &[u8]) -> Result<Option<Reply>, MalformedReply> {
        self.octets += line.len() + 2;
        if self.text.len() >= REPLY_LINES_MAX || self.octets > REPLY_OCTETS_MAX {
            return Err(MalformedReply::TooLong);
        }
        let line = String::from_utf8_lossy(line);
        let not_a_reply = || MalformedReply::NotAReply(printable(&line.chars().take(200).collect::<String>()));
        let digits = line.get(..3).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let code = digits.and_then(|digits| digits.parse::<u16>().ok()).filter(|code| (200..600).contains(code));
        let code = code.ok_or_else(not_a_reply)?;
        let (is_last, text) = match line.as_bytes().get(3) {
            None => (true, ""),
            Some(b' ') => (true, line.get(4..).unwrap_or_default()),
            Some(b'-') => (false, line.get(4..).unwrap_or_default()),
            Some(_) => return Err(not_a_reply()),
        };
        match self.code {
            Some(first) if first != code => return Err(MalformedReply::MixedCodes(first, code)),
            _ => self.code = Some(code),
        }
        // RFC 2034 s4: the class of the status is the first digit of the code; else it is text.
        let split = EnhancedStatus::split_from(text).filter(|(status, _)| u16::from(status.class) == code / 100);
        let text = match split {
            Some((status, rest)) if self.text.is_empty() || self.status == Some(status) => {
                self.status = Some(status);
                rest
            }
            _ => text,
        };
        self.text.push(printable(text));
        if !is_last {
            return Ok(None);
        }
        let done = std::mem::take(self);
        Ok(Some(Reply { code: ReplyCode(code), status: done.status, text: done.text }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(chunks: &[&[u8]]) -> Result<Vec<Reply>, MalformedReply> {
        let mut parser = ReplyParser::new();
        let mut found = Vec::new();
        for chunk in chunks {
            let mut input = *chunk;
            while !input.is_empty() {
                found.extend(parser.parse(&mut input)?);
            }
        }
        Ok(found)
    }

    #[test]
    fn a_reply_reads_back_as_it_was_written() {
        for reply in [
            Reply::new(220, None, "mx.example.com ESMTP"),
            Reply::enhanced(550, 1, 1, "no such user"),
            Reply { code: ReplyCode(250), status: None, text: vec!["a".into(), "b".into(), "c 1".into()] },
        ] {
            let mut bytes = Vec::new();
            write_reply(&reply, &mut bytes);
            assert_eq!(replies(&[&bytes]), Ok(vec![reply.clone()]));
            let one_by_one: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(replies(&one_by_one), Ok(vec![reply]));
        }
    }

    #[test]
    fn no_written_line_is_longer_than_512_octets_or_holds_a_control_character() {
        let reply = Reply {
            code: ReplyCode(550),
            status: Some(EnhancedStatus::new(5, 7, 1)),
            text: vec!["é".repeat(700), format!("{} end\r\n250 ok", "word ".repeat(300))],
        };
        let mut bytes = Vec::new();
        write_reply(&reply, &mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<&str> = text.split_terminator("\r\n").collect();
        assert!(lines.len() > 4 && lines.iter().all(|line| line.len() <= 510 && line.starts_with("550")));
        assert!(lines.iter().all(|line| line.bytes().all(|byte| (32..127).contains(&byte))));
    }

    #[test]
    fn several_replies_in_one_packet_are_told_apart() {
        let found = replies(&[b"250-2.1.0 a\r\n250 2.1.0 b\r\n354\r\n421 4.3.2 bye\n"]).unwrap();
        let lines: Vec<String> = found.iter().map(Reply::one_line).collect();
        assert_eq!(lines, ["250 2.1.0 a b", "354 ", "421 4.3.2 bye"]);
    }

    #[test]
    fn a_status_of_another_class_is_text() {
        assert_eq!(replies(&[b"550 2.0.0 odd\r\n"]).unwrap()[0].status, None);
    }

    #[test]
    fn malformed_replies_are_refused() {
        for bytes in [
            b"hello\r\n".as_slice(),
            b"25\r\n",
            b"25x ok\r\n",
            b"250=ok\r\n",
            b"150 ok\r\n",
            b"650 ok\r\n",
            b"\r\n",
            b"250-a\r\n550 b\r\n",
            b"2\xc3\xa90 a\r\n",
        ] {
            assert!(replies(&[bytes]).is_err(), "{bytes:?}");
        }
        assert_eq!(replies(&[b"250-a\r\n550 b\r\n"]), Err(MalformedReply::MixedCodes(250, 550)));
    }

    #[test]
    fn an_endless_reply_is_refused_before_it_fills_memory() {
        assert_eq!(replies(&[&[b'2'; 5000]]), Err(MalformedReply::LineTooLong));
        assert_eq!(replies(&[&b"250-x\r\n".repeat(1000)]), Err(MalformedReply::TooLong));
        let long = [b"250-".as_slice(), &[b'x'; 4000], b"\r\n"].concat();
        assert_eq!(replies(&[&long.repeat(100)]), Err(MalformedReply::TooLong));
    }

    #[test]
    fn control_characters_of_a_peer_never_reach_a_log() {
        assert_eq!(replies(&[b"250 a\x1b[2J\0b\r\n"]).unwrap()[0].text, ["a?[2J?b"]);
    }
}
