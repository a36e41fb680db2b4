//! Sealing the signing keys anew when the master key changes.
//!
//! Easy to get wrong: a key that opens under neither master key is left as it is and named; it did not work
//! before either.

use super::record::{self, SendingDomain};
use crate::records::{self, AdminError};
use crate::seal::MasterKey;
use crate::store::{Batch, Store, codec, prefix};

/// Records changed in one commit.
const BATCH_RECORDS: usize = 100;

/// Seals every signing key that `new` alone does not open under `new`; `both` opens what either sealed.
/// How many were sealed anew, and which open under neither.
pub async fn reseal(store: &dyn Store, new: &MasterKey, both: &MasterKey) -> Result<(u64, Vec<String>), AdminError> {
    let (domains, damaged) = records::load::<SendingDomain>(store, &[prefix::DOMAIN])?;
    let mut unopened: Vec<String> = damaged.into_iter().map(|damage| damage.key).collect();
    let (mut values, mut batch, mut waiting) = (0, Batch::new(), 0);
    for (key, old) in domains {
        let mut record = old.clone();
        unopened.extend(record::reseal(&mut record, new, both));
        if record == old {
            continue;
        }
        values += 1;
        batch.if_equals(key.clone(), codec::encode(&old)).set(key, codec::encode(&record));
        waiting += 1;
        if waiting == BATCH_RECORDS {
            store.commit(std::mem::take(&mut batch)).await?;
            waiting = 0;
        }
    }
    if waiting > 0 {
        store.commit(batch).await?;
    }
    Ok((values, unopened))
}
