//! `postern breaker`: SMTP accounts that are paused because their mail went wrong.

use super::arguments::{Breaker, BreakerLimits, BreakerScope, MailClass};
use super::client::{Fault, encoded};
use super::output::{Table, or_dash, when};
use super::{Session, rows};
use crate::mail::{Class, printable};
use crate::web::{BreakerJson, BreakerLimitsJson, BreakerOverrideJson, NewWaiverJson, PauseJson, WaiverJson};

/// Carries out one of them.
pub async fn run(session: &Session, command: &Breaker) -> Result<(), Fault> {
    match command {
        Breaker::List => {
            let list = session.client.list("/breaker", usize::MAX).await?;
            session.show(&list, paused)
        }
        Breaker::Show { login } => {
            let shown = session.client.get(&format!("{}/breaker", account(login))).await?;
            session.show(&shown, picture)
        }
        Breaker::Limits => {
            let list = session.client.list("/breaker/limits", usize::MAX).await?;
            session.show(&list, limits)
        }
        Breaker::Set { scope, limits } => {
            let asked = BreakerOverrideJson { limits: json(limits), ..named(scope) };
            let set = session.client.put("/breaker/limits", &asked).await?;
            session.show(&set, |_, set: BreakerOverrideJson| format!("{}: {}\n", whose(&set), words(&set.limits)))
        }
        Breaker::Clear { scope } => {
            let asked = named(scope);
            let answer = session.client.post("/breaker/limits/clear", &asked).await?;
            session.done(&answer, &format!("nothing is set for {} any more", whose(&asked)))
        }
        Breaker::Waive { login, revoke: true, .. } => {
            let answer = session.client.delete(&format!("{}/waiver", account(login))).await?;
            session.done(&answer, &format!("SMTP account {login} is judged by its limits again"))
        }
        Breaker::Waive { login, reason, lasting, revoke: false } => {
            let asked = NewWaiverJson { reason: reason.clone().unwrap_or_default(), seconds: *lasting };
            let given = session.client.put(&format!("{}/waiver", account(login)), &asked).await?;
            session.show(&given, |session, given: WaiverJson| {
                let until = given.until.map_or_else(
                    || "until the waiver is revoked".to_owned(),
                    |until| format!("until {}", when(&until, session.now)),
                );
                format!("SMTP account {} is left alone {until}\n", printable(login))
            })
        }
    }
}

fn account(login: &str) -> String {
    format!("/smtp-accounts/{}", encoded(login))
}

fn named(scope: &BreakerScope) -> BreakerOverrideJson {
    BreakerOverrideJson {
        class: scope.class.map(|class| match class {
            MailClass::Transactional => Class::Transactional,
            MailClass::Marketing => Class::Marketing,
        }),
        tenant: scope.tenant.clone(),
        login: scope.account.clone(),
        limits: BreakerLimitsJson::default(),
    }
}

fn json(limits: &BreakerLimits) -> BreakerLimitsJson {
    BreakerLimitsJson {
        failures_percent: limits.failures,
        blocks_percent: limits.blocks,
        recipients_min: limits.recipients_min,
        complaints_per_thousand: limits.complaints,
        volume_factor: limits.volume,
        volume_min: limits.volume_min,
    }
}

fn whose(set: &BreakerOverrideJson) -> String {
    match (&set.class, &set.tenant, &set.login) {
        (Some(class), ..) => format!("{} SMTP accounts", format!("{class:?}").to_lowercase()),
        (_, Some(tenant), _) => format!("tenant {}", printable(tenant)),
        (_, _, Some(login)) => format!("SMTP account {}", printable(login)),
        _ => "nothing".to_owned(),
    }
}

fn words(limits: &BreakerLimitsJson) -> String {
    let part = |limit: Option<u64>, what: &str| match limit {
        None => None,
        Some(0) => Some(format!("{what} off")),
        Some(limit) => Some(format!("{what} {limit}")),
    };
    let parts = [
        part(limits.failures_percent.map(u64::from), "failures in 100"),
        part(limits.blocks_percent.map(u64::from), "blocks in 100"),
        part(limits.recipients_min, "recipients at least"),
        part(limits.complaints_per_thousand.map(u64::from), "complaints in 1,000"),
        part(limits.volume_factor.map(u64::from), "volume factor"),
        part(limits.volume_min, "messages at least"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn paused(session: &Session, list: serde_json::Value) -> String {
    let pauses: Vec<PauseJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["LOGIN", "TENANT", "SINCE", "BY", "WHY"]);
    for pause in pauses {
        table.row([pause.login, pause.tenant, when(&pause.since, session.now), pause.by, pause.cause]);
    }
    table.text(session.colour, "no SMTP account is paused")
}

fn limits(session: &Session, list: serde_json::Value) -> String {
    let sets: Vec<BreakerOverrideJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["FOR", "LIMITS"]);
    sets.iter().for_each(|set| table.row([whose(set), words(&set.limits)]));
    table.text(session.colour, "only the limits of the configuration hold")
}

fn picture(session: &Session, shown: BreakerJson) -> String {
    let limits = shown.limits;
    let limit = |limit: Option<u32>, unit: &str| match limit {
        Some(0) | None => "no limit".to_owned(),
        Some(limit) => format!("limit {limit} {unit}"),
    };
    let least = |least: Option<u64>| least.unwrap_or_default();
    let state = match (&shown.pause, &shown.waiver) {
        (Some(pause), _) => {
            let since = when(&pause.since, session.now);
            session.colour.red(&format!(
                "paused since {since} by {}: {}",
                printable(&pause.by),
                printable(&pause.cause)
            ))
        }
        (None, Some(waiver)) => {
            let until = or_dash(waiver.until.as_ref().map(|until| when(until, session.now)));
            format!("left alone by {} (until: {until}): {}", printable(&waiver.by), printable(&waiver.reason))
        }
        (None, None) => "sends".to_owned(),
    };
    format!(
        "SMTP account  {}\nState         {state}\nWithin an hour\n  messages    {} (usual: {}; {} from {} on)\n  \
         decided     {} recipients (judged from {} on)\n  gone        {} of these ({})\n  blocked     {} of these ({})\n\
         Within a day\n  delivered   {} recipients\n  complaints  {} ({})\n",
        printable(&shown.login),
        shown.messages,
        or_dash(shown.usual.map(|usual| usual.to_string())),
        limit(limits.volume_factor, "times that"),
        least(limits.volume_min),
        shown.finished,
        least(limits.recipients_min),
        shown.gone,
        limit(limits.failures_percent, "in 100"),
        shown.blocked,
        limit(limits.blocks_percent, "in 100"),
        shown.delivered,
        shown.complaints,
        limit(limits.complaints_per_thousand, "in 1,000"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_words_and_those_switched_off_say_so() {
        let limits = BreakerLimitsJson { failures_percent: Some(15), volume_factor: Some(0), ..Default::default() };
        assert_eq!(words(&limits), "failures in 100 15, volume factor off");
        let set = BreakerOverrideJson { class: Some(Class::Marketing), ..Default::default() };
        assert_eq!(whose(&set), "marketing SMTP accounts");
    }
}
