//! Who holds how much of what all tenants share: connections, lookups. Pure.
//!
//! Easy to get wrong: a cap for one tenant keeps nothing for others if two tenants reach it together; so
//! the last part of everything is for those who hold nothing.

use std::collections::HashMap;

use crate::mail::TenantId;

/// One part in so many is for tenants that hold nothing yet.
pub(super) const RESERVED_PART: usize = 20;

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Supply {
    /// In all.
    pub(super) max: usize,
    /// For one tenant.
    pub(super) per_tenant_max: usize,
}

/// Why a tenant gets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All are in use, or all but those for tenants that hold none.
    Altogether,
    /// It holds as many as it may.
    OfTenant,
}

/// What is held now.
#[derive(Debug, Default)]
pub(super) struct Shares {
    total: usize,
    of: HashMap<TenantId, usize>,
}

impl Shares {
    /// How many are held.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Whether the tenant may have one more.
    pub(super) fn room(&self, tenant: TenantId, supply: Supply) -> Result<(), Full> {
        let held = self.of.get(&tenant).copied().unwrap_or(0);
        let reserved = if held == 0 { 0 } else { supply.max / RESERVED_PART };
        if self.total >= supply.max.saturating_sub(reserved) {
            Err(Full::Altogether)
        } else if held >= supply.per_tenant_max {
            Err(Full::OfTenant)
        } else {
            Ok(())
        }
    }

    /// The tenant has one more.
    pub(super) fn take(&mut self, tenant: TenantId) {
        self.total = self.total.saturating_add(1);
        let held = self.of.entry(tenant).or_default();
        *held = held.saturating_add(1);
    }

    /// One comes back.
    pub(super) fn give_back(&mut self, tenant: TenantId) {
        let Some(held) = self.of.get_mut(&tenant) else { return };
        self.total = self.total.saturating_sub(1);
        *held = held.saturating_sub(1);
        if *held == 0 {
            self.of.remove(&tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_without_any_gets_one_though_two_others_take_what_they_can() {
        let (mut shares, supply) = (Shares::default(), Supply { max: 100, per_tenant_max: 75 });
        for tenant in [1, 2] {
            while shares.room(TenantId(tenant), supply).is_ok() {
                shares.take(TenantId(tenant));
            }
        }
        assert_eq!(shares.total(), 95);
        assert_eq!(shares.room(TenantId(1), supply), Err(Full::Altogether));
        for tenant in 3..8 {
            assert_eq!(shares.room(TenantId(tenant), supply), Ok(()));
            shares.take(TenantId(tenant));
            assert_eq!(shares.room(TenantId(tenant), supply), Err(Full::Altogether), "one each");
        }
        assert_eq!(shares.room(TenantId(8), supply), Err(Full::Altogether));
        shares.give_back(TenantId(1));
        assert_eq!(shares.room(TenantId(8), supply), Ok(()));
    }

    #[test]
    fn one_tenant_alone_gets_its_share_and_what_comes_back_is_free_again() {
        let (mut shares, supply) = (Shares::default(), Supply { max: 10, per_tenant_max: 7 });
        for _ in 0..7 {
            shares.room(TenantId(1), supply).unwrap();
            shares.take(TenantId(1));
        }
        assert_eq!(shares.room(TenantId(1), supply), Err(Full::OfTenant));
        for _ in 0..7 {
            shares.give_back(TenantId(1));
        }
        shares.give_back(TenantId(1));
        assert_eq!((shares.total(), shares.of.len()), (0, 0));
    }
}
