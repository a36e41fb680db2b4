//! Adds what a message must have and its sender left out (RFC 6409 s8), and removes what nobody
//! else may see: Bcc, and a Return-Path, which only the last server writes (RFC 5321 s4.4).

use async_trait::async_trait;

use super::Stage;
use super::about::About;
use crate::mail::{Draft, Refusal};

/// The stage.
pub struct Complete;

#[async_trait]
impl Stage for Complete {
    fn name(&self) -> &'static str {
        "complete"
    }

    async fn apply(&self, draft: &mut Draft, about: &mut About) -> Result<(), Refusal> {
        let header = &mut draft.header;
        for name in ["Bcc", "Resent-Bcc", "Return-Path"] {
            header.remove(name);
        }
        // MIME-Version also where nothing else of MIME is: what later stages or other relays write rests on it.
        for (name, value) in [
            ("Date", about.now.rfc5322()),
            ("Message-ID", format!("<{}@{}>", about.id, about.source.vip_name)),
            ("MIME-Version", "1.0".to_owned()),
        ] {
            // A field without a value is as good as none.
            if header.text(name).is_none_or(|text| text.is_empty()) {
                header.remove(name);
                header.append(name, &value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, smtp_about};
    use super::*;

    async fn completed(message: &str) -> String {
        let mut draft = samples::draft(message);
        Complete.apply(&mut draft, &mut smtp_about("a@shop.example", &["b@x.example"])).await.unwrap();
        String::from_utf8(draft.header.to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn what_is_missing_is_added_rfc_6409_s8() {
        let header = completed("From: a@shop.example\r\nContent-Type: text/plain\r\nMessage-ID: \r\n\r\n").await;
        assert!(header.contains("\r\nDate: Sun, 22 Nov 2026 10:15:00 +0000\r\n"), "{header}");
        assert!(header.contains("@mx.shop.example>\r\n") && header.matches("Message-ID").count() == 1, "{header}");
        assert!(header.ends_with("\r\nMIME-Version: 1.0\r\n"), "{header}");
        // Also for the plainest message (RFC 2045 s4).
        let header = completed("From: a@shop.example\r\nSubject: x\r\nmime-version:\r\n\r\nHi\r\n").await;
        assert!(header.ends_with("\r\nMIME-Version: 1.0\r\n"), "{header}");
        assert_eq!(header.to_ascii_lowercase().matches("mime-version").count(), 1, "{header}");
    }

    #[tokio::test]
    async fn what_is_there_stays_and_nothing_needless_is_added() {
        let given = "From: a@shop.example\r\ndate: x\r\nmessage-id: <1@x>\r\nMime-Version: 1.0 (x)\r\n";
        assert_eq!(completed(&format!("{given}\r\n")).await, given);
    }

    #[tokio::test]
    async fn blind_copies_stay_blind() {
        let header =
            completed("BCC: c@x.example,\r\n d@x.example\r\nResent-Bcc: e@x.example\r\nFrom: a@shop.example\r\n\r\n");
        let header = header.await;
        assert!(!header.to_ascii_lowercase().contains("bcc") && !header.contains("d@x.example"), "{header}");
    }
}
