//! What replies mean, by provider: rules over code, enhanced code and text, read from a data file.
//!
//! Recipe: [`Rules::built_in`], or [`Rules::with`] for an operator's file in front of it; then
//! [`Rules::judge`] for each reply. It refuses to know connections and queues. Easy to get wrong:
//! only what is said of one recipient may suppress that recipient, and a 4xx is never final; both
//! are checked when a file is read, so no rule can say otherwise.

use std::sync::{Arc, LazyLock};

use serde::Deserialize;

use super::outcome::{Phase, Verdict, classify};
use super::shaping::Signal;
use crate::events::Why;
use crate::mail::{EnhancedStatus, Reply, Severity};
use crate::smtp::ReplyParser;

/// The rules that come with the program.
const BUILT_IN: &str = include_str!("../../etc/replies.toml");
/// Rules of one file, at most.
const RULES_MAX: usize = 10_000;

/// What a reply speaks about, finer than [`Why`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplyClass {
    /// The mailbox does not exist.
    RecipientGone,
    /// The mailbox is there and closed: disabled, inactive, moved.
    RecipientInactive,
    /// The mailbox is full.
    MailboxFull,
    /// One mailbox gets too much just now.
    RecipientRate,
    /// We send too much at once, or too fast.
    Rate,
    /// Our address, or its network, is listed or distrusted.
    AddressListed,
    /// A domain named in the message is listed or distrusted.
    DomainListed,
    /// What the message says or carries.
    Content,
    /// A rule of the receiver's own.
    Policy,
    /// SPF, DKIM, DMARC, reverse DNS, TLS, our name.
    Authentication,
    /// Come back later, meant for everybody: greylisting.
    Greylisting,
    /// Trouble at the receiver.
    Temporary,
    /// The domain does not exist or is not handled there.
    NoSuchDomain,
    /// The message is too large.
    TooLarge,
    /// Something the peer does not speak.
    Unsupported,
    /// None of these.
    Other,
}

impl ReplyClass {
    /// As files and people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RecipientGone => "recipient-gone",
            Self::RecipientInactive => "recipient-inactive",
            Self::MailboxFull => "mailbox-full",
            Self::RecipientRate => "recipient-rate",
            Self::Rate => "rate",
            Self::AddressListed => "address-listed",
            Self::DomainListed => "domain-listed",
            Self::Content => "content",
            Self::Policy => "policy",
            Self::Authentication => "authentication",
            Self::Greylisting => "greylisting",
            Self::Temporary => "temporary",
            Self::NoSuchDomain => "no-such-domain",
            Self::TooLarge => "too-large",
            Self::Unsupported => "unsupported",
            Self::Other => "other",
        }
    }

    /// Whether it is about one mailbox and nobody else.
    pub fn is_of_the_recipient(self) -> bool {
        matches!(self, Self::RecipientGone | Self::RecipientInactive)
    }

    /// The class events carry.
    pub fn why(self) -> Why {
        match self {
            Self::RecipientGone | Self::RecipientInactive => Why::RecipientGone,
            Self::MailboxFull => Why::MailboxFull,
            Self::Rate | Self::AddressListed | Self::DomainListed | Self::Policy => Why::PolicyOrReputation,
            Self::Content => Why::Content,
            Self::Authentication => Why::OurConfiguration,
            Self::RecipientRate | Self::Greylisting | Self::Temporary => Why::TryLater,
            Self::NoSuchDomain => Why::NoSuchDomain,
            Self::TooLarge => Why::TooLarge,
            Self::Unsupported => Why::Unsupported,
            Self::Other => Why::Other,
        }
    }

    /// The nearest class of a verdict no rule was needed for.
    fn of(why: Why, severity: Severity) -> Self {
        match why {
            Why::RecipientGone => Self::RecipientGone,
            Why::MailboxFull => Self::MailboxFull,
            Why::PolicyOrReputation if severity == Severity::Transient => Self::Rate,
            Why::PolicyOrReputation => Self::Policy,
            Why::Content => Self::Content,
            Why::TooLarge => Self::TooLarge,
            Why::OurConfiguration => Self::Authentication,
            Why::NoSuchDomain => Self::NoSuchDomain,
            Why::TryLater | Why::Dns | Why::Network | Why::TlsPolicy => Self::Temporary,
            Why::Unsupported => Self::Unsupported,
            Why::UnknownOutcome | Why::Other => Self::Other,
        }
    }
}

/// What to do about a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Try these recipients again, as the queue's schedule says.
    Retry,
    /// The same, and send to this provider from this virtual IP more slowly.
    SlowDown,
    /// The same, and send nothing to this provider from this virtual IP for a while.
    Park,
    /// These recipients are given up.
    GiveUp,
    /// The same, and the address should not be mailed again.
    Suppress,
}

impl Action {
    /// As files and people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::SlowDown => "slow-down",
            Self::Park => "park",
            Self::GiveUp => "give-up",
            Self::Suppress => "suppress",
        }
    }

    fn is_final(self) -> bool {
        matches!(self, Self::GiveUp | Self::Suppress)
    }
}

/// What a reply came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What it speaks about.
    pub class: ReplyClass,
    /// What to do.
    pub action: Action,
    /// For the recipients concerned.
    pub verdict: Verdict,
    /// The rule that said so, in words; `None` if codes alone decided.
    pub rule: Option<String>,
}

impl Judgement {
    /// What the pace should learn from the reply.
    pub(super) fn signal(&self, reply: &Reply) -> Option<Signal> {
        match self.action {
            Action::SlowDown => Some(Signal::SlowDown(reply.one_line())),
            Action::Park => Some(Signal::Listed(reply.one_line())),
            Action::Retry | Action::GiveUp | Action::Suppress => None,
        }
    }
}

/// One rule as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    provider: Option<String>,
    code: Option<String>,
    status: Option<String>,
    #[serde(default)]
    text: Vec<String>,
    class: ReplyClass,
    action: Action,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Written>,
}

/// One rule: everything it names must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    provider: Option<String>,
    code: String,
    status: Option<[Option<u16>; 3]>,
    /// Alternatives; each is pieces that must follow one another.
    text: Vec<Vec<String>>,
    class: ReplyClass,
    action: Action,
    words: String,
}

/// Rules in order: the first that fits decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
}

static SHIPPED: LazyLock<Arc<Rules>> = LazyLock::new(|| {
    let rules = parse(BUILT_IN).unwrap_or_else(|error| {
        // A test reads the same text, so this cannot be met in a release.
        tracing::error!(error, "the rules for replies that came with the program cannot be read");
        Vec::new()
    });
    Arc::new(Rules { rules })
});

impl Rules {
    /// Those that come with the program.
    pub fn built_in() -> Arc<Self> {
        Arc::clone(&SHIPPED)
    }

    /// An operator's rules, in the same form, in front of those that come with the program.
    ///
    /// # Errors
    /// What is wrong with the text, with the number of the rule.
    pub fn with(text: &str) -> Result<Arc<Self>, String> {
        let mut rules = parse(text)?;
        rules.extend(SHIPPED.rules.iter().cloned());
        Ok(Arc::new(Self { rules }))
    }

    /// What `reply`, said in `phase` of one recipient, means. `provider` is who said it, if that is known; if it is
    /// not, the rules of every provider are tried, and none of them suppresses what anybody's rules do not.
    pub fn judge(&self, reply: &Reply, phase: Phase, provider: Option<&str>) -> Judgement {
        let plain = classify(reply, phase);
        let severity = reply.severity();
        if severity == Severity::Success {
            let class = ReplyClass::Other;
            return Judgement { class, action: Action::Retry, verdict: plain, rule: None };
        }
        let text = flat_text(reply);
        let found = self.rules.iter().find(|rule| rule.fits(reply, &text, provider));
        let (class, action) = match found {
            Some(rule) => (rule.class, rule.action),
            None => by_verdict(plain, severity, reply, phase),
        };
        let verdict = match (found, action) {
            (None, _) => plain,
            // What is said before MAIL is about us, never about a message.
            (Some(_), action) if action.is_final() && phase >= Phase::Mail => Verdict::Bounced(class.why()),
            (Some(_), _) => Verdict::Deferred(class.why()),
        };
        // What one provider means by it need not be meant by others, unless anybody would.
        let is_foreign = found.is_some_and(|rule| rule.provider.is_some() && provider.is_none());
        let is_doubted = is_foreign && {
            let mut anybodys = self.rules.iter().filter(|rule| rule.provider.is_none());
            let meant = anybodys.find(|rule| rule.fits(reply, &text, None)).map(|rule| rule.action);
            meant.unwrap_or_else(|| by_verdict(plain, severity, reply, phase).1) != Action::Suppress
        };
        // A message as a whole, or its sender, says nothing about one recipient for good.
        let action = match action {
            Action::Suppress if phase < Phase::Rcpt || is_doubted => Action::GiveUp,
            action => action,
        };
        let action = match verdict {
            Verdict::Bounced(_) => action,
            _ if action.is_final() => Action::Retry,
            _ => action,
        };
        Judgement { class, action, verdict, rule: found.map(|rule| rule.words.clone()) }
    }
}

/// Reads a reply as it stands in a log; ` / ` parts its lines.
///
/// # Errors
/// A sentence, if it is none.
pub fn read_reply(said: &str) -> Result<Reply, String> {
    let mut lines: Vec<String> = said.trim().split(" / ").map(str::to_owned).collect();
    // Logs often cut a reply short: the last line there is ends it.
    if let Some(last) = lines.last_mut().filter(|last| last.as_bytes().get(3) == Some(&b'-')) {
        last.replace_range(3..4, " ");
    }
    let bytes = lines.join("\r\n") + "\r\n";
    match ReplyParser::new().parse(&mut bytes.as_bytes()) {
        Ok(Some(reply)) => Ok(reply),
        _ => Err(format!("{said:?} is not a reply: it must begin with three digits, as in 550 5.1.1 no such user")),
    }
}

/// What codes alone advise.
fn by_verdict(plain: Verdict, severity: Severity, reply: &Reply, phase: Phase) -> (ReplyClass, Action) {
    match plain {
        Verdict::Delivered => (ReplyClass::Other, Action::Retry),
        Verdict::Bounced(why) => {
            let is_sure = reply.status.is_some_and(|status| matches!((status.subject, status.detail), (1, 1) | (2, 1)));
            let is_gone = why == Why::RecipientGone && is_sure && phase == Phase::Rcpt;
            (ReplyClass::of(why, severity), if is_gone { Action::Suppress } else { Action::GiveUp })
        }
        Verdict::Deferred(why) => {
            let class = ReplyClass::of(why, severity);
            let slows = matches!(class, ReplyClass::Rate);
            (class, if slows { Action::SlowDown } else { Action::Retry })
        }
    }
}

impl Rule {
    fn fits(&self, reply: &Reply, text: &str, provider: Option<&str>) -> bool {
        let is_of = match (&self.provider, provider) {
            (Some(own), Some(asked)) => own == asked,
            _ => true,
        };
        is_of
            && reply.code.0.to_string().starts_with(&self.code)
            && self.status.is_none_or(|pattern| reply.status.is_some_and(|status| status_fits(pattern, status)))
            && (self.text.is_empty() || self.text.iter().any(|pieces| text_fits(pieces, text)))
    }
}

fn status_fits(pattern: [Option<u16>; 3], status: EnhancedStatus) -> bool {
    let parts = [u16::from(status.class), status.subject, status.detail];
    pattern.iter().zip(parts).all(|(wanted, part)| wanted.is_none_or(|wanted| wanted == part))
}

fn text_fits(pieces: &[String], text: &str) -> bool {
    let mut rest = text;
    pieces.iter().all(|piece| match rest.find(piece.as_str()) {
        Some(at) => {
            rest = rest.get(at.saturating_add(piece.len())..).unwrap_or_default();
            true
        }
        None => false,
    })
}

/// All lines as one, in lower case, without the enhanced code some repeat in front of each.
fn flat_text(reply: &Reply) -> String {
    let lines = reply.text.iter().map(|line| EnhancedStatus::split_from(line).map_or(line.as_str(), |(_, rest)| rest));
    let joined: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    joined.join(" ").to_ascii_lowercase()
}

fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    if file.rule.len() > RULES_MAX {
        return Err(format!("{} rules; {RULES_MAX} are the most", file.rule.len()));
    }
    let rules = file.rule.into_iter().enumerate();
    rules.map(|(index, written)| read(written).map_err(|why| format!("rule {}: {why}", index + 1))).collect()
}

fn read(written: Written) -> Result<Rule, String> {
    let words = describe(&written);
    let code = written.code.unwrap_or_default();
    let is_code = code.len() <= 3 && code.bytes().all(|byte| byte.is_ascii_digit());
    if !is_code || !(code.is_empty() || code.starts_with(['4', '5'])) {
        return Err(format!("code {code:?} must be 4 or 5 and up to two more digits"));
    }
    let status = written.status.as_deref().map(read_status).transpose()?;
    if written.text.iter().any(|text| text.trim_matches('*').trim().is_empty()) {
        return Err("an empty text fits everything".to_owned());
    }
    if code.is_empty() && status.is_none() && written.text.is_empty() {
        return Err("it must name a code, a status or a text".to_owned());
    }
    if written.action.is_final() && !code.starts_with('5') {
        return Err(format!("{} is final and needs a code of 5", written.action.name()));
    }
    if written.action == Action::Suppress && !written.class.is_of_the_recipient() {
        let class = written.class.name();
        return Err(format!("{class} says nothing of one recipient for good and may not suppress"));
    }
    let pieces = |text: &String| text.to_ascii_lowercase().split('*').map(str::to_owned).collect();
    let text = written.text.iter().map(pieces).collect();
    Ok(Rule { provider: written.provider, code, status, text, class: written.class, action: written.action, words })
}

fn read_status(text: &str) -> Result<[Option<u16>; 3], String> {
    let parts: Vec<&str> = text.split('.').collect();
    let [class, subject, detail] = parts[..] else {
        return Err(format!("status {text:?} must have three parts, as in 5.7.1; * fits any number"));
    };
    let part = |part: &str| match part {
        "*" => Ok(None),
        digits => digits.parse().map(Some).map_err(|_| format!("status {text:?}: {part:?} is neither * nor a number")),
    };
    Ok([part(class)?, part(subject)?, part(detail)?])
}

fn describe(written: &Written) -> String {
    let mut words = vec![written.provider.clone().unwrap_or_else(|| "any provider".to_owned())];
    words.extend(
        written.code.as_ref().map(|code| format!("code {code}{}", "x".repeat(3_usize.saturating_sub(code.len())))),
    );
    words.extend(written.status.as_ref().map(|status| format!("status {status}")));
    if !written.text.is_empty() {
        words.push(format!("text {:?}", written.text.join("\" or \"")).replace("\\\"", "\""));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(said: &str) -> Reply {
        read_reply(said).unwrap()
    }

    #[test]
    fn replies_of_real_providers_are_judged_as_the_table_says() {
        let table = include_str!("../../tests/data/replies/providers.txt");
        let rules = Rules::built_in();
        let (mut cases, mut wrong, mut providers) = (0, Vec::new(), std::collections::BTreeSet::new());
        for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let [provider, phase, said, expected] = line.split(" | ").collect::<Vec<_>>()[..] else { panic!("{line}") };
            let phase = Phase::called(phase.trim()).unwrap_or_else(|| panic!("{line}"));
            let known = Some(provider.trim()).filter(|provider| *provider != "-");
            let judged = rules.judge(&reply(said), phase, known);
            let found = format!("{} {}", judged.class.name(), judged.action.name());
            if found != expected.trim() {
                wrong.push(format!("{line}\n    is {found} by {:?}", judged.rule));
            }
            cases += 1;
            providers.insert(provider.trim().to_owned());
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(cases >= 150, "{cases}");
        assert!(providers.len() >= 15, "{providers:?}");
    }

    #[test]
    fn every_rule_that_came_with_the_program_can_be_read_and_a_temporary_answer_is_never_final() {
        let rules = parse(BUILT_IN).unwrap();
        assert!(rules.len() > 80, "{}", rules.len());
        for line in include_str!("../../tests/data/replies/providers.txt").lines() {
            let Some(said) = line.split(" | ").nth(2).filter(|said| said.starts_with('4')) else { continue };
            for phase in [Phase::Greeting, Phase::Mail, Phase::Rcpt, Phase::Data, Phase::FinalDot] {
                let judged = Rules::built_in().judge(&reply(said), phase, None);
                assert!(matches!(judged.verdict, Verdict::Deferred(_)), "{line} {judged:?}");
                assert!(!judged.action.is_final(), "{line} {judged:?}");
            }
        }
    }

    #[test]
    fn a_block_of_our_address_parks_and_never_bounces_or_suppresses() {
        let said = reply("550 5.7.1 Service unavailable, Client host [192.0.2.1] blocked using Spamhaus");
        for phase in [Phase::Greeting, Phase::Hello, Phase::Mail, Phase::Rcpt, Phase::FinalDot] {
            let judged = Rules::built_in().judge(&said, phase, Some("microsoft-365"));
            assert_eq!(judged.verdict, Verdict::Deferred(Why::PolicyOrReputation), "{phase:?}");
            assert_eq!(judged.action, Action::Park, "{phase:?}");
        }
    }

    #[test]
    fn what_is_said_before_mail_is_about_us_and_never_final() {
        let judged = Rules::built_in().judge(&reply("550 5.1.1 no such user"), Phase::Hello, None);
        assert!(matches!(judged.verdict, Verdict::Deferred(_)), "{judged:?}");
        assert_eq!(judged.action, Action::Retry);
    }

    #[test]
    fn rules_that_would_give_up_too_much_are_refused_with_their_number() {
        let rule = |rest: &str| Rules::with(&format!("[[rule]]\n{rest}")).unwrap_err();
        let suppresses = rule("code = \"550\"\nclass = \"address-listed\"\naction = \"suppress\"");
        assert!(suppresses.contains("rule 1: address-listed"), "{suppresses}");
        assert!(rule("code = \"450\"\nclass = \"recipient-gone\"\naction = \"give-up\"").contains("is final"));
        assert!(rule("class = \"rate\"\naction = \"retry\"").contains("must name"));
        assert!(rule("code = \"250\"\nclass = \"rate\"\naction = \"retry\"").contains("must be 4 or 5"));
        assert!(rule("text = [\"*\"]\nclass = \"rate\"\naction = \"retry\"").contains("fits everything"));
        assert!(rule("status = \"5.7\"\nclass = \"rate\"\naction = \"retry\"").contains("three parts"));
        assert!(rule("colour = \"red\"\nclass = \"rate\"\naction = \"retry\"").contains("colour"));
    }

    #[test]
    fn an_operators_rule_comes_first() {
        let own = "[[rule]]\ncode = \"550\"\ntext = [\"our*partner\"]\nclass = \"temporary\"\naction = \"retry\"";
        let said = reply("550 5.1.1 Our dear partner says no such user");
        let judged = Rules::with(own).unwrap().judge(&said, Phase::Rcpt, None);
        assert_eq!(judged.verdict, Verdict::Deferred(Why::TryLater));
        assert_eq!(Rules::built_in().judge(&said, Phase::Rcpt, None).action, Action::Suppress);
    }
}
