//! What came back: notices, complaints and automatic replies as strangers write them, and tags as they type them.

use postern::ext::Timestamp;
use postern::feedback::{KEY_OCTETS, Purpose, Tagged, Tags};
use postern::mail::returned::{DIAGNOSTIC_CHARACTERS_MAX, REPORTED_MAX, Returned, read};
use postern::mail::{Address, Domain, QueueId, printable};

use super::feed::Feed;

/// What is read is bounded, printable and in one line, whatever was written; the same octets read the same.
pub fn returned(input: &[u8]) {
    let read_once = read(input);
    assert_eq!(read_once, read(input));
    match read_once {
        Returned::Report(report) => {
            assert!((1..=REPORTED_MAX).contains(&report.recipients.len()));
            assert_is_line(&report.reporter);
            for one in &report.recipients {
                assert_is_line(&one.diagnostic);
                assert!(one.status.is_none_or(|status| matches!(status.class, 2 | 4 | 5)));
                assert!(one.address.as_ref().is_none_or(is_address));
            }
        }
        Returned::Complaint(complaint) => {
            assert_is_line(&complaint.reporter);
            assert!(complaint.recipients.len() <= 2 * REPORTED_MAX + 2);
            assert!(complaint.reverse_paths.len() <= REPORTED_MAX + 1);
            assert!(complaint.recipients.iter().chain(&complaint.reverse_paths).all(is_address));
        }
        Returned::AutoReply | Returned::Other => {}
    }
}

fn assert_is_line(text: &str) {
    assert_eq!(printable(text), text);
    assert!(!text.contains(['\r', '\n']) && text.chars().count() <= DIAGNOSTIC_CHARACTERS_MAX);
}

fn is_address(address: &Address) -> bool {
    Address::parse(&address.to_string()).is_ok_and(|again| again == *address)
}

/// Nobody writes a tag that counts without the key; one that was made reads back, and no other name takes it.
pub fn tags(input: &[u8]) {
    let mut feed = Feed(input);
    let tags = Tags::new(&[7; KEY_OCTETS]);
    let (now, age) = (Timestamp(1_800_000_000_000), std::time::Duration::from_secs(30 * 86_400));
    let (name, other) = (Domain::parse("b.example").unwrap(), Domain::parse("c.example").unwrap());
    let number = u16::from(feed.byte());
    let text = feed.text();
    assert!(tags.read_trace(&text, (now, age)).is_err());
    if let Ok(address) = Address::from_parts(text, name.clone()) {
        assert!(tags.read(&address, (now, age)).is_err());
    }
    let tagged = Tagged { purpose: Purpose::Return, id: QueueId::new(now), number };
    let made = tags.address(tagged, &name);
    assert_eq!(tags.read(&made, (now, age)), Ok(tagged));
    let moved = Address::from_parts(made.local_part().to_owned(), other).unwrap();
    assert!(tags.read(&moved, (now, age)).is_err());
}
