//! Makes the message plain ASCII with short lines wherever MIME allows it, before it is signed, so
//! that no relay can break the signature by converting it (RFC 6376 s5.3, RFC 6152). Raw UTF-8 in
//! the header, and in those of the parts, becomes encoded words (`words`).
//!
//! What is inside multipart/signed or multipart/encrypted is never touched; then the message stays
//! 8-bit and goes only to peers that offer it. Easy to get wrong: a body that needs nothing must
//! cost nothing, so it is scanned first and rewritten only if something is found.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::about::{About, Octets};
use super::rewrite;
use super::words;
use super::{INLINE_BYTES_MAX, Stage};
use crate::mail::{Body, BodyWriter, Draft, LINE_OCTETS_MAX, Refusal, Reply};

/// The stage.
pub struct Encoding {
    pub(super) spill_folder: PathBuf,
    /// Counts KiB of bodies being rewritten in memory.
    pub(super) rewrite_kib: Arc<Semaphore>,
    pub(super) rewrite_kib_max: u32,
    pub(super) message_bytes_max: u64,
}

#[async_trait]
impl Stage for Encoding {
    fn name(&self) -> &'static str {
        "encoding"
    }

    async fn apply(&self, draft: &mut Draft, about: &mut About) -> Result<(), Refusal> {
        let is_small = draft.body.length() <= INLINE_BYTES_MAX && matches!(draft.body, Body::Memory(_));
        let mut moved = Draft { header: std::mem::take(&mut draft.header), body: draft.body.clone() };
        let (converted, octets) = if is_small {
            let octets = self.convert(&mut moved).map_err(unreadable)?;
            (moved, octets)
        } else {
            let kib = u32::try_from(moved.body.length().div_ceil(1024)).unwrap_or(u32::MAX);
            let kib = kib.min(self.rewrite_kib_max);
            // A clean body is only scanned, slice by slice; the permit is for rewriting. Taking it
            // before the scan keeps this at one hop.
            let permit = Arc::clone(&self.rewrite_kib).acquire_many_owned(kib).await.map_err(unreadable)?;
            let worker = Self {
                spill_folder: self.spill_folder.clone(),
                rewrite_kib: Arc::clone(&self.rewrite_kib),
                rewrite_kib_max: self.rewrite_kib_max,
                message_bytes_max: self.message_bytes_max,
            };
            let hop = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                worker.convert(&mut moved).map(|octets| (moved, octets))
            });
            hop.await.map_err(unreadable)?.map_err(unreadable)?
        };
        *draft = converted;
        about.octets = octets;
        // What is left in UTF-8 there (an address, say) may only go to peers that take it (RFC 6531 s3.5).
        about.header_octets = Octets::of(&draft.header.to_bytes());
        Ok(())
    }
}

impl Encoding {
    fn convert(&self, draft: &mut Draft) -> io::Result<Octets> {
        words::encode_fields(&mut draft.header);
        rewrite::fold_long_fields(&mut draft.header);
        if !needs_work(&draft.body)? {
            return Ok(Octets::of(&draft.header.to_bytes()));
        }
        let octets = match &draft.body {
            Body::Memory(bytes) => bytes.clone(),
            Body::Spilled(spill) => {
                let mut whole = Vec::with_capacity(usize::try_from(spill.length).map_err(io::Error::other)?);
                for slice in draft.body.slices() {
                    whole.extend_from_slice(&slice?);
                }
                whole.into()
            }
        };
        let plan = rewrite::plan_message(&mut draft.header, &octets, self.message_bytes_max);
        if plan.is_changed() {
            let mut writer = BodyWriter::new(&self.spill_folder);
            plan.write(&mut |piece| writer.write(piece))?;
            draft.body = writer.finish()?;
        }
        Ok(plan.octets().and(Octets::of(&draft.header.to_bytes())))
    }
}

/// Whether the body holds an octet over 127 or a line over [`LINE_OCTETS_MAX`].
fn needs_work(body: &Body) -> io::Result<bool> {
    let mut line_octets = 0_usize;
    for slice in body.slices() {
        let slice = slice?;
        if !slice.is_ascii() {
            return Ok(true);
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', &slice) {
            // One octet of CRLF, the CR, is in the count.
            if line_octets + (end - start) > LINE_OCTETS_MAX + 1 {
                return Ok(true);
            }
            line_octets = 0;
            start = end + 1;
        }
        line_octets += slice.len() - start;
        if line_octets > LINE_OCTETS_MAX + 1 {
            return Ok(true);
        }
    }
    Ok(line_octets > LINE_OCTETS_MAX)
}

fn unreadable(cause: impl std::fmt::Display) -> Refusal {
    let text = "the message could not be read or rewritten now, please try again later";
    Refusal::with_cause(Reply::enhanced(451, 3, 0, text), format!("encoding: {cause}"))
}

#[cfg(test)]
#[path = "encoding_tests.rs"]
mod tests;
