//! Counts the message against its tenant's and account's limits; over one it is refused with the
//! time when it lifts. Counted once per message, after it is known to be allowed at all.

use async_trait::async_trait;

use super::about::{About, Counted};
use super::{Count, Stage};
use crate::mail::{Draft, Refusal};

/// The stage.
pub struct Limits {
    pub(super) count: Count,
}

#[async_trait]
impl Stage for Limits {
    fn name(&self) -> &'static str {
        "limits"
    }

    fn concerns(&self, about: &About) -> bool {
        !about.is_notice()
    }

    async fn apply(&self, _draft: &mut Draft, about: &mut About) -> Result<(), Refusal> {
        (self.count)(about.source.tenant, about.source.account, about.now)?;
        about.counted = Counted::Yes;
        Ok(())
    }
}
