//! Reads address fields (From, Sender) strictly: the one reading that every later reader shares.
//!
//! A lenient reader would accept forms that two programs understand differently, and that is how a
//! foreign From is smuggled past a check (group syntax, routes, comments inside an address, encoded
//! words as an address). What is not plainly `Name <a@b>` or `a@b` is refused with its reason.

use base64::Engine as _;

use super::address::Address;

/// Addresses in one field, at most; From of one message needs one.
pub const MAILBOXES_MAX: usize = 20;

/// One address with the name before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// The display name as written, without quotes; empty if there is none.
    pub name: String,
    /// The address.
    pub address: Address,
}

/// Why an address field was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MailboxError {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// `name: a@b, c@d;`
    #[error("uses group syntax")]
    Group,
    /// `<@a:b@c>`
    #[error("uses a source route")]
    Route,
    /// A comment where readers disagree about it.
    #[error("has a comment in or before the address")]
    Comment,
    /// An encoded word where the address should be, or one that hides control characters.
    #[error("has an encoded word that is not a plain name")]
    EncodedWord,
    /// `"a@b>"@c`: a careless reader takes the first at sign or bracket for the end.
    #[error("has a quoted local part that looks like another address")]
    Quoted,
    /// A control character or NUL, or bytes that are not UTF-8.
    #[error("holds a character that may not stand there")]
    Character,
    /// Too many.
    #[error("lists too many addresses")]
    TooMany,
    /// An address that is none, with what is wrong with it.
    #[error("holds an invalid address ({0})")]
    Address(String),
    /// Anything else that is not `Name <address>`.
    #[error("is not of the form Name <address>")]
    Form,
}

/// Reads the raw value of an address field: `mailbox-list` of RFC 5322 s3.4 without obsolete forms,
/// with UTF-8 names (RFC 6532 s3.2). At least one mailbox.
pub fn parse_mailboxes(raw_value: &[u8]) -> Result<Vec<Mailbox>, MailboxError> {
    let text = std::str::from_utf8(raw_value).map_err(|_| MailboxError::Character)?.replace("\r\n", "");
    if text.chars().any(|character| (character.is_control() && character != '\t') || character == '\u{feff}') {
        return Err(MailboxError::Character);
    }
    let mut reader = Reader { rest: &text };
    reader.skip_blanks();
    if reader.rest.is_empty() {
        return Err(MailboxError::Empty);
    }
    let mut mailboxes = Vec::new();
    loop {
        if mailboxes.len() == MAILBOXES_MAX {
            return Err(MailboxError::TooMany);
        }
        mailboxes.push(reader.mailbox()?);
        reader.skip_blanks();
        match reader.next() {
            None => return Ok(mailboxes),
            Some(',') => reader.skip_blanks(),
            Some(';') => return Err(MailboxError::Group),
            Some(_) => return Err(MailboxError::Form),
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.rest = self.rest.get(character.len_utf8()..).unwrap_or_default();
        Some(character)
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn take_while(&mut self, accepts: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|character| !accepts(character)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at_checked(end).unwrap_or_default();
        self.rest = rest;
        taken
    }

    /// `Name <address>`, `<address>`, `address`, or `address (Name)`.
    fn mailbox(&mut self) -> Result<Mailbox, MailboxError> {
        let mut words: Vec<String> = Vec::new();
        loop {
            self.skip_blanks();
            match self.peek() {
                Some('<') => {
                    self.next();
                    let address = self.address_until_angle()?;
                    return Ok(Mailbox { name: words.join(" "), address });
                }
                Some('"') => {
                    let quoted = self.quoted()?;
                    if self.peek() == Some('@') {
                        return self.bare_address(&words, &quoted.1);
                    }
                    words.push(quoted.0);
                }
                Some('(') => return Err(MailboxError::Comment),
                Some(':') => return Err(MailboxError::Group),
                Some(character) if is_atom(character) => {
                    let word = self.take_while(is_atom);
                    if self.peek() == Some('@') {
                        return self.bare_address(&words, word);
                    }
                    words.push(plain_word(word)?);
                }
                _ => return Err(MailboxError::Form),
            }
        }
    }

    /// An address without angles; `local` was read already, `@` comes next.
    fn bare_address(&mut self, words: &[String], local: &str) -> Result<Mailbox, MailboxError> {
        if !words.is_empty() {
            return Err(MailboxError::Form);
        }
        let address = self.after_local(local)?;
        self.skip_blanks();
        let mut name = String::new();
        if self.peek() == Some('(') {
            self.next();
            // The old way to give a name. Only one that no reader can take for an address.
            name = self.take_while(|character| !"()<>@,;:\\\"[]".contains(character)).trim().to_owned();
            if self.next() != Some(')') {
                return Err(MailboxError::Comment);
            }
            name.split_whitespace().try_for_each(|word| plain_word(word).map(drop))?;
        }
        Ok(Mailbox { name, address })
    }

    /// What stands between `<` and `>`.
    fn address_until_angle(&mut self) -> Result<Address, MailboxError> {
        let address = match self.peek() {
            Some('@') => return Err(MailboxError::Route),
            Some('(') => return Err(MailboxError::Comment),
            Some('"') => {
                let local = self.quoted()?.1;
                self.after_local(&local)?
            }
            _ => {
                let local = self.take_while(is_atom);
                self.after_local(local)?
            }
        };
        match self.next() {
            Some('>') => Ok(address),
            Some('(') => Err(MailboxError::Comment),
            _ => Err(MailboxError::Form),
        }
    }

    /// `@domain` after a local part, together an address.
    fn after_local(&mut self, local: &str) -> Result<Address, MailboxError> {
        if local.contains("=?") {
            return Err(MailboxError::EncodedWord);
        }
        if local.starts_with('"') && local.contains(['<', '>', '@', ',', ';', ':']) {
            return Err(MailboxError::Quoted);
        }
        match self.next() {
            Some('@') => {}
            Some('(') => return Err(MailboxError::Comment),
            _ => return Err(MailboxError::Form),
        }
        let domain = self.take_while(|character| is_atom(character) || matches!(character, '[' | ']' | ':'));
        if domain.contains("=?") {
            return Err(MailboxError::EncodedWord);
        }
        if self.peek() == Some('(') {
            return Err(MailboxError::Comment); // glued to the domain it looks like a part of it
        }
        Address::parse(&format!("{local}@{domain}")).map_err(|error| MailboxError::Address(error.to_string()))
    }

    /// A quoted string: its meaning, and itself as written.
    fn quoted(&mut self) -> Result<(String, String), MailboxError> {
        self.next();
        let mut meaning = String::new();
        let mut written = String::from("\"");
        loop {
            let character = self.next().ok_or(MailboxError::Form)?;
            written.push(character);
            match character {
                '"' => return Ok((meaning, written)),
                '\\' => {
                    let escaped = self.next().ok_or(MailboxError::Form)?;
                    written.push(escaped);
                    meaning.push(escaped);
                }
                other => meaning.push(other),
            }
        }
    }
}

/// atext of RFC 5322 s3.2.3 and RFC 6532 s3.2, and the dot, which people write in names unquoted.
fn is_atom(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(character) || !character.is_ascii()
}

/// A word of a name. If it is an encoded word (RFC 2047), it must decode to something printable.
fn plain_word(word: &str) -> Result<String, MailboxError> {
    let Some(inner) = word.strip_prefix("=?").and_then(|rest| rest.strip_suffix("?=")) else {
        return if word.contains("=?") { Err(MailboxError::EncodedWord) } else { Ok(word.to_owned()) };
    };
    let mut parts = inner.splitn(3, '?');
    let (Some(_charset), Some(encoding), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(MailboxError::EncodedWord);
    };
    let decoded = match encoding {
        "B" | "b" => {
            let lenient = base64::engine::GeneralPurposeConfig::new()
                .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent)
                .with_decode_allow_trailing_bits(true);
            base64::engine::GeneralPurpose::new(&base64::alphabet::STANDARD, lenient).decode(text).ok()
        }
        "Q" | "q" => quoted_printable::decode(text, quoted_printable::ParseMode::Robust).ok(),
        _ => None,
    };
    match decoded {
        Some(bytes) if !bytes.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) => Ok(word.to_owned()),
        _ => Err(MailboxError::EncodedWord),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, MailboxError> {
        let mailboxes = parse_mailboxes(format!(" {text}\r\n").as_bytes())?;
        Ok(mailboxes.into_iter().map(|mailbox| (mailbox.name, mailbox.address.to_string())).collect())
    }

    #[test]
    fn the_forms_that_programs_write_are_read() {
        for (text, name, address) in [
            ("a@x.example", "", "a@x.example"),
            ("<a@x.example>", "", "a@x.example"),
            ("Shop <a@x.example>", "Shop", "a@x.example"),
            ("My Shop Inc. <a@x.example>", "My Shop Inc.", "a@x.example"),
            ("\"Shop, Inc\" <a@X.Example>", "Shop, Inc", "a@x.example"),
            ("\"say \\\"hi\\\"\" <a@x.example>", "say \"hi\"", "a@x.example"),
            ("\"a@bank.example\" <a@x.example>", "a@bank.example", "a@x.example"),
            ("=?utf-8?Q?J=C3=BCrgen_M?= <a@x.example>", "=?utf-8?Q?J=C3=BCrgen_M?=", "a@x.example"),
            ("=?utf-8?B?SsO8cmdlbg==?= <a@x.example>", "=?utf-8?B?SsO8cmdlbg==?=", "a@x.example"),
            ("Jürgen <jürgen@x.example>", "Jürgen", "jürgen@x.example"),
            ("root@x.example (Cron Daemon)", "Cron Daemon", "root@x.example"),
            ("Shop\r\n\t<a@x.example>", "Shop", "a@x.example"),
            ("\"odd local\"@x.example", "", "\"odd local\"@x.example"),
            ("A+b=c%d@x.example", "", "A+b=c%d@x.example"),
        ] {
            assert_eq!(read(text), Ok(vec![(name.to_owned(), address.to_owned())]), "{text}");
        }
        assert_eq!(read("A <a@x.example>, b@y.example").unwrap().len(), 2);
    }

    #[test]
    fn forms_that_readers_understand_differently_are_refused() {
        use MailboxError as E;
        for (text, error) in [
            ("", E::Empty),
            ("undisclosed-recipients:;", E::Group),
            ("Group: a@x.example, b@evil.example;", E::Group),
            ("a@x.example;", E::Group),
            ("<@evil.example:a@x.example>", E::Route),
            ("<@evil.example,@b.example:a@x.example>", E::Route),
            ("(a@evil.example) a@x.example", E::Comment),
            ("a(comment)@x.example", E::Comment),
            ("a@x.example(<b@evil.example>)", E::Comment),
            ("a@x.example(.evil.example)", E::Comment),
            ("a@x.example (nested (comment))", E::Comment),
            ("<a@x.example(.evil.example)>", E::Comment),
            ("Name (a@evil.example) <a@x.example>", E::Comment),
            ("<a@evil.example>, <a@x.example> <c@x.example>", E::Form),
            ("<a@evil.example> <a@x.example>", E::Form),
            ("a@evil.example <a@x.example>", E::Form),
            ("a@evil.example a@x.example", E::Form),
            ("Name <a@x.example", E::Form),
            ("<<a@x.example>>", E::Form),
            ("a@x.example,", E::Form),
            (",a@x.example", E::Form),
            ("Name", E::Form),
            ("a@b@x.example", E::Form),
            ("=?utf-8?Q?a=40evil.example?=@x.example", E::EncodedWord),
            ("<=?utf-8?B?YQ==?=@x.example>", E::EncodedWord),
            ("=?utf-8?Q?a=00b?= <a@x.example>", E::EncodedWord),
            ("=?utf-8?Q?a=0D=0AFrom:_b?= <a@x.example>", E::EncodedWord),
            ("x=?utf-8?Q?a?= <a@x.example>", E::EncodedWord),
            ("<\"a@evil.example\"@x.example>", E::Quoted),
            ("<\"a@evil.example>\"@x.example>", E::Quoted),
            ("\"a,b\"@x.example", E::Quoted),
            ("a\0@x.example", E::Character),
            ("a@x.example\u{1}", E::Character),
        ] {
            assert_eq!(read(text), Err(error), "{text:?}");
        }
        for text in ["<a@[192.0.2.1]>", "a@x..example", "a..b@x.example", "<@>", "a@", "a @x.example", "a@ x.example"] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_mailboxes(b" \xff@x.example\r\n"), Err(E::Character));
        assert_eq!(read(&vec!["a@x.example"; MAILBOXES_MAX + 1].join(",")), Err(E::TooMany));
    }
}
