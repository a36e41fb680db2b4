//! Notes which recipients are on the tenant's suppression list. They stay in the message's record
//! and are never mailed. A list that cannot be read refuses the message for now: mailing somebody
//! who asked not to be mailed is worse than a delay.

use async_trait::async_trait;

use super::about::About;
use super::{Stage, SuppressedLookup};
use crate::mail::{Draft, Refusal, Reply};

/// The stage.
pub struct Suppressed {
    pub(super) contains: SuppressedLookup,
}

#[async_trait]
impl Stage for Suppressed {
    fn name(&self) -> &'static str {
        "suppressed"
    }

    /// Who owes a notice has decided already whether it may be sent.
    fn concerns(&self, about: &About) -> bool {
        !about.is_notice()
    }

    async fn apply(&self, _draft: &mut Draft, about: &mut About) -> Result<(), Refusal> {
        for (recipient, number) in about.envelope.recipients.iter().zip(0_u16..) {
            let is_suppressed = (self.contains)(about.source.tenant, about.source.account, &recipient.address)
                .map_err(|cause| {
                    let text = "the suppression list cannot be read now, please try again later";
                    Refusal::with_cause(Reply::enhanced(451, 3, 0, text), format!("suppression list: {cause}"))
                })?;
            if is_suppressed {
                about.suppressed.push(number);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::samples::{self, smtp_about};
    use super::*;

    #[tokio::test]
    async fn suppressed_recipients_are_noted_by_number() {
        let stage = Suppressed { contains: Arc::new(|_, _, address| Ok(address.local_part().starts_with("no"))) };
        let mut about = smtp_about("a@shop.example", &["no1@x.example", "yes@x.example", "no2@x.example"]);
        stage.apply(&mut samples::draft(samples::PLAIN), &mut about).await.unwrap();
        assert_eq!(about.suppressed, [0, 2]);
    }

    #[tokio::test]
    async fn a_list_that_cannot_be_read_delays_the_message() {
        let stage = Suppressed { contains: Arc::new(|_, _, _| Err("disk".to_owned())) };
        let mut about = smtp_about("a@shop.example", &["x@x.example"]);
        let refusal = stage.apply(&mut samples::draft(samples::PLAIN), &mut about).await.unwrap_err();
        assert_eq!(refusal.reply.code.0, 451);
        assert!(!refusal.reply.one_line().contains("disk"));
    }
}
