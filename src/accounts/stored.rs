//! Stored shapes of tenants and SMTP accounts: the present ones, and those that earlier releases wrote.
//!
//! Easy to get wrong: a change is conditional on what is stored, which may still have an earlier shape, so
//! the condition is the stored octets and never the record encoded anew.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{DelayNotices, Limits, LoginState, MoveToShared, Sending, SmtpAccount, Tenant, account_key, tenant_key};
use crate::ext::Timestamp;
use crate::mail::{Class, SmtpAccountId, TenantId, VipId};
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

/// Before tenants had a region and a retention of their own.
#[derive(Serialize, Deserialize)]
struct FirstTenant {
    id: TenantId,
    name: String,
    sending: Sending,
    limits: Limits,
    delay_notices: DelayNotices,
    default_vip: Option<VipId>,
    move_to_shared: MoveToShared,
    created: Timestamp,
}

impl From<FirstTenant> for Tenant {
    fn from(first: FirstTenant) -> Self {
        Self {
            id: first.id,
            name: first.name,
            sending: first.sending,
            limits: first.limits,
            delay_notices: first.delay_notices,
            default_vip: first.default_vip,
            move_to_shared: first.move_to_shared,
            created: first.created,
            region: String::new(),
            retention_days: None,
            overflow_to: Vec::new(),
        }
    }
}

/// Before tenants named virtual IPs for what a warm-up has no room for.
#[derive(Serialize, Deserialize)]
struct SecondTenant {
    id: TenantId,
    name: String,
    sending: Sending,
    limits: Limits,
    delay_notices: DelayNotices,
    default_vip: Option<VipId>,
    move_to_shared: MoveToShared,
    created: Timestamp,
    region: String,
    retention_days: Option<u16>,
}

impl From<SecondTenant> for Tenant {
    fn from(second: SecondTenant) -> Self {
        Self {
            id: second.id,
            name: second.name,
            sending: second.sending,
            limits: second.limits,
            delay_notices: second.delay_notices,
            default_vip: second.default_vip,
            move_to_shared: second.move_to_shared,
            created: second.created,
            region: second.region,
            retention_days: second.retention_days,
            overflow_to: Vec::new(),
        }
    }
}

/// A tenant as it is written.
pub fn tenant_bytes(tenant: &Tenant) -> Vec<u8> {
    codec::encode_third(tenant)
}

/// A tenant in any of its shapes.
pub fn read_tenant(bytes: &[u8]) -> Result<Tenant, StoreError> {
    codec::decode_third::<FirstTenant, SecondTenant, Tenant>(bytes)
}

/// The octets that are stored of a tenant: what a change of it is conditional on.
pub fn stored_tenant(store: &dyn Store, id: TenantId) -> Result<Vec<u8>, AdminError> {
    store.get(&tenant_key(id))?.ok_or_else(|| AdminError::Missing(format!("tenant {id}")))
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

    #[test]
    fn a_tenant_of_an_earlier_shape_is_read_and_its_overflow_goes_nowhere() {
        let second = || SecondTenant {
            id: TenantId(1),
            name: "shop".into(),
            sending: Sending::Suspended,
            limits: Limits { hourly_max: Some(10), daily_max: None },
            delay_notices: DelayNotices::Always,
            default_vip: Some(VipId(4)),
            move_to_shared: MoveToShared::Permitted,
            created: Timestamp(3),
            region: "EU".into(),
            retention_days: Some(30),
        };
        let read = read_tenant(&codec::encode_second(&second())).unwrap();
        assert_eq!(read, Tenant::from(second()));
        assert_eq!((read.move_to_shared, read.overflow_to.len()), (MoveToShared::Permitted, 0));
        let named = Tenant { overflow_to: vec![VipId(9), VipId(8)], ..read };
        assert_eq!(read_tenant(&tenant_bytes(&named)).unwrap(), named);
        let SecondTenant { id, name, sending, limits, delay_notices, default_vip, move_to_shared, created, .. } =
            second();
        let first = FirstTenant { id, name, sending, limits, delay_notices, default_vip, move_to_shared, created };
        let read = read_tenant(&codec::encode(&first)).unwrap();
        assert_eq!((read.name.as_str(), read.region.as_str(), read.overflow_to.len()), ("shop", "", 0));
    }
}
