//! The record by which a domain asks for reports: TXT at `_smtp._tls` (RFC 8460 s3). Pure.
//!
//! Easy to get wrong: two records are as none; and an address in a URI is percent-encoded, because commas and
//! exclamation marks would end it.

use crate::mail::{Address, Domain};
use crate::net::{TARGET_OCTETS_MAX, Target};

/// Recipients of one domain's reports, at most.
pub const RECIPIENTS_MAX: usize = 3;

/// Where a report is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whereto {
    /// By mail.
    Mail(Address),
    /// By POST.
    Post(Target),
}

/// The name of the record of `domain`; `None` if that would be no name.
pub fn name_of(domain: &Domain) -> Option<Domain> {
    Domain::parse(&format!("_smtp._tls.{domain}")).ok()
}

/// The URIs that the records name, the first [`RECIPIENTS_MAX`] that can be used; none if there is no record,
/// or more than one.
pub fn recipients(records: &[String]) -> Vec<String> {
    let mut of_ours = records.iter().filter_map(|record| {
        let rest = record.strip_prefix("v=TLSRPTv1")?;
        let rest = rest.trim_start_matches([' ', '\t']);
        rest.strip_prefix(';')
    });
    let (Some(fields), None) = (of_ours.next(), of_ours.next()) else { return Vec::new() };
    let mut fields = fields.split(';').map(|field| field.trim_matches([' ', '\t']));
    let Some(rua) = fields.find_map(|field| field.strip_prefix("rua=")) else { return Vec::new() };
    let mut found: Vec<String> = Vec::new();
    for uri in rua.split(',').map(|uri| uri.trim_matches([' ', '\t'])) {
        if whereto(uri).is_ok() && !found.iter().any(|known| known == uri) && found.len() < RECIPIENTS_MAX {
            found.push(uri.to_owned());
        }
    }
    found
}

/// Reads one URI.
///
/// # Errors
/// Why it cannot be used, for people.
pub fn whereto(uri: &str) -> Result<Whereto, String> {
    // It is shown to people and kept: no control characters, no novel (RFC 3986 s2 has ASCII only).
    if uri.len() > TARGET_OCTETS_MAX || !uri.bytes().all(|octet| octet.is_ascii_graphic()) {
        return Err("is too long, or has characters no URI has".to_owned());
    }
    let Some((scheme, rest)) = uri.split_once(':') else { return Err("is no URI".to_owned()) };
    match scheme.to_ascii_lowercase().as_str() {
        "mailto" => {
            // RFC 6068: header fields may follow; nobody but us says what stands in ours.
            let address = rest.split('?').next().unwrap_or_default();
            let address = decoded(address).ok_or("is not percent-encoded as a URI must be")?;
            Address::parse(&address).map(Whereto::Mail).map_err(|error| error.to_string())
        }
        "https" => Target::parse(uri).map(Whereto::Post).map_err(|error| error.to_string()),
        other => Err(format!("has the scheme {other:?}, not mailto or https")),
    }
}

/// `None` if a percent sign is followed by anything but two digits, or the result is not text.
fn decoded(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first != b'%' {
            octets.push(*first);
            rest = behind;
            continue;
        }
        let (digits, behind) = behind.split_first_chunk::<2>()?;
        let digits = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|d| d.is_ascii_hexdigit()))?;
        octets.push(u8::from_str_radix(digits, 16).ok()?);
        rest = behind;
    }
    String::from_utf8(octets).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_the_table_says() {
        let table = include_str!("../../tests/data/tls/tlsrpt-records.txt");
        let mut cases = 0;
        for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (records, expected) = line.rsplit_once(" => ").unwrap();
            let records: Vec<String> = records.split(" | ").map(|record| record.trim().to_owned()).collect();
            let found = recipients(&records);
            let found = if found.is_empty() { "none".to_owned() } else { found.join(" ") };
            assert_eq!(found, expected.trim(), "{line}");
            cases += 1;
        }
        assert!(cases >= 20, "{cases}");
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_domain_publishes_a_few_sound_uris_come_of_it(
            rua in "((mailto:[a-z%?\u{1}\u{e9}]{0,4}@x\\.example|https://[a-z:@%]{1,5}\\.example/?)[ ,;]{0,2}){0,6}",
        ) {
            let found = recipients(&[format!("v=TLSRPTv1; rua={rua}")]);
            assert!(found.len() <= RECIPIENTS_MAX, "{found:?}");
            for uri in found {
                assert!(whereto(&uri).is_ok() && uri.bytes().all(|octet| octet.is_ascii_graphic()), "{uri:?}");
            }
        }
    }

    #[test]
    fn an_address_is_decoded_and_what_follows_it_is_dropped() {
        let found = whereto("mailto:tls%2Breports%21@shop.example?subject=x").unwrap();
        let Whereto::Mail(address) = found else { panic!("{found:?}") };
        assert_eq!(address.to_string(), "tls+reports!@shop.example");
        assert_eq!(name_of(&Domain::parse("shop.example").unwrap()).unwrap().as_str(), "_smtp._tls.shop.example");
    }
}
