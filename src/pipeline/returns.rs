//! Marks a message whose domain has a return-path, so that what comes back about it is known: a trace field, and
//! for a single recipient of marketing mail an address to unsubscribe at, unless the sender named one.
//!
//! Easy to get wrong: the choice is made once, here, and stored with the message; and all recipients get the same
//! octets, so what names one recipient may stand only in a message with one.

use async_trait::async_trait;

use super::about::About;
use super::{MarksLookup, Stage};
use crate::mail::returned::TRACE_FIELD;
use crate::mail::{Class, Draft, Refusal};

/// The stage.
pub struct Returns {
    pub(super) marks: MarksLookup,
}

#[async_trait]
impl Stage for Returns {
    fn name(&self) -> &'static str {
        "returns"
    }

    /// What is sent from nobody stays so: nobody is to be told of it.
    fn concerns(&self, about: &About) -> bool {
        !about.is_notice()
    }

    async fn apply(&self, draft: &mut Draft, about: &mut About) -> Result<(), Refusal> {
        // Ours alone to write: one that came along may be of a message that is forwarded.
        draft.header.remove(TRACE_FIELD);
        let Some(signer) = &about.signer else { return Ok(()) };
        let Some(marks) = (self.marks)(about.source.tenant, &signer.domain, about.id) else { return Ok(()) };
        draft.header.append(TRACE_FIELD, &marks.trace);
        let is_single = about.envelope.recipients.len() == 1;
        if is_single && about.source.class == Class::Marketing && draft.header.count("List-Unsubscribe") == 0 {
            draft.header.append("List-Unsubscribe", &format!("<mailto:{}?subject=unsubscribe>", marks.unsubscribe));
        }
        if about.envelope.reverse_path.0.is_some() {
            about.return_path = Some(marks.return_path);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Marks;
    use super::super::samples::{self, smtp_about};
    use super::*;
    use crate::mail::{Address, Domain, ReversePath};

    fn stage() -> Returns {
        let marks: MarksLookup = Arc::new(|_, domain, id| {
            let return_path = Domain::parse(&format!("bounce.{domain}")).unwrap();
            let unsubscribe = Address::parse(&format!("u1@{return_path}")).unwrap();
            (domain.as_str() == "shop.example").then(|| Marks { return_path, trace: format!("t{id}"), unsubscribe })
        });
        Returns { marks }
    }

    async fn marked(about: &mut About, signer: &str) -> String {
        about.signer = Some(samples::signer(signer));
        let mut draft = samples::draft("From: a@shop.example\r\nX-Postern-Trace: stolen\r\n\r\nhello\r\n");
        stage().apply(&mut draft, about).await.unwrap();
        String::from_utf8(draft.header.to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn mail_of_a_domain_with_a_return_path_is_traced_and_gets_it() {
        let mut about = smtp_about("a@shop.example", &["b@x.example", "c@x.example"]);
        let header = marked(&mut about, "shop.example").await;
        assert!(
            header.contains(&format!("X-Postern-Trace: t{}\r\n", about.id)) && !header.contains("stolen"),
            "{header}"
        );
        assert_eq!(about.return_path, Some(Domain::parse("bounce.shop.example").unwrap()));
        let mut about = smtp_about("a@other.example", &["b@x.example"]);
        let header = marked(&mut about, "other.example").await;
        assert!(!header.contains("X-Postern-Trace") && about.return_path.is_none(), "{header}");
    }

    #[tokio::test]
    async fn mail_from_nobody_stays_from_nobody() {
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        about.envelope.reverse_path = ReversePath(None);
        marked(&mut about, "shop.example").await;
        assert_eq!(about.return_path, None);
    }

    #[tokio::test]
    async fn only_marketing_mail_to_one_recipient_gets_an_address_to_unsubscribe_at() {
        for (class, recipients, expected) in [
            (Class::Marketing, &["b@x.example"][..], true),
            (Class::Marketing, &["b@x.example", "c@x.example"][..], false),
            (Class::Transactional, &["b@x.example"][..], false),
        ] {
            let mut about = smtp_about("a@shop.example", recipients);
            about.source.class = class;
            let header = marked(&mut about, "shop.example").await;
            let found = header.contains("List-Unsubscribe: <mailto:u1@bounce.shop.example?subject=unsubscribe>");
            assert_eq!(found, expected, "{class:?} {recipients:?}");
        }
    }
}
