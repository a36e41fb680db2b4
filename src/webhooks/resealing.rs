//! Sealing secrets of webhooks anew when the master key changes.
//!
//! Easy to get wrong: a webhook has up to three sealed values, each for a purpose of its own; one that opens
//! under neither key is left as it is and named.

use super::record::{self, Webhook};
use crate::mail::WebhookId;
use crate::records::{self, AdminError};
use crate::seal::MasterKey;
use crate::store::{Batch, Store, codec};

/// What a signing secret is sealed as.
pub(super) fn secret_purpose(id: WebhookId) -> String {
    format!("signing secret of webhook {id}")
}

/// What the password of a basic login is sealed as.
pub(super) fn password_purpose(id: WebhookId) -> String {
    format!("password of webhook {id}")
}

/// Seals every secret that `new` alone does not open under `new`; `both` opens what either sealed.
/// How many were sealed anew, and which open under neither.
pub async fn reseal(store: &dyn Store, new: &MasterKey, both: &MasterKey) -> Result<(u64, Vec<String>), AdminError> {
    let (webhooks, damaged) = records::load::<Webhook>(store, &record::webhooks())?;
    let mut unopened: Vec<String> = damaged.into_iter().map(|damage| damage.key).collect();
    let mut values = 0;
    for (own, mut webhook) in webhooks {
        let before = codec::encode(&webhook);
        let (secret, password) = (secret_purpose(webhook.id), password_purpose(webhook.id));
        let secrets = webhook.secrets.iter_mut().map(|own| (&secret, &mut own.sealed));
        let passwords = webhook.login.iter_mut().map(|login| (&password, &mut login.sealed_password));
        let mut changed = 0;
        for (purpose, sealed) in secrets.chain(passwords) {
            if new.open(purpose, sealed).is_ok() {
                continue;
            }
            match both.open(purpose, sealed) {
                Ok(plain) => {
                    *sealed = new.seal(purpose, &plain);
                    changed += 1;
                }
                Err(_) => unopened.push(purpose.clone()),
            }
        }
        if changed > 0 {
            let mut batch = Batch::new();
            batch.if_equals(own.clone(), before).set(own, codec::encode(&webhook));
            store.commit(batch).await?;
            values += changed;
        }
    }
    Ok((values, unopened))
}
