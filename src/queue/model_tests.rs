//! The queue against a map: random acts, restarts and failing commits; what the map says is owed is
//! owed, what it says is done is never handed out again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::tests::{Bench, WALL, bounced, deferred, delivered, message};
use super::*;
use crate::access::Actor;
use crate::events::{EventKind, MailEvent};
use crate::store::{after_prefix, prefix};

/// One random act; numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Act {
    Enqueue {
        recipients: u8,
        lanes: u8,
    },
    Claim {
        most: u8,
    },
    Settle {
        which: u8,
        outcome: u8,
    },
    /// Some recipients of a claim are done while its attempt goes on.
    SettlePart {
        which: u8,
        count: u8,
    },
    GiveBack {
        which: u8,
        seconds: u16,
    },
    Hold(u8),
    Release(u8),
    Cancel(u8),
    Retry(u8),
    Pass {
        minutes: u16,
    },
    FailNext(u8),
    Chores,
    Reopen,
    /// A stop without a word: what was not recorded is forgotten.
    Crash,
    /// Longer than anything waits.
    Wait {
        days: u8,
    },
    /// The wall clock is set: hours before or after where it began.
    SetWallClock {
        hours: i16,
    },
    Move {
        which: u8,
        to: u8,
    },
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1_u8..6, 1_u8..4).prop_map(|(recipients, lanes)| Act::Enqueue { recipients, lanes }),
        5 => (1_u8..5).prop_map(|most| Act::Claim { most }),
        6 => (any::<u8>(), 0_u8..4).prop_map(|(which, outcome)| Act::Settle { which, outcome }),
        3 => (any::<u8>(), 1_u8..3).prop_map(|(which, count)| Act::SettlePart { which, count }),
        2 => (any::<u8>(), 0_u16..900).prop_map(|(which, seconds)| Act::GiveBack { which, seconds }),
        1 => any::<u8>().prop_map(Act::Hold),
        1 => any::<u8>().prop_map(Act::Release),
        1 => any::<u8>().prop_map(Act::Cancel),
        1 => any::<u8>().prop_map(Act::Retry),
        3 => (1_u16..400).prop_map(|minutes| Act::Pass { minutes }),
        1 => (1_u8..3).prop_map(Act::FailNext),
        2 => Just(Act::Chores),
        1 => Just(Act::Reopen),
        1 => Just(Act::Crash),
        1 => (1_u8..5).prop_map(|days| Act::Wait { days }),
        1 => (-480_i16..480).prop_map(|hours| Act::SetWallClock { hours }),
        1 => (any::<u8>(), 1_u8..4).prop_map(|(which, to)| Act::Move { which, to }),
    ]
}

/// What a recipient is allowed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Waiting,
    Held,
    Done,
}

/// A recipient: message and number.
type Name = (QueueId, u16);

struct World {
    bench: Bench,
    claims: Vec<Claim>,
    fates: BTreeMap<Name, Fate>,
    ids: Vec<QueueId>,
    /// Whom an outcome was given for that may not be recorded yet.
    unsure: BTreeSet<Name>,
    /// Who was deferred when the limit had passed: the only ones that may expire.
    late: BTreeSet<Name>,
    /// Who will expire once an outcome given that late is recorded, unless held by then: the claim
    /// that has it, and its token.
    expiring: BTreeMap<Name, (Name, u64)>,
    wall: Timestamp,
}

impl World {
    fn pick(&self, which: u8) -> Option<QueueId> {
        self.ids.get(usize::from(which) % self.ids.len().max(1)).copied()
    }

    fn take_claim(&mut self, which: u8) -> Option<Claim> {
        let at = usize::from(which) % self.claims.len().max(1);
        (at < self.claims.len()).then(|| self.claims.remove(at))
    }

    async fn perform(&mut self, act: Act) {
        match act {
            Act::Enqueue { recipients, lanes } => self.enqueue(recipients, lanes).await,
            Act::Claim { most } => {
                for due in self.bench.queue.lanes() {
                    for claim in self.bench.queue.claim(&due.lane, usize::from(most)) {
                        self.check(&claim);
                        self.claims.push(claim);
                    }
                }
            }
            Act::Settle { which, outcome } => self.settle(which, outcome).await,
            Act::SettlePart { which, count } => self.settle_part(which, count).await,
            Act::GiveBack { which, seconds } => {
                if let Some(claim) = self.take_claim(which) {
                    self.bench.queue.release(claim, Duration::from_secs(u64::from(seconds)));
                }
            }
            Act::Hold(which) | Act::Release(which) | Act::Cancel(which) | Act::Retry(which) => {
                self.order(act, which).await;
            }
            Act::Pass { minutes } => self.bench.pass(u64::from(minutes) * 60_000),
            Act::FailNext(times) => self.bench.store.fail_next(usize::from(times), CommitError::Full("full".into())),
            Act::Chores => self.bench.queue.do_chores(self.wall).await,
            Act::Reopen => {
                // A clean stop: what was not recorded yet is recorded first.
                self.recover().await;
                self.claims.clear();
                self.bench.reopen().await;
            }
            Act::Crash => self.crash().await,
            Act::Wait { days } => self.bench.pass(u64::from(days) * 24 * 3_600_000),
            Act::SetWallClock { hours } => {
                self.wall = Timestamp(WALL.0.saturating_add_signed(i64::from(hours) * 3_600_000));
            }
            Act::Move { which, to } => {
                let Some(id) = self.pick(which) else { return };
                let _ = self.bench.queue.move_to(&Actor::local(0), id, VipId(u64::from(to)), self.wall).await;
            }
        }
    }

    /// The records as a start would find them: whatever was acknowledged is there, and only outcomes
    /// that were never recorded are forgotten.
    async fn crash(&mut self) {
        self.claims.clear();
        self.bench.store.reopen();
        self.bench.reopen().await;
        let unsure = std::mem::take(&mut self.unsure);
        for (name, stored) in self.stored_fates() {
            match self.fates.get_mut(&name) {
                Some(fate) if unsure.contains(&name) => *fate = stored,
                fate => assert_eq!(fate.copied(), Some(stored), "after a crash: {name:?}"),
            }
        }
    }

    /// Where every recipient stands by the stored records; one without a record is done.
    fn stored_fates(&self) -> BTreeMap<Name, Fate> {
        let mut stored: BTreeMap<Name, Fate> = self.fates.keys().map(|name| (*name, Fate::Done)).collect();
        let rows = self.bench.store.range(&[prefix::LANE], &after_prefix(&[prefix::LANE]), usize::MAX).unwrap();
        for (key, value) in rows {
            let record = LaneRecord::from_bytes(&value).unwrap();
            for recipient in record.recipients {
                let fate = match recipient.state {
                    RecipientState::Waiting => Fate::Waiting,
                    RecipientState::Held | RecipientState::Paused => Fate::Held,
                    RecipientState::Done(_) => Fate::Done,
                };
                stored.insert((key::id_of(&key).unwrap(), recipient.number), fate);
            }
        }
        stored
    }

    async fn enqueue(&mut self, recipients: u8, lanes: u8) {
        let to: Vec<String> = (0..recipients).map(|number| format!("r{number}@d{}.example", number % lanes)).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        let new = message(&to);
        let id = new.id;
        if self.bench.queue.enqueue(new, self.wall).await.is_ok() {
            self.ids.push(id);
            self.fates.extend((0..u16::from(recipients)).map(|number| ((id, number), Fate::Waiting)));
        }
    }

    /// What is handed out is owed, and by nobody else's hands.
    fn check(&self, claim: &Claim) {
        let twice = self.claims.iter().any(|other| (other.queue_id, other.number) == (claim.queue_id, claim.number));
        assert!(!twice, "claimed twice");
        for recipient in &claim.record.recipients {
            let fate = self.fates[&(claim.queue_id, recipient.number)];
            let expected = match recipient.state {
                RecipientState::Waiting => Fate::Waiting,
                RecipientState::Held | RecipientState::Paused => Fate::Held,
                RecipientState::Done(_) => Fate::Done,
            };
            assert_eq!(fate, expected, "recipient {} of {}", recipient.number, claim.queue_id);
        }
    }

    async fn settle(&mut self, which: u8, outcome: u8) {
        let Some(claim) = self.take_claim(which) else { return };
        let outcome = match outcome {
            0 => Some(delivered()),
            1 => Some(bounced()),
            2 => Some(deferred()),
            _ => None,
        };
        let mut outcomes = Vec::new();
        for recipient in claim.record.recipients.iter().filter(|one| one.state == RecipientState::Waiting) {
            let Some(outcome) = &outcome else { continue };
            outcomes.push((recipient.number, outcome.clone()));
        }
        let id = claim.queue_id;
        let waited = schedule::waited(&claim.message, self.bench.queue.now());
        let ended = match outcome {
            Some(Outcome::Deferred { .. }) => waited >= Settings::default().expire_after,
            Some(_) => true,
            None => false,
        };
        let names: Vec<Name> = outcomes.iter().map(|(number, _)| (id, *number)).collect();
        let taken = ((id, claim.number), claim.token);
        let is_deferred = matches!(outcome, Some(Outcome::Deferred { .. }));
        for name in names.iter().filter(|_| ended) {
            // Who was held during the attempt waits for an operator's word, however late it is.
            if is_deferred && self.fates[name] == Fate::Held {
                continue;
            }
            self.fates.insert(*name, Fate::Done);
            if is_deferred {
                self.late.insert(*name);
            }
        }
        if self.bench.queue.settle(claim, outcomes, self.wall).await.is_err() {
            self.unsure.extend(&names);
            if ended && is_deferred {
                self.expiring.extend(names.iter().map(|name| (*name, taken)));
            }
        }
    }

    async fn settle_part(&mut self, which: u8, count: u8) {
        let Some(claim) = self.take_claim(which) else { return };
        let id = claim.queue_id;
        let waiting = claim.record.recipients.iter().filter(|one| one.state == RecipientState::Waiting);
        let numbers: Vec<u16> = waiting.map(|one| one.number).take(usize::from(count)).collect();
        let outcomes: Vec<_> = numbers.iter().map(|number| (*number, delivered())).collect();
        let names: Vec<Name> = numbers.iter().map(|number| (id, *number)).collect();
        for name in &names {
            self.fates.insert(*name, Fate::Done);
        }
        match self.bench.queue.settle_part(claim, outcomes, self.wall).await {
            Ok(Some((claim, left))) => {
                assert!(left.is_empty());
                self.claims.push(claim);
            }
            Ok(None) => {}
            Err(_) => self.unsure.extend(&names),
        }
    }

    async fn order(&mut self, act: Act, which: u8) {
        let Some(id) = self.pick(which) else { return };
        let actor = Actor::local(0);
        let queue = &self.bench.queue;
        let (done, fate) = match act {
            Act::Hold(_) => (queue.hold(&actor, id, &[], self.wall).await, Some(Fate::Held)),
            Act::Release(_) => (queue.release_hold(&actor, id, &[], self.wall).await, Some(Fate::Waiting)),
            Act::Cancel(_) => (queue.cancel(&actor, id, &[], self.wall).await, Some(Fate::Done)),
            _ => (queue.retry(&actor, id, &[], self.wall).await, None),
        };
        let Ok(changed) = done else { return };
        for number in changed.recipients {
            let name = (id, number);
            let Some(fate) = fate else { continue };
            // An outcome that could not be recorded yet stays what happened; but nobody expires who is
            // held when it is recorded.
            if self.expiring.contains_key(&name) {
                self.fates.insert(name, if fate == Fate::Held { Fate::Held } else { Fate::Done });
            } else if self.fates[&name] != Fate::Done {
                self.fates.insert(name, fate);
            }
        }
    }

    /// Outcomes recorded meanwhile change nothing any more.
    fn forget_recorded(&mut self) {
        let lanes = self.bench.queue.in_memory();
        self.expiring.retain(|_, (claim, token)| lanes.claimed(*claim, *token).is_some());
    }

    async fn recover(&mut self) {
        self.bench.store.reopen();
        for _ in 0..3 {
            self.bench.pass(60_000);
            self.bench.queue.do_chores(self.wall).await;
        }
        assert_eq!(self.bench.queue.totals().unrecorded, 0);
        self.unsure.clear();
        assert_eq!(self.stored_fates(), self.fates);
    }

    /// Lets everything end: every recipient the map calls waiting is handed out exactly once more.
    async fn finish(mut self) {
        self.recover().await;
        for claim in std::mem::take(&mut self.claims) {
            self.bench.queue.release(claim, Duration::ZERO);
        }
        self.bench.queue.do_chores(self.wall).await;
        for id in self.ids.clone() {
            let _ = self.bench.queue.release_hold(&Actor::local(0), id, &[], self.wall).await;
        }
        for fate in self.fates.values_mut().filter(|fate| **fate == Fate::Held) {
            *fate = Fate::Waiting;
        }
        self.bench.pass(24 * 3_600_000);
        let waiting = self.fates.values().filter(|fate| **fate == Fate::Waiting).count();
        let mut handed_out = 0;
        for claim in self.bench.claim_all() {
            self.check(&claim);
            let waiting = claim.record.recipients.iter().filter(|one| one.state == RecipientState::Waiting);
            let outcomes: Vec<_> = waiting.map(|recipient| (recipient.number, delivered())).collect();
            handed_out += outcomes.len();
            self.bench.queue.settle(claim, outcomes, self.wall).await.unwrap();
        }
        assert_eq!(handed_out, waiting);
        self.bench.queue.do_chores(self.wall).await;
        self.bench.pass(3_600_000);
        let mut told = BTreeSet::new();
        while let Some(notice) = self.bench.queue.owed_notices(1).unwrap().pop() {
            for recipient in &notice.recipients {
                assert!(told.insert((notice.queue_id, recipient.number)), "told twice");
            }
            self.bench.queue.drop_notice(&notice, self.wall).await.unwrap();
        }
        self.bench.assert_empty();
        assert_eq!(self.bench.count(prefix::HISTORY), self.ids.len());
        self.check_endings(&told);
    }

    /// Every recipient ended, was delivered to once at most, expired only after an attempt beyond
    /// the limit, and its sender is told of every failure and of nothing else.
    fn check_endings(&self, told: &BTreeSet<Name>) {
        let mut endings: BTreeMap<Name, Vec<Ending>> = BTreeMap::new();
        for event in self.bench.events() {
            let EventKind::Mail(id, event) = event else { continue };
            let (recipients, ending) = match event {
                MailEvent::Delivered { recipients, .. } => (recipients, Ending::Delivered),
                MailEvent::Bounced { recipients, .. } => (recipients, Ending::Bounced),
                MailEvent::Expired { recipients, .. } => (recipients, Ending::Expired),
                MailEvent::Cancelled { recipients, .. } => (recipients, Ending::Cancelled),
                _ => continue,
            };
            for number in recipients {
                endings.entry((id, number)).or_default().push(ending);
            }
        }
        assert_eq!(endings.keys().collect::<Vec<_>>(), self.fates.keys().collect::<Vec<_>>());
        for (name, endings) in &endings {
            // What was cancelled in flight may have been delivered all the same.
            let is_one = matches!(endings[..], [_] | [Ending::Cancelled, Ending::Delivered]);
            assert!(is_one, "{name:?} ended as {endings:?}");
            assert!(!endings.contains(&Ending::Expired) || self.late.contains(name), "{name:?} expired unseen");
            let has_failed = endings.iter().any(|ending| matches!(ending, Ending::Bounced | Ending::Expired));
            assert_eq!(told.contains(name), has_failed, "{name:?} ended as {endings:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_the_map_says_is_owed_is_owed(acts in proptest::collection::vec(acts(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let policy = Policy { may_move: Arc::new(|_, _| Ok(())), ..Policy::default() };
            let bench = Bench::with_policy(policy).await;
            let mut world = World {
                bench,
                claims: Vec::new(),
                fates: BTreeMap::new(),
                ids: Vec::new(),
                unsure: BTreeSet::new(),
                late: BTreeSet::new(),
                expiring: BTreeMap::new(),
                wall: WALL,
            };
            for act in acts {
                world.perform(act).await;
                world.forget_recorded();
            }
            world.finish().await;
        });
    }
}
