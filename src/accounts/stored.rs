//! Stored shapes of SMTP accounts: the second one, and the first one as earlier releases wrote it.
//!
//! Easy to get wrong: a change is conditional on what is stored, which may still have the first shape, so
//! the condition is the stored octets and never the record encoded anew.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Limits, LoginState, SmtpAccount, account_key};
use crate::ext::Timestamp;
use crate::mail::{Class, SmtpAccountId, TenantId};
use crate::records::{self, AdminError, Damage};
use crate::store::{Store, StoreError, codec, prefix};

/// Before accounts had a name, senders, an end and dialects.
#[derive(Serialize, Deserialize)]
struct FirstAccount {
    id: SmtpAccountId,
    tenant: TenantId,
    login: String,
    secrets: Vec<[u8; 32]>,
    class: Class,
    allowed_from: Vec<IpNet>,
    limits: Limits,
    login_state: LoginState,
    created: Timestamp,
}

impl From<FirstAccount> for SmtpAccount {
    fn from(first: FirstAccount) -> Self {
        Self {
            id: first.id,
            tenant: first.tenant,
            login: first.login,
            secrets: first.secrets,
            class: first.class,
            allowed_from: first.allowed_from,
            limits: first.limits,
            login_state: first.login_state,
            created: first.created,
            name: String::new(),
            allowed_senders: Vec::new(),
            expires: None,
            old_until: None,
            dialects: Vec::new(),
        }
    }
}

/// An account as it is written.
pub fn account_bytes(account: &SmtpAccount) -> Vec<u8> {
    codec::encode_second(account)
}

/// An account in either shape.
pub fn read_account(bytes: &[u8]) -> Result<SmtpAccount, StoreError> {
    codec::decode_second::<FirstAccount, SmtpAccount>(bytes)
}

/// All accounts, and those that cannot be read.
pub fn load_accounts(store: &dyn Store) -> Result<(Vec<SmtpAccount>, Vec<Damage>), StoreError> {
    records::load_with(store, &[prefix::SMTP_ACCOUNT], read_account)
        .map(|(rows, damaged)| (rows.into_iter().map(|(_, account)| account).collect(), damaged))
}

/// The octets that are stored of an account: what a change of it is conditional on.
pub fn stored_account(store: &dyn Store, id: SmtpAccountId) -> Result<Vec<u8>, AdminError> {
    store.get(&account_key(id))?.ok_or_else(|| AdminError::Missing(format!("SMTP account {id}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_of_the_first_shape_is_read_without_what_it_did_not_have() {
        let first = FirstAccount {
            id: SmtpAccountId(1),
            tenant: TenantId(2),
            login: "shop-1".into(),
            secrets: vec![[7; 32]],
            class: Class::Marketing,
            allowed_from: vec!["192.0.2.0/24".parse().unwrap()],
            limits: Limits::default(),
            login_state: LoginState::Enabled,
            created: Timestamp(3),
        };
        let read = read_account(&codec::encode(&first)).unwrap();
        assert_eq!((read.login.as_str(), read.name.as_str(), read.expires), ("shop-1", "", None));
        assert_eq!(read_account(&account_bytes(&read)).unwrap(), read);
    }
}
