//! Lists as tenants send them: CSV, line by line.

use std::io::{BufRead, BufReader};

use postern::ext::Timestamp;
use postern::mail::TenantId;
use postern::operations::{
    self, ImportColumns, ImportLines, Kind, LINE_OCTETS_MAX, LINES_AT_ONCE, Line, Operation, OperationId, State,
};
use postern::suppression::{Colour, NewEntry, Origin, Reason, Subject};

use super::feed::Feed;

/// What a spreadsheet takes for a formula.
const FORMULAS: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];
/// Stands for many octets, so that a small input has lines that are too long.
const MANY: u8 = 1;

/// `bytes` with a thousand letters for each of the first few [`MANY`].
fn expanded(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut left = 12;
    for byte in bytes {
        if *byte == MANY && left > 0 {
            left -= 1;
            out.extend_from_slice(&[b'x'; 1_000]);
        } else {
            out.push(*byte);
        }
    }
    out
}

fn lines(mut input: impl BufRead) -> (Vec<Line>, u64) {
    let (mut lines, mut octets) = (Vec::new(), 0);
    while let Some((line, read)) = operations::next_line(&mut input).unwrap() {
        assert!(read > 0, "a line of nothing");
        lines.push(line);
        octets += read;
    }
    (lines, octets)
}

/// The same in a few words.
fn model(input: &[u8]) -> Vec<Line> {
    let line = |piece: &[u8]| {
        let end = piece.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
        let is_cut = piece.len() >= LINE_OCTETS_MAX + 2 && !piece.ends_with(b"\n") || piece.len() > LINE_OCTETS_MAX + 2;
        match str::from_utf8(&piece[..end]) {
            _ if is_cut || end > LINE_OCTETS_MAX => Line::Unreadable("the line is too long"),
            Ok(text) => Line::Text(text.trim_start_matches('\u{feff}').to_owned()),
            Err(_) => Line::Unreadable("the line is not UTF-8"),
        }
    };
    input.split_inclusive(|byte| *byte == b'\n').map(line).collect()
}

/// Cells as a spreadsheet reads them: quotes come off, nothing else does.
fn as_a_spreadsheet(line: &str) -> Vec<String> {
    let (mut cells, mut cell, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut rest = line.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '"' if is_quoted && rest.peek() == Some(&'"') => cell.extend(rest.next()),
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => cells.push(std::mem::take(&mut cell)),
            other => cell.push(other),
        }
    }
    assert!(!is_quoted, "{line:?} goes on");
    cells.push(cell);
    cells
}

/// Written, read by a spreadsheet and read again by us, cells are what they were.
fn written_and_read(cells: &[String]) {
    let line = operations::csv_line(&cells.iter().map(String::as_str).collect::<Vec<_>>());
    let text = line.strip_suffix("\r\n").expect("a line end");
    assert!(!text.contains(['\r', '\n']), "{text:?}");
    for cell in as_a_spreadsheet(text) {
        assert!(!cell.starts_with(FORMULAS), "{cell:?} is a formula");
    }
    if text.len() > LINE_OCTETS_MAX {
        return;
    }
    let expected: Vec<String> = cells.iter().map(|cell| cell.replace(['\r', '\n'], " ")).collect();
    let (read, _) = lines(line.as_bytes());
    let [Line::Text(read)] = &read[..] else { panic!("{line:?} is read as {read:?}") };
    assert_eq!(operations::cells(read, ',').as_ref(), Ok(&expected), "{line:?}");
}

/// Lines are those of a model, however they arrive; cells are read back as they were, and none is a formula.
pub fn csv(input: &[u8]) {
    let Some((capacity, rest)) = input.split_first() else { return };
    let bytes = expanded(rest);
    let (found, octets) = lines(BufReader::with_capacity(1 + usize::from(*capacity), &bytes[..]));
    assert_eq!(octets, bytes.len() as u64);
    assert_eq!(found, model(&bytes));
    for line in &found {
        let Line::Text(line) = line else { continue };
        for separator in [operations::csv_separator(line), ',', ';', '\t'] {
            let Ok(cells) = operations::cells(line, separator) else { continue };
            assert!(cells.iter().map(String::len).sum::<usize>() <= line.len());
            written_and_read(&cells);
        }
    }
    let mut feed = Feed(rest);
    let mut cells = Vec::new();
    while !feed.is_empty() && cells.len() < 8 {
        cells.push(feed.text());
    }
    if !cells.is_empty() {
        written_and_read(&cells);
    }
}

fn operation(reason: Reason) -> Operation {
    Operation {
        id: OperationId([7; 16]),
        tenant: TenantId(7),
        account: None,
        colour: Colour::Black,
        kind: Kind::Import { reason },
        by: "somebody".to_owned(),
        origin: Origin::Tenant,
        began: Timestamp(1),
        finished: None,
        state: State::Running,
        octets: 0,
        at: 0,
        lines: 0,
        added: 0,
        present: 0,
        rejected: 0,
        rejected_octets: 0,
        written: 0,
        input: None,
    }
}

struct Imported {
    entries: Vec<NewEntry>,
    refused: u64,
    rejected: String,
}

/// All of a file, as an import goes through it.
fn imported(bytes: &[u8], reason: Reason) -> Imported {
    let mut operation = operation(reason);
    let columns = ImportColumns::of(&mut &bytes[..], &mut operation).unwrap();
    let mut rest = &bytes[usize::try_from(operation.at).unwrap()..];
    let mut all = Imported { entries: Vec::new(), refused: 0, rejected: String::new() };
    loop {
        let lines = ImportLines::read(&mut rest, &columns, (&operation, reason)).unwrap();
        if lines.octets == 0 {
            break;
        }
        let count = lines.entries.len() as u64 + lines.refused;
        assert!(count <= LINES_AT_ONCE as u64);
        operation.at += lines.octets;
        operation.lines += count;
        operation.rejected_octets += lines.rejected.len() as u64;
        all.entries.extend(lines.entries);
        all.refused += lines.refused;
        all.rejected.push_str(&lines.rejected);
    }
    assert_eq!(operation.at, bytes.len() as u64, "octets were passed over");
    all
}

/// Every line of a file is an entry or rejected with its reason, once; an entry that is exported is imported again.
pub fn import(input: &[u8]) {
    let mut feed = Feed(input);
    let reasons = [Reason::Manual, Reason::Import, Reason::HardBounce, Reason::Complaint, Reason::Unsubscribe];
    let reason = reasons[feed.below(reasons.len())];
    let bytes = expanded(feed.rest());
    let all = imported(&bytes, reason);
    let has_heading = {
        let mut begun = operation(reason);
        ImportColumns::of(&mut &bytes[..], &mut begun).unwrap();
        begun.at > 0
    };
    let (found, _) = lines(&bytes[..]);
    let given: Vec<&Line> = found.iter().skip(usize::from(has_heading)).filter(|line| !is_blank(line)).collect();
    assert_eq!(all.entries.len() as u64 + all.refused, given.len() as u64);
    rejected(&all, &given);
    for entry in &all.entries {
        exported_and_imported(entry);
    }
}

fn is_blank(line: &Line) -> bool {
    matches!(line, Line::Text(text) if text.trim().is_empty())
}

/// The file of rejected lines has each of them, with its number and a reason.
fn rejected(all: &Imported, given: &[&Line]) {
    let mut rows = all.rejected.split_terminator("\r\n").map(|line| operations::cells(line, ',').unwrap());
    assert_eq!(rows.next().is_some_and(|row| row == ["line", "why", "text"]), all.refused > 0);
    let (mut before, mut count) = (0, 0);
    for row in rows {
        let [number, why, text] = &row[..] else { panic!("{row:?} has not three cells") };
        let number: usize = number.parse().unwrap();
        assert!(number > before && !why.is_empty(), "{row:?}");
        (before, count) = (number, count + 1);
        match given[number - 1] {
            Line::Text(line) => assert_eq!(*text, line.replace('\r', " ")),
            Line::Unreadable(cause) => assert_eq!((why.as_str(), text.as_str()), (*cause, "")),
        }
    }
    assert_eq!(count, all.refused);
}

fn exported_and_imported(entry: &NewEntry) {
    assert!(!matches!(&entry.subject, Subject::Domain(domain) if !domain.as_str().contains('.')));
    let subject = entry.subject.to_string();
    let expires = entry.expires.map(Timestamp::rfc3339).unwrap_or_default();
    let line = operations::csv_line(&[&subject, entry.reason.word(), &entry.note, &expires]);
    if line.len() > LINE_OCTETS_MAX {
        return;
    }
    let heading = operations::csv_line(&["subject", "reason", "note", "expires"]);
    let again = imported(format!("{heading}{line}").as_bytes(), Reason::Manual);
    let note = entry.note.replace(['\r', '\n'], " ");
    assert_eq!(again.entries, [NewEntry { note, ..entry.clone() }], "{line:?}: {}", again.rejected);
}
