//! `postern stats`: what happened to recipients, in numbers.

use clap::ValueEnum;

use super::Session;
use super::arguments::{Stats, StatsBy};
use super::client::{Fault, encoded};
use super::output::{self, Table};
use crate::web::{CountsJson, StatisticsJson};

/// Carries it out.
pub async fn run(session: &Session, asked: &Stats) -> Result<(), Fault> {
    let query = query(asked);
    if asked.csv {
        let mut file = Vec::new();
        session.client.download(&format!("/statistics/csv?{query}"), &mut file).await?;
        output::print(&String::from_utf8_lossy(&file));
        return Ok(());
    }
    let shown = session.client.get(&format!("/statistics?{query}")).await?;
    session.show(&shown, table)
}

fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn query(asked: &Stats) -> String {
    let by = asked.by.as_ref().map(|by| match by {
        StatsBy::SmtpAccount => "smtp_account".to_owned(),
        StatsBy::SendingDomain => "sending_domain".to_owned(),
        other => word(other),
    });
    let pairs = [
        ("tenant", asked.tenant.clone()),
        ("from", asked.from.clone()),
        ("until", asked.until.clone()),
        ("by", by),
        ("smtp_account", asked.account.clone()),
        ("tag", asked.tag.clone()),
        ("domain", asked.domain.clone()),
        ("provider", asked.provider.clone()),
        ("vip", asked.vip.clone()),
        ("sending_domain", asked.sending_domain.clone()),
        ("order", asked.order.clone()),
        ("step", Some(word(&asked.step))),
        ("limit", Some(asked.limit.to_string())),
    ];
    let given = pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(&value?))));
    given.collect::<Vec<_>>().join("&")
}

fn table(session: &Session, shown: StatisticsJson) -> String {
    let mut table = Table::new(&[
        "TIME (UTC)",
        "GROUP",
        "MESSAGES",
        "INJECTED",
        "OK",
        "OK %",
        "SOFT",
        "HARD",
        "SPAM",
        "DROPPED",
        "DEFERRED",
        "COMPLAINTS",
    ]);
    for row in &shown.rows {
        let at = row.at.as_deref().map_or_else(|| "-".to_owned(), |at| time(at, &shown.step));
        table.row(line(at, row.group.clone().unwrap_or_else(|| "-".to_owned()), &row.counts));
    }
    if !shown.rows.is_empty() {
        table.row(line("total".to_owned(), String::new(), &shown.totals));
    }
    let more = match shown.groups_left_out {
        0 => String::new(),
        left => format!("{left} more are counted under (other); show them with --limit.\n"),
    };
    table.text(session.colour, "nothing was counted in that time") + &more
}

/// `2026-11-29` or `2026-11-29 14:00`.
fn time(at: &str, step: &str) -> String {
    let day = at.get(..10).unwrap_or(at);
    if step == "hour" { format!("{day} {}", at.get(11..16).unwrap_or_default()) } else { day.to_owned() }
}

fn line(at: String, group: String, counts: &CountsJson) -> [String; 12] {
    let ended = [counts.ok, counts.softbounce, counts.hardbounce, counts.spambounce];
    let ended = ended.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
    let rate = counts.ok.saturating_mul(1_000).checked_div(ended);
    let rate = rate.map_or_else(|| "-".to_owned(), |rate| format!("{}.{}", rate / 10, rate % 10));
    [
        at,
        group,
        counts.messages.to_string(),
        counts.injected.to_string(),
        counts.ok.to_string(),
        rate,
        counts.softbounce.to_string(),
        counts.hardbounce.to_string(),
        counts.spambounce.to_string(),
        counts.dropped.to_string(),
        counts.deferred.to_string(),
        counts.complaint.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_recipients_whose_fate_is_decided() {
        let counts = CountsJson { injected: 100, ok: 2, hardbounce: 1, deferred: 50, ..CountsJson::default() };
        assert_eq!(line(String::new(), String::new(), &counts)[5], "66.6");
        assert_eq!(line(String::new(), String::new(), &CountsJson::default())[5], "-");
        assert_eq!(time("2026-11-29T14:00:00.000Z", "hour"), "2026-11-29 14:00");
        assert_eq!(time("2026-11-29T00:00:00.000Z", "day"), "2026-11-29");
    }
}
