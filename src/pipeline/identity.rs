//! The first stage: the message says it is from somebody this tenant may speak for.
//!
//! Exactly one From, read one way only; every mailbox in it, in Sender and in Resent-From in a
//! domain the tenant has verified. The domain of the first From mailbox decides who signs, so that
//! DMARC aligns. Easy to get wrong: a form that we read differently from the recipient's program.

use std::sync::Arc;

use async_trait::async_trait;

use super::about::About;
use super::{SenderLookup, SignerLookup, Stage};
use crate::mail::{Draft, Refusal, Reply, parse_mailboxes, printable};

/// The stage.
pub struct Identity {
    pub(super) signer: SignerLookup,
    pub(super) sender: SenderLookup,
}

#[async_trait]
impl Stage for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn concerns(&self, about: &About) -> bool {
        !about.is_notice()
    }

    async fn apply(&self, draft: &mut Draft, about: &mut About) -> Result<(), Refusal> {
        match draft.header.count("From") {
            1 => {}
            0 => return Err(refused("there is no From field; add one: From: Name <address>")),
            _ => return Err(refused("there is more than one From field; send exactly one")),
        }
        if draft.header.count("Sender") > 1 {
            return Err(refused("there is more than one Sender field; send at most one"));
        }
        let mut signer = None;
        for name in ["From", "Sender", "Resent-From", "Resent-Sender"] {
            for field in draft.header.all(name) {
                let mailboxes = parse_mailboxes(&field.raw_value).map_err(|error| {
                    let shown: String = printable(&field.text()).chars().take(SHOWN_CHARACTERS_MAX).collect();
                    let text = format!("the {name} field {error}: {shown}; write it as {name}: Name <address>");
                    Refusal::quoting(Reply::enhanced(550, 7, 1, text), shown)
                })?;
                for mailbox in mailboxes {
                    let found = (self.signer)(about.source.tenant, mailbox.address.domain())?;
                    if let Some(account) = about.source.account {
                        (self.sender)(account, &mailbox.address)?;
                    }
                    signer.get_or_insert(Arc::clone(&found));
                }
            }
        }
        about.signer = signer;
        Ok(())
    }
}

/// Characters of an offending field that a reply repeats.
const SHOWN_CHARACTERS_MAX: usize = 100;

fn refused(text: &str) -> Refusal {
    Refusal::plain(Reply::enhanced(550, 7, 1, text))
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, smtp_about};
    use super::*;

    async fn judge(header: &str) -> Result<About, Refusal> {
        let mut draft = samples::draft(&format!("{header}To: x@y.example\r\n\r\nbody\r\n"));
        let mut about = smtp_about("sender@shop.example", &["x@y.example"]);
        let stage =
            Identity { signer: samples::signer_for(&["shop.example", "other.example"]), sender: samples::any_sender() };
        stage.apply(&mut draft, &mut about).await.map(|()| about)
    }

    #[tokio::test]
    async fn the_domain_of_the_first_from_mailbox_signs() {
        let signer =
            judge("From: A <a@other.example>, b@shop.example\r\nSender: s@shop.example\r\n").await.unwrap().signer;
        assert_eq!(signer.unwrap().domain.as_str(), "other.example");
        let signer = judge("From: A <a@News.Shop.example>\r\n").await.unwrap().signer;
        assert_eq!(signer.unwrap().domain.as_str(), "shop.example");
    }

    #[tokio::test]
    async fn an_smtp_account_bound_to_senders_is_from_nobody_else() {
        let only = |_, address: &crate::mail::Address| match address.local_part() {
            "orders" => Ok(()),
            _ => Err(refused("not this one")),
        };
        let stage = Identity { signer: samples::signer_for(&["shop.example"]), sender: Arc::new(only) };
        for (header, is_fine) in [
            ("From: orders@shop.example\r\n", true),
            ("From: a@shop.example\r\n", false),
            ("From: orders@shop.example\r\nSender: a@shop.example\r\n", false),
        ] {
            let mut draft = samples::draft(&format!("{header}\r\nbody\r\n"));
            let mut about = smtp_about("orders@shop.example", &["x@y.example"]);
            assert_eq!(stage.apply(&mut draft, &mut about).await.is_ok(), is_fine, "{header}");
        }
    }

    #[tokio::test]
    async fn a_foreign_domain_anywhere_is_refused_by_name() {
        for header in [
            "From: a@evil.example\r\n",
            "From: a@shop.example, b@evil.example\r\n",
            "From: a@shop.example\r\nSender: b@evil.example\r\n",
            "From: a@shop.example\r\nResent-From: b@evil.example\r\n",
            "Resent-From: b@shop.example\r\nResent-From: b@evil.example\r\nFrom: a@shop.example\r\n",
            "From: a@shop.example\r\nResent-Sender: b@evil.example\r\n",
            "From: a@shop.example.evil.example\r\n",
        ] {
            let reply = judge(header).await.err().expect(header).reply.one_line();
            assert!(reply.starts_with("550 5.7.1 ") && reply.contains("evil.example"), "{header}: {reply}");
        }
    }

    /// `tests/data/messages/from/*.txt`: each refused; the file's first line names why.
    #[tokio::test]
    async fn every_form_that_two_readers_could_take_differently_is_refused() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/messages/from");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap().replace("\\0", "\0");
            let (why, header) = text.split_once('\n').unwrap();
            let header = header.replace('\n', "\r\n");
            count += 1;
            let Ok(block) = crate::mail::HeaderBlock::parse(header.as_bytes()) else {
                assert_eq!(why, "# not a header", "{path:?}");
                continue;
            };
            let mut draft = Draft { header: block, body: samples::body("x\r\n") };
            let mut about = smtp_about("sender@shop.example", &["x@y.example"]);
            let stage = Identity { signer: samples::signer_for(&["shop.example"]), sender: samples::any_sender() };
            let refusal = stage.apply(&mut draft, &mut about).await.err().unwrap_or_else(|| panic!("{path:?} passed"));
            let reply = refusal.reply.one_line();
            assert!(reply.starts_with("550 5.7.1 "), "{path:?}: {reply}");
            assert!(reply.contains(why.trim_start_matches("# ")), "{path:?}: {reply}");
        }
        assert!(count >= 20, "{count} files");
    }
}
