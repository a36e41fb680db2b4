//! What people ask: a period in steps, grouped and narrowed, with the most frequent groups and the rest.
//!
//! Easy to get wrong: an answer is bounded before anything is read, and a tenant's person never gets a row
//! of another tenant, whatever was asked.

use std::collections::{BTreeMap, HashMap};

use super::Statistics;
use super::counts::{Counts, Status};
use super::rows::{self, Bucket, Face, Labels, OTHER, Span};
use crate::access::{Action, Actor, Permission, Resource};
use crate::events::Why;
use crate::ext::Timestamp;
use crate::mail::{Domain, SmtpAccountId, TenantId, VipId};
use crate::records::AdminError;
use crate::store::{Key, StoreError, after_prefix};

/// Groups of one answer that have rows of their own, at most.
pub const GROUPS_MAX: usize = 250;
/// Rows of one answer, at most.
const ANSWER_ROWS_MAX: u64 = 50_000;
/// Stored rows looked at for one answer, at most.
const READ_MAX: usize = 2_000_000;
/// Rows read at once.
const PAGE: usize = 5_000;

/// How time is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// By hours.
    Hour,
    /// By days.
    Day,
    /// Not at all: the whole period.
    Total,
}

/// By what rows are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Whose mail.
    Tenant,
    /// The SMTP account.
    Account,
    /// What its sender counts it by.
    Tag,
    /// The recipients' domain.
    Domain,
    /// Who receives for that domain.
    Provider,
    /// The virtual IP it was accepted for.
    Vip,
    /// The class of a reply.
    Class,
    /// The sending domain that signed it.
    SendingDomain,
}

/// One of what a [`Dimension`] tells apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// A tenant.
    Tenant(TenantId),
    /// An SMTP account; `None` is mail that came by none.
    Account(Option<SmtpAccountId>),
    /// A virtual IP.
    Vip(VipId),
    /// A tag, domain, provider or sending domain.
    Text(String),
    /// A class of replies.
    Class(&'static str),
    /// Everything that has no row of its own.
    Other,
}

/// Only what fits all of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrow {
    /// Of this SMTP account.
    pub account: Option<SmtpAccountId>,
    /// With this tag.
    pub tag: Option<String>,
    /// To this domain.
    pub domain: Option<String>,
    /// To this provider.
    pub provider: Option<String>,
    /// Accepted for this virtual IP.
    pub vip: Option<VipId>,
    /// Signed by this sending domain; [`OTHER`] is mail of those that have no row of their own.
    pub sending_domain: Option<String>,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whose mail; `None` is everybody's.
    pub tenant: Option<TenantId>,
    /// From this moment; taken back to where its step begins.
    pub from: Timestamp,
    /// Up to this moment; the step it lies in is told whole.
    pub until: Timestamp,
    /// How time is cut.
    pub step: Step,
    /// By what rows are told apart.
    pub by: Option<Dimension>,
    /// What is left out.
    pub narrow: Narrow,
    /// Groups with rows of their own; the others are counted together.
    pub groups_max: usize,
    /// The most frequent by this come first.
    pub order: Status,
}

/// Counts of one step and group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// When the step begins; `None` if time is not cut.
    pub at: Option<Timestamp>,
    /// The group, if rows are told apart.
    pub group: Option<Group>,
    /// The counts.
    pub counts: Counts,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When the first step begins.
    pub from: Timestamp,
    /// When the last one ends.
    pub until: Timestamp,
    /// By time, then by group, the most frequent first.
    pub rows: Vec<Row>,
    /// Of the whole period, everything that was not left out.
    pub totals: Counts,
    /// Groups that were counted together for want of room in the answer.
    pub groups_left_out: usize,
}

type Sums = HashMap<(u32, Option<Group>), Counts>;

impl Statistics {
    /// Answers a question from what is stored, which is up to ten seconds behind. Blocks on the disk.
    ///
    /// # Errors
    /// If the actor may not see it, the question makes no sense or its answer were too large.
    pub fn ask(&self, actor: &Actor, question: &Question) -> Result<Answer, AdminError> {
        let tenant = question.tenant.or(actor.role.tenant());
        let permission = match tenant {
            Some(tenant) => Permission::Read(Resource::Statistics, tenant),
            None => Permission::ReadInstance,
        };
        actor.require(permission)?;
        let face = question.face()?;
        // Only rows of sending domains tell apart what whoever is bound to some of them may see.
        if face != Face::SendingDomain {
            actor.require_undivided(permission)?;
        }
        let is_seen = |labels: &Labels| {
            let sender = (face == Face::SendingDomain).then(|| Domain::parse(&labels.value).ok()).flatten();
            actor.has_part_in(Action::Read, labels.account, sender.as_ref())
        };
        let (span, first, last) = question.span()?;
        let steps = u64::from(last.saturating_sub(first)).saturating_add(1);
        let groups = if question.by.is_some() { question.groups_max.min(GROUPS_MAX) as u64 + 1 } else { 1 };
        if question.step != Step::Total && steps.saturating_mul(groups) > ANSWER_ROWS_MAX {
            return Err(AdminError::Invalid(format!(
                "that is up to {steps} steps of {groups} groups, and an answer has at most {ANSWER_ROWS_MAX} rows; \
                 ask for a shorter period, for days, or for fewer groups"
            )));
        }
        let mut sums = Sums::new();
        let mut read = 0_usize;
        let mut take = |key: Key, bytes: Vec<u8>| {
            read = read.saturating_add(1);
            if read > READ_MAX {
                return Err(AdminError::Invalid("that is too much to count at once; ask for a shorter period".into()));
            }
            let Some((bucket, labels)) = rows::read(&key) else { return Ok(()) };
            if question.narrow.fits(&labels) && is_seen(&labels) {
                let counts = Counts::from_bytes(&bytes)?;
                let number = if question.step == Step::Total { 0 } else { bucket.number };
                question.sort_in(&mut sums, (number, bucket, labels), counts);
            }
            Ok(())
        };
        match tenant {
            Some(tenant) => (first..=last).try_for_each(|number| {
                let all = Bucket { span, number, tenant }.key();
                self.each((&all, &after_prefix(&all)), face, &mut take)
            })?,
            None => {
                let (from, to) = (rows::from_number(span, first), rows::from_number(span, last.saturating_add(1)));
                self.each((&from, &to), face, &mut take)?
            }
        }
        Ok(question.answer((span, first, last), sums))
    }

    /// Every row of a face, passing over those of the others.
    pub(super) fn each(
        &self,
        (from, to): (&[u8], &[u8]),
        face: Face,
        take: &mut impl FnMut(Key, Vec<u8>) -> Result<(), AdminError>,
    ) -> Result<(), AdminError> {
        let mut from = from.to_vec();
        while *from < *to {
            let page = self.store.range(&from, to, PAGE).map_err(|error: StoreError| AdminError::from(error))?;
            let is_last = page.len() < PAGE;
            for (key, bytes) in page {
                if key < from {
                    continue;
                }
                match rows::next_of_face(&key, face) {
                    Some(next) => from = next,
                    None => {
                        from.clone_from(&key);
                        from.push(0);
                        take(key, bytes)?;
                    }
                }
            }
            if is_last {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Narrow {
    fn fits(&self, labels: &Labels) -> bool {
        let value = match labels.face {
            Face::Destination => &self.domain,
            Face::Tag => &self.tag,
            Face::SendingDomain => &self.sending_domain,
        };
        self.account.is_none_or(|account| labels.account == Some(account))
            && self.vip.is_none_or(|vip| labels.vip == vip)
            && self.provider.as_ref().is_none_or(|provider| labels.provider == *provider)
            && value.as_ref().is_none_or(|value| labels.value == *value)
    }
}

impl Question {
    /// Which of the three faces answers it.
    fn face(&self) -> Result<Face, AdminError> {
        let asks_of_tags = self.narrow.tag.is_some() || self.by == Some(Dimension::Tag);
        let asks_of_sending_domains = self.narrow.sending_domain.is_some() || self.by == Some(Dimension::SendingDomain);
        let asks_of_destinations = self.narrow.domain.is_some()
            || self.narrow.provider.is_some()
            || matches!(self.by, Some(Dimension::Domain | Dimension::Provider));
        match (asks_of_tags, asks_of_sending_domains, asks_of_destinations) {
            (true, false, false) => Ok(Face::Tag),
            (false, true, false) => Ok(Face::SendingDomain),
            (false, false, _) => Ok(Face::Destination),
            _ => Err(AdminError::Invalid(
                "tags, sending domains, and recipients' domains with their providers are counted apart from each \
                 other: ask for one of them"
                    .to_owned(),
            )),
        }
    }

    /// Hours or days, and the first and last of them.
    fn span(&self) -> Result<(Span, u32, u32), AdminError> {
        if self.until <= self.from {
            return Err(AdminError::Invalid("the period must end after it begins".to_owned()));
        }
        let is_midnight = |at: Timestamp| at == Span::Day.begins(Span::Day.number(at));
        let span = match self.step {
            Step::Hour => Span::Hour,
            Step::Day => Span::Day,
            Step::Total if is_midnight(self.from) && is_midnight(self.until) => Span::Day,
            Step::Total if self.until.since(self.from) > HOURS_MAX => Span::Day,
            Step::Total => Span::Hour,
        };
        let (first, last) = (span.number(self.from), span.number(Timestamp(self.until.0.saturating_sub(1))));
        if u64::from(last.saturating_sub(first)) >= STEPS_MAX {
            return Err(AdminError::Invalid(format!(
                "that is more than {STEPS_MAX} steps; ask for a shorter period or for days"
            )));
        }
        Ok((span, first, last))
    }

    /// Adds the counts of a row to those of its group.
    fn sort_in(&self, sums: &mut Sums, (number, bucket, labels): (u32, Bucket, Labels), counts: Counts) {
        let text = |text: String| if text == OTHER { Group::Other } else { Group::Text(text) };
        let group = match self.by {
            None => None,
            Some(Dimension::Tenant) => Some(Group::Tenant(bucket.tenant)),
            Some(Dimension::Account) => Some(Group::Account(labels.account)),
            Some(Dimension::Vip) => Some(Group::Vip(labels.vip)),
            Some(Dimension::Provider) => Some(text(labels.provider)),
            Some(Dimension::Domain | Dimension::Tag | Dimension::SendingDomain) => Some(text(labels.value)),
            Some(Dimension::Class) => {
                for (why, put_off, given_up) in counts.classes() {
                    let mut of_class = Counts::default();
                    of_class.count_class(*why, Status::Deferred, *put_off);
                    of_class.count_class(*why, Status::of_failure(*why), *given_up);
                    of_class.count(Status::Deferred, *put_off);
                    of_class.count(Status::of_failure(*why), *given_up);
                    sums.entry((number, Some(Group::Class(Why::word(*why))))).or_default().add(&of_class);
                }
                // For the totals, which are of everything.
                None
            }
        };
        sums.entry((number, group)).or_default().add(&counts);
    }

    /// The rows, the most frequent groups first, and the totals.
    fn answer(&self, (span, first, last): (Span, u32, u32), sums: Sums) -> Answer {
        let by_class = self.by == Some(Dimension::Class);
        let (mut totals, mut of_groups) = (Counts::default(), BTreeMap::<Group, Counts>::new());
        for ((_, group), counts) in &sums {
            if group.is_none() || !by_class {
                totals.add(counts);
            }
            if let Some(group) = group {
                of_groups.entry(group.clone()).or_default().add(counts);
            }
        }
        let weight = |counts: &Counts| {
            if by_class { counts.of(Status::Deferred).saturating_add(counts.bounced()) } else { counts.of(self.order) }
        };
        let is_other = |group: &Group| *group == Group::Other;
        let mut ranked: Vec<(Group, u64)> =
            of_groups.iter().map(|(group, counts)| (group.clone(), weight(counts))).collect();
        ranked.sort_by(|one, two| {
            is_other(&one.0).cmp(&is_other(&two.0)).then(two.1.cmp(&one.1)).then(one.0.cmp(&two.0))
        });
        let named = ranked.iter().filter(|(group, _)| !is_other(group)).count();
        let shown = self.groups_max.clamp(1, GROUPS_MAX);
        let ranks: HashMap<Group, usize> = ranked
            .into_iter()
            .filter(|(group, _)| !is_other(group))
            .take(shown)
            .map(|(group, _)| group)
            .zip(0..)
            .collect();
        // By time and rank; what has no rank is counted together behind the others.
        let mut rows = BTreeMap::<(u32, usize), (Option<Group>, Counts)>::new();
        for ((number, group), counts) in sums {
            if group.is_none() && self.by.is_some() {
                continue;
            }
            let rank = group.as_ref().map_or(0, |group| ranks.get(group).copied().unwrap_or(usize::MAX));
            let group = if rank == usize::MAX { Some(Group::Other) } else { group };
            rows.entry((number, rank)).or_insert_with(|| (group, Counts::default())).1.add(&counts);
        }
        let at = |number| (self.step != Step::Total).then(|| span.begins(number));
        let rows = rows.into_iter().map(|((number, _), (group, counts))| Row { at: at(number), group, counts });
        Answer {
            from: span.begins(first),
            until: span.begins(last.saturating_add(1)),
            rows: rows.collect(),
            totals,
            groups_left_out: named.saturating_sub(shown),
        }
    }
}

/// Longer periods are summed up from days.
const HOURS_MAX: std::time::Duration = std::time::Duration::from_secs(62 * 24 * 3_600);
/// Steps of one question, at most.
const STEPS_MAX: u64 = 4_000;
