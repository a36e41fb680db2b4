//! Addresses taken out of what others said, before it is kept for good.
//!
//! A peer's reply may quote whom a message is for. Events, day files and the memory of sites outlive
//! the message's history record, the one place that erasing a person overwrites; so its addresses
//! are replaced by a fixed word there. Easy to get wrong: `ann@x.example` is no part of
//! `joann@x.example` or `ann@x.example.org`, and peers write addresses in any case.

use std::borrow::Cow;

use super::address::Address;

/// What stands where a recipient's address was.
pub const RECIPIENT_MASK: &str = "<recipient>";
/// What stands where the sender's address was.
pub const SENDER_MASK: &str = "<sender>";
/// What stands where some address was, when nobody knows whose.
pub const ADDRESS_MASK: &str = "<address>";

/// The addresses of one message, as peers may write them.
#[derive(Debug, Default)]
pub struct Masks(Vec<Mask>);

#[derive(Debug)]
struct Mask {
    spelling: String,
    /// Octets before its last `@`.
    before: usize,
    word: &'static str,
}

impl Masks {
    /// Masks for a message's sender and recipients.
    pub fn of<'a>(sender: Option<&Address>, recipients: impl IntoIterator<Item = &'a Address>) -> Self {
        let recipients = recipients.into_iter().map(|address| (address, RECIPIENT_MASK));
        let all = recipients.chain(sender.map(|address| (address, SENDER_MASK)));
        Self(
            all.flat_map(|(address, word)| spellings(address).map(move |spelling| Mask::new(spelling, word))).collect(),
        )
    }

    /// Whether one of the addresses stands in `text`.
    pub fn are_in(&self, text: &str) -> bool {
        matches!(self.apply(text), Cow::Owned(_))
    }

    /// `text` with each of the addresses replaced by its word, in any case, with its angle brackets.
    pub fn apply<'t>(&self, text: &'t str) -> Cow<'t, str> {
        replace(text, |at| self.0.iter().find_map(|mask| mask.found(text, at)))
    }
}

impl Mask {
    fn new(spelling: String, word: &'static str) -> Self {
        let before = spelling.rfind('@').unwrap_or_default();
        Self { spelling, before, word }
    }

    /// Where the address stands around the `@` at `at`.
    fn found(&self, text: &str, at: usize) -> Option<(usize, usize, &'static str)> {
        let start = at.checked_sub(self.before)?;
        let end = start.checked_add(self.spelling.len())?;
        let bytes = text.as_bytes();
        let is_it = bytes.get(start..end)?.eq_ignore_ascii_case(self.spelling.as_bytes());
        let is_whole = !goes_on_before(bytes.get(..start)?) && !goes_on_after(bytes.get(end..)?);
        (is_it && is_whole).then_some((start, end, self.word))
    }
}

/// As it is, with a local part that needs quotes without them, and with the domain in U-labels.
fn spellings(address: &Address) -> impl Iterator<Item = String> {
    let written = address.to_string();
    let bare = format!("{}@{}", address.local_part(), address.domain());
    let (readable, _) = idna::domain_to_unicode(address.domain().as_str());
    let readable = format!("{}@{readable}", address.local_part());
    let mut all = vec![written, bare, readable];
    all.dedup();
    all.into_iter()
}

/// `text` with everything that looks like an address replaced: for what belongs to no message, so that
/// nobody could erase it later.
pub fn without_addresses(text: &str) -> Cow<'_, str> {
    replace(text, |at| {
        let (before, after) = (text.get(..at)?, text.get(at + 1..)?);
        let local = before.len() - before.trim_end_matches(is_local).len();
        let end = after.trim_start_matches(|c: char| is_domain(c) || c == '.');
        let domain = after.get(..after.len() - end.len())?.trim_end_matches(['.', '-']).len();
        (local > 0 && domain > 0).then(|| (at - local, at + 1 + domain, ADDRESS_MASK))
    })
}

/// Replaces what `found` finds around each `@`, with the angle brackets around it.
fn replace(text: &str, found: impl Fn(usize) -> Option<(usize, usize, &'static str)>) -> Cow<'_, str> {
    let (mut masked, mut kept) = (String::new(), 0);
    for (at, _) in text.match_indices('@') {
        let Some((start, end, word)) = found(at).filter(|(start, _, _)| *start >= kept) else { continue };
        let is_bracketed = text.as_bytes().get(kept..start).is_some_and(|before| before.ends_with(b"<"))
            && text.as_bytes().get(end) == Some(&b'>');
        let (start, end) = if is_bracketed { (start - 1, end + 1) } else { (start, end) };
        masked.push_str(text.get(kept..start).unwrap_or_default());
        masked.push_str(word);
        kept = end;
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    masked.push_str(text.get(kept..).unwrap_or_default());
    Cow::Owned(masked)
}

/// Octets of a word before an address make it another address.
fn goes_on_before(before: &[u8]) -> bool {
    match before {
        [.., first, b'.'] => is_word(*first),
        [.., last] => is_word(*last) || matches!(last, b'_' | b'+' | b'-' | b'%'),
        [] => false,
    }
}

fn goes_on_after(after: &[u8]) -> bool {
    match after {
        [b'.', next, ..] => is_word(*next),
        [next, ..] => is_word(*next) || matches!(next, b'_' | b'-'),
        [] => false,
    }
}

/// Letters beyond ASCII are none: some languages put no space between a word and an address.
fn is_word(octet: u8) -> bool {
    octet.is_ascii_alphanumeric()
}

fn is_local(character: char) -> bool {
    character.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(character) || !character.is_ascii()
}

fn is_domain(character: char) -> bool {
    character.is_alphanumeric() || character == '-' || !character.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks() -> Masks {
        let address = |text: &str| Address::parse(text).unwrap();
        let recipients =
            [address("Ann@x.example"), address("\"bob smith\"@y.example"), address("jörg@xn--mnchen-3ya.example")];
        Masks::of(Some(&address("orders@shop.example")), &recipients)
    }

    #[test]
    fn a_messages_own_addresses_are_masked_however_they_are_written() {
        for (said, kept) in [
            ("550 5.1.1 <ann@x.example>: no such user", "550 5.1.1 <recipient>: no such user"),
            ("550 ANN@X.EXAMPLE... unknown", "550 <recipient>... unknown"),
            ("550 ann@x.example. Bye", "550 <recipient>. Bye"),
            ("rcpt=ann@x.example;from=orders@shop.example", "rcpt=<recipient>;from=<sender>"),
            ("'ann@x.example' and ann@x.example", "'<recipient>' and <recipient>"),
            ("\"bob smith\"@y.example or bob smith@y.example", "<recipient> or <recipient>"),
            ("<jörg@münchen.example> <jörg@xn--mnchen-3ya.example>", "<recipient> <recipient>"),
            ("ann@x.example", "<recipient>"),
            ("“ann@x.example”, 用户ann@x.example不存在", "“<recipient>”, 用户<recipient>不存在"),
        ] {
            assert_eq!(masks().apply(said), kept);
        }
    }

    #[test]
    fn another_address_and_another_text_stay_as_they_are() {
        for said in [
            "250 2.0.0 queued as 4F2",
            "joann@x.example j.ann@x.example ann+tag@x.example x-ann@x.example",
            "ann@x.example.org ann@x.example-2.org ann@x.examples",
            "ann @x.example, @x.example, ann@",
            "",
        ] {
            assert!(matches!(masks().apply(said), Cow::Borrowed(same) if same == said), "{said}");
        }
    }

    #[test]
    fn whatever_looks_like_an_address_is_masked_where_nobody_knows_whose_it_is() {
        for (said, kept) in [
            ("421 4.7.0 <a.b+c@x.example> too fast.", "421 4.7.0 <address> too fast."),
            ("see https://x.example/?u=a@b.example.", "see https:<address>."),
            ("jörg@münchen.example: listed", "<address>: listed"),
            ("a@b@c", "<address>@c"),
        ] {
            assert_eq!(without_addresses(said), kept);
        }
        for said in ["421 too fast @ noon", "@x", "x@", "@@", "no address"] {
            assert_eq!(without_addresses(said), said);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_of_a_peer_makes_it_panic_and_nothing_it_knows_is_left(said in ".{0,60}") {
            let text = format!("{said} <ann@x.example> {said}");
            let masked = masks().apply(&text).into_owned();
            proptest::prop_assert!(!masked.to_ascii_lowercase().contains("<ann@x.example>"));
            let _ = without_addresses(&text);
        }
    }
}
