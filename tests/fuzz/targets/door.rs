//! What a client sends: lines, commands, whole sessions, the text of a message.

use std::sync::Arc;

use bytes::BytesMut;
use postern::ext::Timestamp;
use postern::mail::{Address, Domain, Reply};
use postern::smtp::{
    BareLineEnds, Command, DataLimits, DataReader, DotStuffer, LINE_OCTETS_MAX, LoginAnswer, Progress, Security,
    Session, Settings, Step, encode_xtext, write_reply,
};
use postern::submission::{Front, LineReader};

use super::feed::{Feed, assert_line_ends, pieces};

const NOW: Timestamp = Timestamp(1_795_342_500_000);

/// Whole replies of ours: lines of printable ASCII, short, each with its code.
fn assert_replies(out: &[u8]) {
    assert_line_ends(out, "a reply");
    assert!(out.is_empty() || out.ends_with(b"\r\n"));
    for line in out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line = line.strip_suffix(b"\r").unwrap();
        assert!(line.len() <= 510, "a line of {} octets", line.len());
        assert!(line.iter().all(|byte| (32..127).contains(byte)), "{:?}", String::from_utf8_lossy(line));
        assert!(line.len() >= 4 && line[..3].iter().all(u8::is_ascii_digit) && matches!(line[3], b' ' | b'-'));
    }
}

/// The lines found do not depend on how the octets arrive, and no line is kept without bound.
pub fn lines(input: &[u8]) {
    let mut feed = Feed(input);
    let lengths = [feed.byte(), feed.byte()];
    // Long lines are out of reach of small inputs, so that one octet may stand for many.
    let (many, least) = if feed.byte() == 7 { (5_000, 128) } else { (1, 0) };
    let stream: Vec<u8> =
        feed.take(200).iter().flat_map(|byte| vec![*byte; if *byte == b'x' { many } else { 1 }]).collect();
    let split = fronts(&pieces(&stream, &lengths.map(|length| length | least)));
    let whole = fronts(&pieces(&stream, &[255]));
    if !split.contains(&None) && !whole.contains(&None) {
        assert_eq!(split, whole);
    }
}

/// What the lines are; a `Some(vec![])` is an empty line, `None` an endless one.
fn fronts(parts: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
    let (mut reader, mut input, mut found) = (LineReader::default(), BytesMut::new(), Vec::new());
    for part in parts {
        input.extend_from_slice(part);
        loop {
            match reader.front(&mut input) {
                Front::Partial => break,
                Front::Line(length) => {
                    assert!(length <= LINE_OCTETS_MAX);
                    assert!(!input[..length].contains(&b'\n'), "an LF within a line");
                    assert_eq!(&input[length..length + 2], b"\r\n");
                    found.push(Some(input[..length].to_vec()));
                    reader.consume(&mut input, length);
                }
                Front::TooLong => found.push(Some(b"too long".to_vec())),
                // The session ends with either.
                Front::BareLf => {
                    found.push(Some(b"bare LF".to_vec()));
                    return found;
                }
                Front::Endless => {
                    found.push(None);
                    return found;
                }
            }
        }
        assert!(input.len() <= LINE_OCTETS_MAX + 2 + part.len(), "{} octets kept", input.len());
    }
    found
}

/// A command is understood as its own canonical spelling, and a refusal is a reply.
pub fn command(line: &[u8]) {
    let here = Domain::parse("mx.example.com").unwrap();
    match Command::parse(line, &here) {
        Ok(Command::Mail(mail)) => {
            let again = Command::parse(format!("MAIL FROM:{}", mail.reverse_path).as_bytes(), &here);
            let Ok(Command::Mail(second)) = again else { panic!("{:?} became {again:?}", mail.reverse_path) };
            assert_eq!((second.reverse_path, second.size), (mail.reverse_path, None));
            assert_eq!(second.parameters, postern::mail::MailParameters::default());
            if let Some(envid) = &mail.parameters.envid {
                assert!((1..=100).contains(&envid.len()));
                assert_printable(envid);
                let again = Command::parse(format!("MAIL FROM:<> ENVID={}", encode_xtext(envid)).as_bytes(), &here);
                assert!(matches!(&again, Ok(Command::Mail(second)) if second.parameters.envid.as_ref() == Some(envid)));
            }
        }
        Ok(Command::Rcpt(path)) => {
            let mut line = format!("RCPT TO:<{}>", path.address);
            if let Some(orcpt) = &path.orcpt {
                assert!(orcpt.len() <= 500);
                assert_printable(orcpt);
                let (kind, address) = orcpt.split_once(';').unwrap();
                line.push_str(&format!(" ORCPT={kind};{}", encode_xtext(address)));
            }
            let again = Command::parse(line.as_bytes(), &here);
            let Ok(Command::Rcpt(second)) = again else { panic!("{line:?} became {again:?}") };
            assert_eq!((second.address, second.orcpt), (path.address, path.orcpt));
        }
        Ok(Command::Ehlo(name) | Command::Helo(name)) => assert_printable(&name),
        Ok(_) => {}
        Err(error) => {
            let mut out = Vec::new();
            let reply = error.reply();
            assert!((500..600).contains(&reply.code.0));
            write_reply(&reply, &mut out);
            assert_replies(&out);
        }
    }
}

fn assert_printable(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// What a session may ask its driver is checked against what was answered before.
#[derive(Default)]
struct Driver {
    is_secured: bool,
    is_logged_in: bool,
    has_sender: bool,
    recipients: Vec<Address>,
    chunks: bool,
    answers: u8,
}

const RECIPIENTS_MAX: usize = 3;
const ERRORS_MAX: u32 = 10;
const LOGIN_FAILURES_MAX: u32 = 3;
const IDLE_MAX: u32 = 20;

/// Any lines, any answers: nothing is asked that may not be, everything ends.
pub fn session(input: &[u8]) {
    let mut feed = Feed(input);
    let is_secured = feed.flag();
    let mut driver = Driver { is_secured, answers: feed.byte(), ..Driver::default() };
    let settings = Settings {
        command_octets_max: 300,
        recipients_max: RECIPIENTS_MAX,
        errors_max: ERRORS_MAX,
        idle_commands_max: IDLE_MAX,
        login_failures_max: LOGIN_FAILURES_MAX,
        ..Settings::default()
    };
    let security = if is_secured { Security::Tls } else { Security::Plain };
    let mut session = Session::new(Arc::new(settings), Domain::parse("mx.shop.example").unwrap(), security);
    let mut refusals = 0;
    while !feed.is_empty() {
        let line = feed.until(b'\n');
        let mut out = Vec::new();
        let mut step = session.line(line.strip_suffix(b"\r").unwrap_or(line), NOW, &mut out);
        let mut questions = 0;
        while !matches!(step, Step::Next | Step::Close) {
            step = driver.answer(&mut session, step, &mut out);
            questions += 1;
            assert!(questions < 3, "a line that asks for ever");
        }
        assert_replies(&out);
        assert_eq!(session.is_logged_in(), driver.is_logged_in);
        refusals += u32::from(out.starts_with(b"5") || out.starts_with(b"454"));
        // EXPN is refused too, and counts with the commands without effect.
        assert!(refusals <= ERRORS_MAX + LOGIN_FAILURES_MAX + IDLE_MAX, "{refusals} refusals");
        if !session.is_in_transaction() {
            driver.has_sender = false;
            driver.recipients.clear();
            driver.chunks = false;
        }
        if step == Step::Close {
            assert!(!out.is_empty(), "hung up without a word");
            return;
        }
    }
}

impl Driver {
    /// One more bit of the answers.
    fn yes(&mut self) -> bool {
        self.answers = self.answers.rotate_left(1);
        self.answers & 1 == 0
    }

    fn answer(&mut self, session: &mut Session, step: Step, out: &mut Vec<u8>) -> Step {
        let refusal = Reply::enhanced(550, 7, 1, "no");
        match step {
            Step::UpgradeTls => {
                assert!(!self.is_secured, "STARTTLS twice");
                session.secured();
                assert!(session.helo().is_empty() && !session.is_in_transaction(), "remembered through STARTTLS");
                *self = Self { is_secured: true, answers: self.answers, ..Self::default() };
                Step::Next
            }
            Step::CheckLogin(credentials) => {
                assert!(self.is_secured && !self.is_logged_in, "a login in the clear, or a second one");
                assert!(!credentials.login.is_empty() && !credentials.password.is_empty());
                assert!(credentials.login.len() <= 512 && credentials.password.len() <= 512);
                self.is_logged_in = self.yes();
                let answer = if self.is_logged_in { LoginAnswer::Accepted } else { LoginAnswer::Refused };
                session.login_checked(answer, out)
            }
            Step::CheckSender(_) => {
                assert!(self.is_logged_in && self.is_secured && !self.has_sender);
                self.has_sender = self.yes();
                session.sender_checked(if self.has_sender { Ok(()) } else { Err(refusal) }, out)
            }
            Step::CheckRecipient(path) => {
                assert!(self.has_sender && !self.chunks);
                let answer = if self.yes() { Ok(()) } else { Err(refusal) };
                if answer.is_ok() && !self.recipients.contains(&path.address) {
                    self.recipients.push(path.address);
                }
                session.recipient_checked(answer, out)
            }
            Step::ReadData => {
                assert!(!self.chunks, "DATA after BDAT");
                assert!(out.starts_with(b"354 "));
                self.end_message(session, out)
            }
            Step::ReadChunk { last: true, .. } => self.end_message(session, out),
            Step::ReadChunk { octets, last: false } => {
                assert!(!self.recipients.is_empty());
                self.chunks = true;
                session.chunk_taken(octets, out)
            }
            Step::SkipChunk { .. } => {
                assert!(out.starts_with(b"5"));
                Step::Next
            }
            Step::Next | Step::Close => step,
        }
    }

    fn end_message(&mut self, session: &mut Session, out: &mut Vec<u8>) -> Step {
        let envelope = session.take_envelope().expect("a message without an envelope");
        let recipients: Vec<Address> = envelope.recipients.into_iter().map(|path| path.address).collect();
        assert!((1..=RECIPIENTS_MAX).contains(&recipients.len()));
        assert_eq!(recipients, self.recipients);
        assert!(session.take_envelope().is_none(), "one message taken twice");
        let reply = if self.yes() { Reply::enhanced(250, 0, 0, "taken") } else { Reply::enhanced(451, 3, 0, "no") };
        session.message_answered(&reply, out)
    }
}

const MESSAGE_BYTES_MAX: u64 = 400;
const HEADER_BYTES_MAX: usize = 60;

/// The reader at any split against three lines that read the whole at once.
pub fn data(input: &[u8]) {
    let mut feed = Feed(input);
    let limits = DataLimits {
        message_bytes_max: MESSAGE_BYTES_MAX,
        header_bytes_max: HEADER_BYTES_MAX,
        bare_line_ends: if feed.flag() { BareLineEnds::Refuse } else { BareLineEnds::Normalise },
    };
    let lengths = [feed.byte(), feed.byte(), feed.byte()];
    let wire = feed.rest();
    let mut reader = DataReader::dotted(limits);
    let mut end = None;
    let (mut at, mut body) = (0, Vec::new());
    for piece in pieces(wire, &lengths) {
        let mut left = piece;
        let progress = reader.read(&mut left);
        at += piece.len() - left.len();
        assert!(reader.body_pending() <= MESSAGE_BYTES_MAX as usize);
        body.extend(reader.take_body());
        if progress == Progress::Ended {
            end = Some(at);
            break;
        }
        assert!(left.is_empty(), "octets left before the end");
    }
    let Some((message, length)) = model(wire) else {
        assert_eq!(end, None, "an end that is none");
        return;
    };
    assert_eq!(end, Some(length), "the end is elsewhere");
    let raw = &wire[..length - 3];
    let has_bare = {
        let without: Vec<u8> = String::from_utf8_lossy(raw).replace("\r\n", "").into_bytes();
        without.contains(&b'\r') || without.contains(&b'\n')
    };
    let header_length = header_length(&message);
    let is_fine = !raw.contains(&0)
        && message.len() as u64 <= MESSAGE_BYTES_MAX
        && header_length <= HEADER_BYTES_MAX
        && !(has_bare && limits.bare_line_ends == BareLineEnds::Refuse);
    let finished = reader.finish();
    assert_eq!(finished.is_ok(), is_fine, "{finished:?}");
    if let Ok((header, rest)) = finished {
        body.extend(rest);
        assert_eq!(header, message[..header_length]);
        assert_eq!(body, message.get(header_length + 2..).unwrap_or_default());
        assert_line_ends(&header, "a header block");
        assert_line_ends(&body, "a body");
    }
}

/// What must be stored, and where the octets of the message and its end stop.
fn model(wire: &[u8]) -> Option<(Vec<u8>, usize)> {
    // One character for each octet, so that the octets of a text can be counted.
    let text: String = "\r\n".chars().chain(wire.iter().map(|byte| char::from(*byte))).collect();
    let (lines, left) = text.split_once("\r\n.\r\n")?;
    let unstuffed =
        lines.replace("\r\n.", "\r\n").strip_prefix("\r\n").map_or(String::new(), |text| format!("{text}\r\n"));
    let stored = unstuffed.replace("\r\n", "\n").replace('\r', "\n").replace('\n', "\r\n");
    let octets = stored.chars().map(|character| character as u8).collect();
    Some((octets, wire.len() - left.chars().count()))
}

/// Octets of the header block: up to the empty line, or all.
fn header_length(message: &[u8]) -> usize {
    if message.starts_with(b"\r\n") {
        return 0;
    }
    message.windows(4).position(|four| four == b"\r\n\r\n").map_or(message.len(), |at| at + 2)
}

/// Whatever is sent, only our own final dot ends it, and a sound message comes back the same.
pub fn stuffing(input: &[u8]) {
    let mut feed = Feed(input);
    let lengths = [feed.byte(), feed.byte()];
    let message = feed.rest();
    let (mut stuffer, mut wire) = (DotStuffer::new(), Vec::new());
    for piece in pieces(message, &lengths) {
        stuffer.write(piece, &mut wire);
    }
    stuffer.end(&mut wire);
    assert!(wire.len() <= message.len() * 2 + 6);
    let end = model(&wire).map(|(_, end)| end);
    assert_eq!(end, Some(wire.len()), "the message ends before its end");
    let limits =
        DataLimits { message_bytes_max: u64::MAX, header_bytes_max: usize::MAX, bare_line_ends: BareLineEnds::Refuse };
    let mut reader = DataReader::dotted(limits);
    let mut left = wire.as_slice();
    assert_eq!(reader.read(&mut left), Progress::Ended);
    assert!(left.is_empty());
    if let Ok((header, body)) = reader.finish() {
        let (mut given, mut taken) = (message.to_vec(), header);
        if !given.is_empty() && !given.ends_with(b"\r\n") {
            given.extend_from_slice(b"\r\n");
        }
        if taken.len() < given.len() {
            taken.extend_from_slice(b"\r\n");
        }
        taken.extend(body);
        assert_eq!(taken, given);
    }
}
