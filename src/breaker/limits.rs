//! The limits an SMTP account's mail is judged by: of the instance, of a class, of a tenant, of one
//! account; the most special that is set wins. Pure.

use serde::{Deserialize, Serialize};

use crate::ext::Timestamp;
use crate::mail::{Class, SmtpAccountId, TenantId};

/// When an account is paused; 0 switches a limit off. These are the settings `breaker.*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of recipients within an hour, so many in 100 may not exist (10).
    pub failures_percent: u32,
    /// Of recipients within an hour, so many in 100 may be refused for reputation or content (10).
    pub blocks_percent: u32,
    /// Recipients within an hour, before these two are judged (200).
    pub recipients_min: u64,
    /// Of deliveries within a day, so many in 1,000 may be complained about (3).
    pub complaints_per_thousand: u32,
    /// Messages within an hour, in multiples of what is usual (10).
    pub volume_factor: u32,
    /// Messages within an hour, before the volume is judged (500).
    pub volume_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            failures_percent: 10,
            blocks_percent: 10,
            recipients_min: 200,
            complaints_per_thousand: 3,
            volume_factor: 10,
            volume_min: 500,
        }
    }
}

/// What a set of limits is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitScope {
    /// Every account of a class.
    Class(Class),
    /// Every account of a tenant.
    Tenant(TenantId),
    /// One account.
    Account(SmtpAccountId),
}

/// Limits that were set; `None` leaves what is less special.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitSet {
    /// See [`Limits::failures_percent`].
    pub failures_percent: Option<u32>,
    /// See [`Limits::blocks_percent`].
    pub blocks_percent: Option<u32>,
    /// See [`Limits::recipients_min`].
    pub recipients_min: Option<u64>,
    /// See [`Limits::complaints_per_thousand`].
    pub complaints_per_thousand: Option<u32>,
    /// See [`Limits::volume_factor`].
    pub volume_factor: Option<u32>,
    /// See [`Limits::volume_min`].
    pub volume_min: Option<u64>,
}

impl LimitSet {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These, where they are set, else those of `under`.
    #[must_use]
    pub fn over(self, under: Self) -> Self {
        Self {
            failures_percent: self.failures_percent.or(under.failures_percent),
            blocks_percent: self.blocks_percent.or(under.blocks_percent),
            recipients_min: self.recipients_min.or(under.recipients_min),
            complaints_per_thousand: self.complaints_per_thousand.or(under.complaints_per_thousand),
            volume_factor: self.volume_factor.or(under.volume_factor),
            volume_min: self.volume_min.or(under.volume_min),
        }
    }

    /// What is wrong with them, if anything is.
    pub fn problem(&self) -> Option<&'static str> {
        if [self.failures_percent, self.blocks_percent].into_iter().flatten().any(|percent| percent > 100) {
            return Some("a part in 100 is at most 100; 0 switches the limit off");
        }
        if self.complaints_per_thousand.is_some_and(|part| part > 1_000) {
            return Some("complaints in 1,000 are at most 1,000; 0 switches the limit off");
        }
        if self.recipients_min == Some(0) || self.volume_min == Some(0) {
            return Some("what is judged needs at least 1 to judge by");
        }
        None
    }
}

impl Limits {
    /// These, with what was set in the place of some.
    #[must_use]
    pub fn with(self, set: LimitSet) -> Self {
        Self {
            failures_percent: set.failures_percent.unwrap_or(self.failures_percent),
            blocks_percent: set.blocks_percent.unwrap_or(self.blocks_percent),
            recipients_min: set.recipients_min.unwrap_or(self.recipients_min),
            complaints_per_thousand: set.complaints_per_thousand.unwrap_or(self.complaints_per_thousand),
            volume_factor: set.volume_factor.unwrap_or(self.volume_factor),
            volume_min: set.volume_min.unwrap_or(self.volume_min),
        }
    }
}

/// Limits that were set for a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// What for.
    pub scope: LimitScope,
    /// Which.
    pub limits: LimitSet,
}

/// Leave to send whatever the limits say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiver {
    /// To whom.
    pub account: SmtpAccountId,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who gave it.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself; `None` is only when somebody says so.
    pub until: Option<Timestamp>,
}

impl Waiver {
    /// Whether it holds at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// The limits of one account.
pub fn resolve(base: Limits, overrides: &[Override], of: (Class, TenantId, SmtpAccountId)) -> Limits {
    let (class, tenant, account) = of;
    let scopes = [LimitScope::Class(class), LimitScope::Tenant(tenant), LimitScope::Account(account)];
    scopes.iter().fold(base, |limits, scope| {
        let set = overrides.iter().find(|set| set.scope == *scope);
        set.map_or(limits, |set| limits.with(set.limits))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_special_limit_that_is_set_wins() {
        let of = (Class::Marketing, TenantId(1), SmtpAccountId(2));
        let set = |scope, failures_percent, volume_factor| Override {
            scope,
            limits: LimitSet { failures_percent, volume_factor, ..LimitSet::default() },
        };
        let overrides = [
            set(LimitScope::Account(SmtpAccountId(2)), Some(50), None),
            set(LimitScope::Class(Class::Marketing), Some(20), Some(30)),
            set(LimitScope::Tenant(TenantId(1)), Some(30), None),
            set(LimitScope::Tenant(TenantId(9)), Some(1), Some(1)),
        ];
        let limits = resolve(Limits::default(), &overrides, of);
        assert_eq!((limits.failures_percent, limits.volume_factor, limits.recipients_min), (50, 30, 200));
        let plain = resolve(Limits::default(), &overrides, (Class::Transactional, TenantId(2), SmtpAccountId(3)));
        assert_eq!(plain, Limits::default());
    }

    #[test]
    fn a_waiver_ends_by_itself_and_limits_out_of_range_are_told() {
        let waiver = |until| Waiver {
            account: SmtpAccountId(1),
            reason: String::new(),
            by: String::new(),
            since: Timestamp(0),
            until,
        };
        assert!(waiver(None).holds(Timestamp(9)) && waiver(Some(Timestamp(10))).holds(Timestamp(9)));
        assert!(!waiver(Some(Timestamp(9))).holds(Timestamp(9)));
        let wrong = LimitSet { failures_percent: Some(101), ..LimitSet::default() };
        assert!(wrong.problem().is_some() && LimitSet::default().problem().is_none());
        assert!(LimitSet { recipients_min: Some(0), ..LimitSet::default() }.problem().is_some());
    }
}
