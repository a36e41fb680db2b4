//! What people search texts by: their words, in lower case. Pure.
//!
//! Easy to get wrong: what is indexed and what is asked must be cut in the same way, or a text is not found by
//! itself. Dots, hyphens and `@` stay inside a word, so that `5.7.1` and an address are one each.

use std::collections::BTreeSet;

/// Octets of a word, at most; longer ones are cut, and found by what is left.
const WORD_OCTETS_MAX: usize = 60;
/// Words of one text, at most.
const WORDS_MAX: usize = 128;

/// The words of a text, each once, in order.
pub fn words(text: &str) -> BTreeSet<String> {
    let is_inside = |character: char| character.is_alphanumeric() || matches!(character, '.' | '-' | '_' | '@' | '+');
    let trimmed = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let parts = text.split(|character: char| !is_inside(character)).map(trimmed).filter(|word| !word.is_empty());
    parts.take(WORDS_MAX).map(cut).collect()
}

/// A text that is compared as a whole, or by its beginning.
pub fn folded(text: &str) -> String {
    cut(text.trim().to_lowercase())
}

/// A Message-ID as it is compared: without its brackets.
pub fn message_id(text: &str) -> String {
    text.trim().trim_start_matches('<').trim_end_matches('>').to_owned()
}

fn cut(mut word: String) -> String {
    if word.len() > WORD_OCTETS_MAX {
        let end = (0..=WORD_OCTETS_MAX).rev().find(|at| word.is_char_boundary(*at)).unwrap_or_default();
        word.truncate(end);
    }
    word
}

/// The addresses in a header field, in lower case.
pub fn addresses(field: &str) -> BTreeSet<String> {
    let is_around = |character: char| matches!(character, '<' | '>' | ',' | ';' | '"' | '\'' | '(' | ')');
    let parts = field.split(|character: char| character.is_whitespace() || is_around(character));
    parts.filter(|part| part.contains('@')).map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_into_words_that_keep_codes_and_addresses_whole() {
        let list = |text: &str| words(text).into_iter().collect::<Vec<_>>();
        assert_eq!(
            list("550-5.7.1 <a.b@x.example>: Blocked, see RFC."),
            ["550-5.7.1", "a.b@x.example", "blocked", "rfc", "see"]
        );
        assert_eq!(list("Zażółć  GĘŚLĄ, zażółć!"), ["gęślą", "zażółć"]);
        assert!(list(" - ... ").is_empty());
        assert_eq!(list(&"ż".repeat(100))[0].len(), 60);
    }

    #[test]
    fn ids_and_addresses_are_found_however_they_were_written() {
        assert_eq!(message_id(" <1@x> "), message_id("1@x"));
        let found: Vec<String> = addresses("\"Shop\" <A@Shop.example>, b@x.example").into_iter().collect();
        assert_eq!(found, ["a@shop.example", "b@x.example"]);
    }
}
