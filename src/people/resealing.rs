//! Sealing second factors anew when the master key changes.
//!
//! Easy to get wrong: one that opens under neither master key is left as it is and named; an admin can
//! take it away.

use super::factors::purpose;
use super::stored::{read_user, replace};
use crate::records::{self, AdminError};
use crate::seal::MasterKey;
use crate::store::{Batch, Store, prefix};

/// Seals every second factor that `new` alone does not open under `new`; `both` opens what either sealed.
/// How many were sealed anew, and which open under neither.
pub async fn reseal(store: &dyn Store, new: &MasterKey, both: &MasterKey) -> Result<(u64, Vec<String>), AdminError> {
    let (users, damaged) = records::load_with(store, &[prefix::USER, b'r'], read_user)?;
    let mut unopened: Vec<String> = damaged.into_iter().map(|damage| damage.key).collect();
    let mut values = 0;
    for (_, mut user) in users {
        let before = user.clone();
        let purpose = purpose(user.id);
        let Some(totp) = &mut user.totp else { continue };
        if new.open(&purpose, &totp.sealed).is_ok() {
            continue;
        }
        let Ok(plain) = both.open(&purpose, &totp.sealed) else {
            unopened.push(purpose);
            continue;
        };
        totp.sealed = new.seal(&purpose, &plain);
        let mut batch = Batch::new();
        replace(&mut batch, &before, &user);
        store.commit(batch).await?;
        values += 1;
    }
    Ok((values, unopened))
}
