//! The last stage: after it the bytes never change. A message that cannot be signed is refused for
//! now (451) and never sent unsigned; only a notice of ours leaves unsigned, if no key at all is
//! verified for the virtual IP's name, because its sender must be told.
//!
//! Easy to get wrong: an RSA signature takes longer than everything else here, so it must not hold
//! up an async worker; one hop to a signing thread carries both signatures and the body's hash. To hash
//! a large body takes as long as a hundred signatures, so small messages must not wait behind it: large
//! ones have threads of their own.

use std::sync::Arc;

use super::about::About;
use super::signers::Signers;
use super::{Lives, NameSignerLookup, Stage, live};
use crate::domains::Signer;
use crate::mail::dkim::{self, SignAs};
use crate::mail::{Draft, Refusal, Reply};
use async_trait::async_trait;

/// The stage.
pub struct Sign {
    pub(super) live: Lives,
    pub(super) name_signer: NameSignerLookup,
    pub(super) signers: Signers,
    /// For bodies of [`LARGE_BYTES_MIN`] and more.
    pub(super) large_signers: Signers,
}

/// To hash this takes a few times as long as to sign: a few milliseconds.
const LARGE_BYTES_MIN: u64 = 1024 * 1024;

#[async_trait]
impl Stage for Sign {
    fn name(&self) -> &'static str {
        "sign"
    }

    async fn apply(&self, draft: &mut Draft, about: &mut About) -> Result<(), Refusal> {
        let signer = match self.signer_of(about) {
            Some(signer) => signer,
            None if about.is_notice() => return Ok(()),
            None => return Err(unsigned("no signer was found")),
        };
        let algorithms = signer.algorithms_of(live(&self.live).algorithms);
        let now = about.now;
        // The header block moves to the other thread and back; the body is shared.
        let mut moved = Draft { header: std::mem::take(&mut draft.header), body: draft.body.clone() };
        let signers = if moved.body.length() < LARGE_BYTES_MIN { &self.signers } else { &self.large_signers };
        let hop = signers.run(move || {
            let sign_as = sign_as(&signer);
            let fields = dkim::sign(&moved, &sign_as, algorithms, now)?;
            for field in fields.into_iter().rev() {
                moved.header.prepend_field(field);
            }
            Ok::<_, dkim::SignError>((moved, sign_as.names(algorithms)))
        });
        let (signed, names) = hop.await.map_err(unsigned)?.map_err(unsigned)?;
        *draft = signed;
        about.signatures = names;
        Ok(())
    }
}

impl Sign {
    /// What `identity` found; for a notice what signs for the virtual IP's name.
    fn signer_of(&self, about: &About) -> Option<Arc<Signer>> {
        if !about.is_notice() {
            return about.signer.clone();
        }
        (self.name_signer)(about.source.vip, about.source.tenant)
    }
}

fn sign_as(signer: &Signer) -> SignAs<'_> {
    SignAs {
        domain: &signer.domain,
        rsa_selector: &signer.rsa_selector,
        ed25519_selector: &signer.ed25519_selector,
        keys: &signer.keys,
    }
}

fn unsigned(cause: impl std::fmt::Display) -> Refusal {
    let text = "the message could not be signed now, please try again later";
    Refusal::with_cause(Reply::enhanced(451, 3, 0, text), format!("signing: {cause}"))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::samples::{self, notice_about, smtp_about};
    use super::*;

    fn stage(name_signer: NameSignerLookup) -> Sign {
        Sign { live: samples::live(), name_signer, signers: Signers::new(1), large_signers: Signers::new(1) }
    }

    #[tokio::test]
    async fn both_signatures_stand_on_top() {
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        about.signer = Some(samples::signer("shop.example"));
        let mut draft = samples::draft(samples::PLAIN);
        stage(Arc::new(|_, _| None)).apply(&mut draft, &mut about).await.unwrap();
        let names: Vec<_> = draft.header.fields().iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names[..3], ["DKIM-Signature", "DKIM-Signature", "From"]);
        assert!(draft.header.fields()[0].text().contains("rsa-sha256"));
        assert_eq!(about.signatures, ["r1._domainkey.shop.example", "e1._domainkey.shop.example"]);
    }

    /// A message with a body of so many octets, handed to the stage.
    async fn sign_one(stage: &Sign, octets: usize) -> Vec<String> {
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        about.signer = Some(samples::signer("shop.example"));
        let body = "x".repeat(78) + "\r\n";
        let text = format!("From: a@shop.example\r\n\r\n{}", body.repeat(octets / body.len() + 1));
        stage.apply(&mut samples::draft(&text), &mut about).await.unwrap();
        about.signatures
    }

    #[tokio::test]
    async fn small_messages_do_not_wait_behind_large_ones() {
        let stage = stage(Arc::new(|_, _| None));
        let (go, gate) = std::sync::mpsc::channel::<()>();
        // Whatever keeps the threads for large bodies.
        let mut busy = Box::pin(stage.large_signers.run(move || gate.recv().unwrap()));
        assert!((&mut busy).now_or_never().is_none());
        let mut large = Box::pin(sign_one(&stage, 2 * 1024 * 1024));
        assert!((&mut large).now_or_never().is_none());
        assert_eq!(sign_one(&stage, 100).await.len(), 2);
        assert!((&mut large).now_or_never().is_none(), "the large one was signed by another thread");
        go.send(()).unwrap();
        busy.await.unwrap();
        assert_eq!(large.await.len(), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_signed_is_refused_for_now_and_never_sent_unsigned() {
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        let result = stage(Arc::new(|_, _| None)).apply(&mut samples::draft(samples::PLAIN), &mut about).await;
        assert_eq!(result.unwrap_err().reply.code.0, 451);
        about.signer = Some(samples::signer("shop.example"));
        let mut spilled = samples::draft(samples::PLAIN);
        spilled.body = samples::unreadable_body();
        let refusal = stage(Arc::new(|_, _| None)).apply(&mut spilled, &mut about).await.unwrap_err();
        assert!(refusal.reply.one_line().starts_with("451 4.3.0 "), "{refusal}");
    }

    #[tokio::test]
    async fn a_notice_is_signed_by_what_signs_for_the_name_and_else_leaves_unsigned() {
        let sign = |name_signer: NameSignerLookup, vip_name: &'static str| async move {
            let mut about = notice_about(vip_name, "a@shop.example");
            stage(name_signer).apply(&mut samples::draft(samples::PLAIN), &mut about).await.unwrap();
            about.signatures
        };
        let by_name: NameSignerLookup = Arc::new(|_, _| Some(samples::signer("mx.host.example")));
        assert!(sign(by_name, "mx.host.example").await[0].ends_with("mx.host.example"));
        assert!(sign(Arc::new(|_, _| None), "mx.host.example").await.is_empty());
    }
}
