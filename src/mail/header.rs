//! The header block as it was written: fields in order, each with its raw bytes.
//!
//! Nothing is re-folded or decoded on the way through; a stage replaces whole fields. Readers
//! that need meaning (addresses of From, parameters of Content-Type) use the mail-parser crate.

/// One field: its name as written and its raw value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name, in the sender's case, without colon.
    pub name: String,
    /// Everything after the colon including folding and the final CRLF, as raw bytes.
    pub raw_value: Vec<u8>,
}

/// The header block of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderBlock {
    fields: Vec<Field>,
}

/// Why a header block could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A line that is neither a field (`name:`) nor a continuation.
    #[error("header line {0} is not a header field")]
    NotAField(usize),
    /// An octet that may not stand in a header (NUL, bare CR or LF).
    #[error("header line {0} holds a control character")]
    Control(usize),
}

impl HeaderBlock {
    /// Reads a header block whose lines all end in CRLF, without the empty line that ends it.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut fields: Vec<Field> = Vec::new();
        for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let text = line.strip_suffix(b"\r\n").ok_or(HeaderError::Control(number + 1))?;
            if text.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
                return Err(HeaderError::Control(number + 1));
            }
            if matches!(text.first(), Some(b' ' | b'\t')) {
                let last = fields.last_mut().ok_or(HeaderError::NotAField(number + 1))?;
                last.raw_value.extend_from_slice(line);
                continue;
            }
            let colon = memchr::memchr(b':', text).ok_or(HeaderError::NotAField(number + 1))?;
            let (name, value) = line.split_at(colon);
            // RFC 5322 s2.2: printable ASCII except colon. A space before the colon (s4.5.8,
            // obsolete) would let one reader see a field that another does not.
            if name.is_empty() || !name.iter().all(|byte| (33..=126).contains(byte)) {
                return Err(HeaderError::NotAField(number + 1));
            }
            let name = String::from_utf8_lossy(name).into_owned();
            fields.push(Field { name, raw_value: value[1..].to_vec() });
        }
        Ok(Self { fields })
    }

    /// The fields in order.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// How many fields of that name there are, in any case.
    pub fn count(&self, name: &str) -> usize {
        self.all(name).count()
    }

    /// The fields of that name, in any case, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Field> {
        self.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name))
    }

    /// The first field of that name, unfolded, as text without surrounding white space.
    pub fn text(&self, name: &str) -> Option<String> {
        self.all(name).next().map(Field::text)
    }

    /// Puts a field on top. `value` is already folded; control characters other than folding
    /// are replaced, so nothing can be injected.
    pub fn prepend(&mut self, name: &str, value: &str) {
        self.fields.insert(0, Field::new(name, value));
    }

    /// Adds a field at the end.
    pub fn append(&mut self, name: &str, value: &str) {
        self.fields.push(Field::new(name, value));
    }

    /// Puts a field on top as it is. It must be well-formed, with its final CRLF.
    pub fn prepend_field(&mut self, field: Field) {
        self.fields.insert(0, field);
    }

    /// Shows each field once to `edit` and puts what it returns in its place; says whether any was
    /// replaced. The others stay where they are, so that a long block costs no more than its length.
    pub fn edit(&mut self, edit: impl Fn(&Field) -> Option<Field>) -> bool {
        let mut is_changed = false;
        for field in &mut self.fields {
            if let Some(edited) = edit(field) {
                *field = edited;
                is_changed = true;
            }
        }
        is_changed
    }

    /// Gives the first field of that name this value where it stands, or adds one at the end;
    /// further ones are removed.
    pub fn set(&mut self, name: &str, value: &str) {
        let mut place = None;
        let mut position = 0;
        self.fields.retain(|field| {
            let is_named = field.name.eq_ignore_ascii_case(name);
            let is_kept = !is_named || place.is_none();
            if is_named && is_kept {
                place = Some(position);
            }
            position += usize::from(is_kept);
            is_kept
        });
        match place.and_then(|place| self.fields.get_mut(place)) {
            Some(field) => field.raw_value = Field::new(name, value).raw_value,
            None => self.append(name, value),
        }
    }

    /// Removes every field of that name, in any case, and says how many there were.
    pub fn remove(&mut self, name: &str) -> usize {
        let before = self.fields.len();
        self.fields.retain(|field| !field.name.eq_ignore_ascii_case(name));
        before - self.fields.len()
    }

    /// Octets of the block as [`HeaderBlock::to_bytes`] writes it.
    pub fn length(&self) -> usize {
        self.fields.iter().map(|field| field.name.len() + 1 + field.raw_value.len()).sum()
    }

    /// The block as it stands on the wire, without the empty line.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.length() + 2);
        for field in &self.fields {
            bytes.extend_from_slice(field.name.as_bytes());
            bytes.push(b':');
            bytes.extend_from_slice(&field.raw_value);
        }
        bytes
    }
}

impl Field {
    /// A field from a name and a folded value.
    pub fn new(name: &str, value: &str) -> Self {
        let mut raw_value = Vec::with_capacity(value.len() + 3);
        raw_value.push(b' ');
        let mut lines = value.split("\r\n").peekable();
        let mut is_first = true;
        while let Some(line) = lines.next() {
            // A continuation that does not begin with white space would start a new field.
            if !is_first && !line.starts_with([' ', '\t']) {
                raw_value.push(b' ');
            }
            raw_value
                .extend(line.bytes().map(|byte| if (byte < 32 && byte != b'\t') || byte == 127 { b'?' } else { byte }));
            if lines.peek().is_some() {
                raw_value.extend_from_slice(b"\r\n");
            }
            is_first = false;
        }
        raw_value.extend_from_slice(b"\r\n");
        Self { name: name.to_owned(), raw_value }
    }

    /// The value unfolded (RFC 5322 s2.2.3), as text, without surrounding white space.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.raw_value).replace("\r\n", "").trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_written_as_it_was_read() {
        let bytes = b"From: a@b.example\r\nSubject: one\r\n two\r\nX-Empty:\r\n".as_slice();
        let block = HeaderBlock::parse(bytes).unwrap();
        assert_eq!(block.to_bytes(), bytes);
        assert_eq!(block.length(), bytes.len());
        assert_eq!(block.text("subject").as_deref(), Some("one two"));
        assert_eq!(block.text("x-empty").as_deref(), Some(""));
    }

    #[test]
    fn a_value_is_set_where_the_field_stands() {
        let mut block = HeaderBlock::parse(b"A: 1\r\nB: 2\r\nb: 3\r\nC: 4\r\n").unwrap();
        block.set("b", "new");
        block.set("D", "5");
        assert_eq!(block.to_bytes(), b"A: 1\r\nB: new\r\nC: 4\r\nD: 5\r\n");
    }

    #[test]
    fn editing_looks_at_each_field_once_and_moves_none() {
        let mut block = HeaderBlock::parse("A: 1\r\nB: 2\r\n".repeat(5000).as_bytes()).unwrap();
        let places =
            |block: &HeaderBlock| -> Vec<*const u8> { block.all("A").map(|field| field.raw_value.as_ptr()).collect() };
        let (before, looked) = (places(&block), std::cell::Cell::new(0));
        let is_changed = block.edit(|field| {
            looked.set(looked.get() + 1);
            (field.name == "B").then(|| Field::new("B", "3"))
        });
        assert!(is_changed && looked.get() == 10_000);
        assert!(places(&block) == before, "what is not replaced is neither copied nor moved");
        assert_eq!(block.to_bytes(), "A: 1\r\nB: 3\r\n".repeat(5000).as_bytes());
        assert!(!block.edit(|_| None));
    }

    #[test]
    fn lines_that_are_no_field_are_refused() {
        for bytes in [
            b"no colon\r\n".as_slice(),
            b" leading: fold\r\n",
            b"From : a@b\r\n",
            b": empty\r\n",
            b"A: b\n",
            b"A: b\0\r\n",
            b"A: b\rB: c\r\n",
            b"\xc3\xa9: b\r\n",
        ] {
            assert!(HeaderBlock::parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn nothing_can_be_injected_through_a_value() {
        let mut block = HeaderBlock::default();
        block.prepend("X-Tag", "a\r\nBcc: x@y.example");
        block.append("X-Other", "a\nB: c");
        assert_eq!(block.to_bytes(), b"X-Tag: a\r\n Bcc: x@y.example\r\nX-Other: a?B: c\r\n");
    }
}
