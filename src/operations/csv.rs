//! Lines of CSV (RFC 4180), read one at a time in bounded memory, and written so that no spreadsheet takes a
//! cell for a formula. Pure.
//!
//! Easy to get wrong: a quote mark put before a cell for the spreadsheet's sake must come off again when the
//! file is read, or what was exported could not be imported.

use std::io::{self, BufRead, Read};

/// Octets of one line, at most; a longer one is rejected.
pub const LINE_OCTETS_MAX: usize = 4096;
const TOO_LONG: &str = "the line is too long";
/// Marks a file as UTF-8 (Unicode s23.8), at its beginning; files that were put together have it in between.
const MARK: char = '\u{feff}';
/// What a spreadsheet may take for the beginning of a formula.
const FORMULA_STARTS: &[char] = &['=', '+', '-', '@', '\t', '\r', '\''];

/// One line as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Its text without the line end.
    Text(String),
    /// It is too long or not UTF-8: why.
    Unreadable(&'static str),
}

/// Reads the next line and its octets, line end included; `None` at the end.
pub fn next_line(input: &mut impl BufRead) -> io::Result<Option<(Line, u64)>> {
    let mut octets = Vec::new();
    let most = LINE_OCTETS_MAX as u64 + 2;
    let mut read = input.by_ref().take(most).read_until(b'\n', &mut octets)? as u64;
    if read == 0 {
        return Ok(None);
    }
    if read == most && octets.last() != Some(&b'\n') {
        // The rest is passed over without being kept.
        loop {
            let mut rest = Vec::new();
            let more = input.by_ref().take(most).read_until(b'\n', &mut rest)? as u64;
            read += more;
            if more == 0 || rest.last() == Some(&b'\n') {
                return Ok(Some((Line::Unreadable(TOO_LONG), read)));
            }
        }
    }
    while matches!(octets.last(), Some(b'\n' | b'\r')) {
        octets.pop();
    }
    if octets.len() > LINE_OCTETS_MAX {
        return Ok(Some((Line::Unreadable(TOO_LONG), read)));
    }
    let line = match String::from_utf8(octets) {
        Ok(text) => Line::Text(text.trim_start_matches(MARK).to_owned()),
        Err(_) => Line::Unreadable("the line is not UTF-8"),
    };
    Ok(Some((line, read)))
}

/// What parts the cells of a file, judged by its first line.
pub fn separator(first: &str) -> char {
    [';', '\t'].into_iter().find(|separator| first.contains(*separator) && !first.contains(',')).unwrap_or(',')
}

/// The cells of a line.
///
/// # Errors
/// If quotes are not closed, or something stands behind a closing one.
pub fn cells(line: &str, separator: char) -> Result<Vec<String>, &'static str> {
    let (mut cells, mut rest) = (Vec::new(), line);
    loop {
        let (cell, left) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_cell(quoted)?,
            None => {
                let end = rest.find(separator).unwrap_or(rest.len());
                let (cell, left) = rest.split_at_checked(end).unwrap_or((rest, ""));
                (cell.trim().to_owned(), left)
            }
        };
        cells.push(without_guard(cell));
        match left.strip_prefix(separator) {
            Some(next) => rest = next,
            None if left.trim().is_empty() => return Ok(cells),
            None => return Err("something stands behind a closing quote mark"),
        }
    }
}

fn quoted_cell(text: &str) -> Result<(String, &str), &'static str> {
    let (mut cell, mut rest) = (String::new(), text);
    loop {
        let (before, after) = rest.split_once('"').ok_or("a quote mark is not closed on its line")?;
        cell.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                cell.push('"');
                rest = more;
            }
            None => return Ok((cell, after)),
        }
    }
}

fn without_guard(cell: String) -> String {
    match cell.strip_prefix('\'') {
        Some(rest) if rest.starts_with(FORMULA_STARTS) => rest.to_owned(),
        _ => cell,
    }
}

/// One line of these cells, with its line end.
pub fn write_line(cells: &[&str]) -> String {
    let mut line = cells.iter().map(|cell| written(cell)).collect::<Vec<_>>().join(",");
    line.push_str("\r\n");
    line
}

fn written(cell: &str) -> String {
    let plain: String =
        cell.chars().map(|character| if matches!(character, '\n' | '\r') { ' ' } else { character }).collect();
    let guarded = if plain.starts_with(FORMULA_STARTS) { format!("'{plain}") } else { plain };
    if guarded.contains(['"', ',', ';', '\t', '\'', MARK]) || guarded != guarded.trim() {
        format!("\"{}\"", guarded.replace('"', "\"\""))
    } else {
        guarded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_read_with_quotes_and_either_separator() {
        let read = |line: &str| cells(line, separator(line));
        let texts = |list: &[&str]| Ok(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(read("a@b.example, manual ,x"), texts(&["a@b.example", "manual", "x"]));
        assert_eq!(read("a@b.example;manual"), texts(&["a@b.example", "manual"]));
        assert_eq!(read("\"a, \"\"b\"\"\",c"), texts(&["a, \"b\"", "c"]));
        assert_eq!(read(""), texts(&[""]));
        assert_eq!(read("\"open"), Err("a quote mark is not closed on its line"));
        assert_eq!(read("\"a\"b,c"), Err("something stands behind a closing quote mark"));
    }

    #[test]
    fn no_cell_is_a_formula_and_all_are_read_back_as_they_were() {
        for text in [
            "=cmd|' /C calc'!A0",
            "+1",
            "-1",
            "@SUM(1)",
            "'=x",
            "'",
            "a,b",
            "a\"b",
            " x ",
            "plain",
            "ż;ó",
            "\tx",
            "\u{feff}x",
        ] {
            let line = write_line(&[text, "end"]);
            let first = line.trim_start_matches('"').chars().next().unwrap();
            assert!(!['=', '+', '-', '@', '\t'].contains(&first), "{line}");
            let Some((Line::Text(read), _)) = next_line(&mut line.as_bytes()).unwrap() else { panic!("{line}") };
            assert_eq!(cells(&read, ',').unwrap(), [text, "end"], "{line}");
        }
        assert_eq!(write_line(&["a\r\nb"]), "a  b\r\n");
    }

    #[test]
    fn a_line_is_as_long_as_is_said_whatever_ends_it() {
        for (octets, end) in [(4096, ""), (4096, "\n"), (4096, "\r\n"), (4097, ""), (4097, "\n"), (4097, "\r\n")] {
            let file = format!("{}{end}", "x".repeat(octets));
            let (line, read) = next_line(&mut file.as_bytes()).unwrap().unwrap();
            assert_eq!(matches!(line, Line::Text(_)), octets == LINE_OCTETS_MAX, "{octets} and {end:?}");
            assert_eq!(read, file.len() as u64);
        }
    }

    #[test]
    fn a_line_of_any_length_takes_bounded_memory_and_the_next_one_is_read() {
        let mut file = b"\xef\xbb\xbffirst\r\n".to_vec();
        file.extend(std::iter::repeat_n(b'x', 100_000));
        file.extend(b"\n\xff\xfe\nlast");
        let (mut input, mut lines, mut octets) = (io::BufReader::new(&file[..]), Vec::new(), 0);
        while let Some((line, read)) = next_line(&mut input).unwrap() {
            lines.push(line);
            octets += read;
        }
        let text = |text: &str| Line::Text(text.to_owned());
        let long = Line::Unreadable("the line is too long");
        assert_eq!(lines, [text("first"), long, Line::Unreadable("the line is not UTF-8"), text("last")]);
        assert_eq!(octets, file.len() as u64);
    }
}
