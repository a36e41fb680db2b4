//! `postern classify`: what a reply means, by the rules of this machine. Needs no daemon.

use serde_json::json;

use super::arguments::{Classify, Everywhere};
use super::client::Fault;
use super::{load, output};
use crate::config::DEFAULT_PATH;
use crate::delivery::{Action, Judgement, Phase, ReplyRules, Verdict, read_reply};
use crate::mail::printable;

/// Judges it and says why.
pub fn run(everywhere: &Everywhere, asked: &Classify) -> Result<(), Fault> {
    // Without a configuration the rules that come with the program are all there are.
    let is_named = everywhere.config != std::path::Path::new(DEFAULT_PATH);
    let rules = match everywhere.config.exists() || is_named {
        true => load(&everywhere.config)?.delivery.replies,
        false => ReplyRules::built_in(),
    };
    let phase = Phase::called(&asked.after).ok_or_else(|| {
        let names = "greeting, ehlo, starttls, auth, mail, rcpt, data, body or dot";
        Fault::Failed(format!("--after {:?}: say one of {names}", asked.after))
    })?;
    let reply = read_reply(&asked.reply).map_err(Fault::Failed)?;
    let judged = rules.judge(&reply, phase, asked.provider.as_deref());
    if everywhere.json {
        output::print_json(&json!({
            "reply": reply.one_line(),
            "after": asked.after,
            "class": judged.class.name(),
            "action": judged.action.name(),
            "final": matches!(judged.verdict, Verdict::Bounced(_)),
            "rule": judged.rule,
        }));
    } else {
        output::print(&words(&reply.one_line(), &judged));
    }
    Ok(())
}

fn words(reply: &str, judged: &Judgement) -> String {
    let rule = judged.rule.as_deref().unwrap_or("none; the codes alone decided");
    format!(
        "Reply   {}\nClass   {}\nAction  {}: {}\nRule    {}\n",
        printable(reply),
        judged.class.name(),
        judged.action.name(),
        meaning(judged),
        printable(rule)
    )
}

fn meaning(judged: &Judgement) -> &'static str {
    match (judged.action, judged.verdict) {
        (_, Verdict::Delivered) => "the receiver took the message",
        (Action::Retry, _) => "these recipients are tried again, as the schedule says",
        (Action::SlowDown, _) => "they are tried again, and this provider gets mail from this address more slowly",
        (Action::Park, _) => "they are tried again, and this provider gets nothing from this address for a while",
        (Action::GiveUp, _) => "these recipients are given up, and the sender is told",
        (Action::Suppress, _) => "they are given up, the sender is told, and the address should not be mailed again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_explained_with_its_rule() {
        let reply = read_reply("550 5.7.1 Client host [192.0.2.1] blocked using zen.spamhaus.org").unwrap();
        let judged = ReplyRules::built_in().judge(&reply, Phase::Rcpt, None);
        let text = words(&reply.one_line(), &judged);
        assert!(text.contains("Class   address-listed\nAction  park: they are tried again"), "{text}");
        assert!(text.contains("Rule    any provider, text \"spamhaus"), "{text}");
    }
}
