//! From what a report says to what happened to the recipient that its tag names. Pure.
//!
//! Easy to get wrong: the tag says whom we sent to, the report whom its writer could not reach; after a forward
//! they differ, and it is ours that counts. What is said of several recipients comes to the worst of it.

use crate::events::{NoticeKind, Why};
use crate::mail::returned::{Action, Report, Reported};
use crate::mail::{Address, EnhancedStatus, Reply};

/// What a report comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Given up after delivery.
    Failed {
        /// What was said, as a reply: code, status, text.
        detail: String,
        /// Its status.
        status: EnhancedStatus,
    },
    /// Something else, as news.
    News {
        /// Which.
        kind: NoticeKind,
        /// What was said.
        detail: String,
        /// Its status.
        status: EnhancedStatus,
    },
}

/// What `report` says of the recipient, whose address is `ours` if that is still known.
pub(super) fn of(report: &Report, ours: Option<&Address>) -> Option<Verdict> {
    let named =
        |one: &&Reported| ours.is_some() && one.address.as_ref().map(Address::folded) == ours.map(Address::folded);
    let worst = |one: &&Reported| match one.action {
        Action::Failed => 0,
        Action::Delayed => 1,
        Action::Relayed | Action::Expanded => 2,
        Action::Delivered => 3,
    };
    let one = report.recipients.iter().find(named).or_else(|| report.recipients.iter().min_by_key(worst))?;
    let class = match one.action {
        Action::Failed => 5,
        Action::Delayed => 4,
        Action::Delivered | Action::Relayed | Action::Expanded => 2,
    };
    let status = one.status.filter(|status| status.class == class || (class == 5 && status.class == 4));
    let status = status.unwrap_or_else(|| EnhancedStatus::new(class, 0, 0));
    let detail = detail(one, status, class);
    Some(match one.action {
        Action::Failed => Verdict::Failed { detail, status },
        Action::Delayed => Verdict::News { kind: NoticeKind::Delay, detail, status },
        Action::Delivered | Action::Relayed | Action::Expanded => {
            Verdict::News { kind: NoticeKind::Success, detail, status }
        }
    })
}

/// As a reply: what was said if it is one, else the status and what was said.
fn detail(one: &Reported, status: EnhancedStatus, class: u8) -> String {
    let said = one.diagnostic.trim_start_matches("smtp;").trim();
    let is_reply = said.len() > 3
        && said.bytes().take(3).all(|octet| octet.is_ascii_digit())
        && !said.as_bytes().get(3).is_some_and(u8::is_ascii_digit);
    if is_reply {
        return said.to_owned();
    }
    let code = match class {
        5 if status.class == 5 => "550",
        4 | 5 => "451",
        _ => "250",
    };
    let said = if said.is_empty() { "no reason was given" } else { said };
    format!("{code} {status} {said}")
}

/// The class of a failure: what the rules say of the reply, where it is one of a recipient or a receiver.
pub(super) fn why(detail: &str, judge: &dyn Fn(&Reply) -> Why) -> Why {
    let (code, rest) = detail.split_at_checked(3).unwrap_or((detail, ""));
    let rest = rest.trim_start_matches([' ', '-']);
    let Ok(code) = code.parse::<u16>() else { return Why::Other };
    let (status, text) = EnhancedStatus::split_from(rest).map_or((None, rest), |(status, text)| (Some(status), text));
    judge(&Reply::new(code, status, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::returned::Form;

    fn one(address: &str, action: Action, status: Option<(u8, u16, u16)>, diagnostic: &str) -> Reported {
        let status = status.map(|(class, subject, detail)| EnhancedStatus::new(class, subject, detail));
        Reported { address: Address::parse(address).ok(), action, status, diagnostic: diagnostic.to_owned() }
    }

    fn judged(recipients: Vec<Reported>, ours: &str) -> Option<Verdict> {
        let report = Report { form: Form::Standard, reporter: String::new(), recipients };
        of(&report, Address::parse(ours).ok().as_ref())
    }

    #[test]
    fn a_failure_is_told_as_a_reply_whatever_form_the_report_had() {
        for (status, diagnostic, expected) in [
            (Some((5, 1, 1)), "550 5.1.1 no such user", "550 5.1.1 no such user"),
            (Some((5, 1, 1)), "user unknown", "550 5.1.1 user unknown"),
            (Some((4, 4, 7)), "delivery time expired", "451 4.4.7 delivery time expired"),
            (None, "", "550 5.0.0 no reason was given"),
        ] {
            let verdict = judged(vec![one("a@x.example", Action::Failed, status, diagnostic)], "a@x.example");
            let Some(Verdict::Failed { detail, .. }) = verdict else { panic!("{verdict:?}") };
            assert_eq!(detail, expected);
        }
    }

    #[test]
    fn what_is_said_of_our_recipient_counts_and_else_the_worst() {
        let said = || {
            vec![
                one("b@y.example", Action::Delivered, Some((2, 0, 0)), ""),
                one("a@x.example", Action::Delayed, Some((4, 2, 2)), "mailbox full"),
                one("c@z.example", Action::Failed, Some((5, 1, 1)), "gone"),
            ]
        };
        let ours = judged(said(), "A@X.example");
        assert!(matches!(ours, Some(Verdict::News { kind: NoticeKind::Delay, .. })), "{ours:?}");
        assert!(matches!(judged(said(), "d@w.example"), Some(Verdict::Failed { .. })));
        assert_eq!(judged(Vec::new(), "d@w.example"), None);
    }
}
