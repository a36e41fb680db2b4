//! Troubles that no event tells of, looked for now and then: limits that are nearly reached, domains whose record
//! has been gone for a day.

use std::sync::Arc;

use super::rooms::Rooms;
use crate::access::Actor;
use crate::accounts::{Accounts, Limits};
use crate::domains::{Domains, Standing};
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::notifications::{Kind, News, Watch};

/// A limit is near at this part of it, in percent.
const NEAR_PERCENT: u64 = 90;

/// What is looked for.
pub(super) fn watches(rooms: &Rooms) -> Vec<Watch> {
    let (accounts, known, domains) =
        (Arc::clone(&rooms.accounts), Arc::clone(&rooms.accounts), Arc::clone(&rooms.domains));
    vec![Arc::new(move |now| quotas(&accounts, now)), Arc::new(move |now| failing(&known, &domains, now))]
}

fn quotas(accounts: &Accounts, now: Timestamp) -> Vec<News> {
    let actor = Actor::system("limits that are near");
    let mut found = Vec::new();
    for tenant in accounts.tenants(&actor) {
        let name = format!("tenant {}", tenant.name);
        let told = near(&tenant.limits, accounts.tenant_usage(tenant.id, now), &name);
        found.extend(told.map(|text| of_quota(tenant.id, name, text)));
        for account in accounts.smtp_accounts(&actor, tenant.id).unwrap_or_default() {
            let name = format!("SMTP account {}", account.login);
            let told = near(&account.limits, accounts.account_usage(account.id, now), &name);
            found.extend(told.map(|text| of_quota(tenant.id, account.id.to_string(), text)));
        }
    }
    found
}

/// The day's limit, if it is near: that of an hour lifts before anybody could act.
fn near(limits: &Limits, (_, used): (u64, u64), name: &str) -> Option<String> {
    let max = limits.daily_max.filter(|max| *max > 0)?;
    if used.saturating_mul(100) < max.saturating_mul(NEAR_PERCENT) {
        return None;
    }
    Some(format!("{name} has handed in {used} of {max} messages within a day"))
}

/// The subject of an SMTP account is its id: it says to whom bound to accounts this is shown.
fn of_quota(tenant: TenantId, subject: String, text: String) -> News {
    News { tenant, kind: Kind::QuotaNear, subject, text }
}

fn failing(accounts: &Accounts, domains: &Domains, now: Timestamp) -> Vec<News> {
    let actor = Actor::system("domains that fail");
    let mut found = Vec::new();
    for tenant in accounts.tenants(&actor) {
        let own = domains.list(&actor, tenant.id).unwrap_or_default();
        for domain in own.into_iter().filter(|domain| domain.standing(now) == Standing::Warning) {
            let text = format!(
                "the DKIM record of {} has been gone for a day; publish it again, or the domain is suspended 7 days \
                 after it went",
                domain.domain
            );
            let subject = format!("{} (warning)", domain.domain);
            found.push(News { tenant: tenant.id, kind: Kind::DomainFailing, subject, text });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_near_at_nine_tenths_of_a_day() {
        let limits = |daily_max| Limits { hourly_max: Some(1), daily_max };
        let is_near = |daily_max, used| near(&limits(daily_max), (9, used), "tenant shop").is_some();
        assert!(is_near(Some(100), 90) && is_near(Some(100), 100) && !is_near(Some(100), 89));
        assert!(!is_near(None, 1_000_000) && !is_near(Some(0), 0));
    }
}
