//! The one thread that writes: it gathers what waits into a group, checks, writes, and has it settled (see
//! `settler`): synced, applied, answered. While more waits than it can write, the next group is checked and
//! its frames are written during the sync of the one before.
//!
//! Order is everything: conditions in arrival order against the records and the group so far; one
//! append and one sync; only then the records change, and only after that callers hear `Ok`.
//! Easy to get wrong: whatever fails before the sync leaves no trace; a sync that fails stops it all; no
//! seal is written before the group in front of it is durable.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::batch::record_bytes;
use super::checker::{self, Touched, Verdict};
use super::durable;
use super::frame::{self, DeadEntry, Kind};
use super::layout::{Layout, SealFrame, seal_bytes};
use super::plan::Plan;
use super::record::{self, Location, Position};
use super::scan;
use super::segment::{DATA_START, InHand, Segment};
use super::settler::{Journaled, Settler, Written};
use super::shared::{Faults, Shared, Stage};
use super::table::Chain;
use super::{Batch, CommitError};
use crate::mail::{BodyId, QueueId};

/// Batches in one group, at most.
const GROUP_BATCHES_MAX: usize = 512;
/// Bytes in one group beyond which nothing more is taken into it.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the committer sleeps when nothing comes, before it looks whether to stop.
const IDLE: Duration = Duration::from_millis(500);
/// How long the committer sleeps when the records are too far behind, before it looks again.
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(5);
/// Why everything stops if the thread that settles is not there.
const SETTLER_GONE: &str = "the thread that settles groups is gone";

/// A body ready to be laid out.
pub struct ReadyBody {
    /// Its name.
    pub id: BodyId,
    /// First part of the payload.
    pub envelope: Vec<u8>,
    /// The message in two parts; empty if it lies in a segment of its own already.
    pub message: [Bytes; 2],
    /// CRC32C of envelope and message.
    pub crc: u32,
    /// Where it was put, if it has a segment of its own.
    pub own: Option<(Location, InHand)>,
}

impl ReadyBody {
    fn journal_bytes(&self) -> usize {
        match self.own {
            Some(_) => 0,
            None => self.envelope.len() + self.message[0].len() + self.message[1].len() + frame::HEADER_BYTES + 8,
        }
    }
}

/// Something for the committer to do.
pub enum Work {
    /// A caller's batch.
    Commit(Box<Waiting>),
    /// Housekeeping moves live bodies out of a segment.
    Move(Vec<MovedBody>, Sender<Result<(), CommitError>>),
    /// Housekeeping carries what salvage must know out of a segment.
    Carry(Vec<DeadEntry>, Vec<(QueueId, Vec<u16>)>, Sender<Result<(), CommitError>>),
    /// The store is closing.
    Close,
}

/// A caller's batch and how to answer.
pub struct Waiting {
    /// Everything but bodies.
    pub batch: Batch,
    /// The bodies.
    pub bodies: Vec<ReadyBody>,
    /// The answer.
    pub reply: oneshot::Sender<Result<(), CommitError>>,
    /// Gives the bytes back to those who wait to send.
    pub permit: OwnedSemaphorePermit,
}

/// A live body on its way into the current segment.
pub struct MovedBody {
    /// Where it must still lie for the move to count.
    pub from: Location,
    /// The body, checksum verified.
    pub body: ReadyBody,
}

/// The committer's own state.
pub(super) struct Committer {
    shared: Arc<Shared>,
    current: Option<Arc<Segment>>,
    chain: Chain,
    end: u64,
    group: u64,
    /// Since when commits wait because the records are too far behind.
    behind_since: Option<Instant>,
    commit: u64,
    beside: Beside,
    /// What the group that is with the settling thread may change.
    in_flight: Option<Touched>,
}

/// The settler, and the thread that settles beside the committer.
pub(super) struct Beside {
    /// Settles on whichever thread.
    pub(super) settler: Arc<Settler>,
    /// Takes groups to the thread.
    pub(super) written: Sender<Written>,
    /// Where it says of each that it is settled.
    pub(super) settled: Receiver<()>,
}

impl Committer {
    /// One for an open folder whose journal ends as `chain` says.
    pub(super) fn new(shared: Arc<Shared>, chain: Chain, beside: Beside) -> Self {
        Self {
            shared,
            current: None,
            chain,
            end: DATA_START,
            group: 0,
            behind_since: None,
            commit: chain.commits,
            beside,
            in_flight: None,
        }
    }

    /// Works until told to close or every sender is gone.
    pub(super) fn run(mut self, inbox: &Receiver<Work>) {
        let mut next = None;
        loop {
            let wait = if self.beside.settler.has_counted() { IDLE } else { Duration::ZERO };
            let first = next.take().map_or_else(|| inbox.recv_timeout(wait), Ok);
            match first {
                Ok(Work::Close) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(work) => {
                    let (group, closing) = gather(inbox, work);
                    // A checkpoint that is merely slow is no write that hangs.
                    match self.wait_for_room() {
                        Ok(()) => {
                            let shared = Arc::clone(&self.shared);
                            if let Some(written) = shared.while_at(Stage::Writing, || self.write_group(group)) {
                                next = inbox.try_recv().ok();
                                self.settle(written, next.is_some());
                            }
                        }
                        Err(error) => self.refuse_all(group, &error),
                    }
                    if closing {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.beside.settler.count_some();
        }
    }

    /// Checks a group and writes it, behind the one that is being settled. `None` if its callers have been
    /// told why not.
    fn write_group(&mut self, group: Vec<Work>) -> Option<Written> {
        // What it asks about is read as it is when the group before is settled.
        if self.in_flight.as_ref().is_some_and(|touched| touched.concerns(&group)) {
            let _ = self.await_settled();
        }
        if let Some(why) = self.shared.stop_reason() {
            self.refuse_all(group, &CommitError::Stopped(why));
            return None;
        }
        assert!(!self.shared.faults.committer_panics.swap(false, Ordering::AcqRel), "a test asked for this panic");
        let verdicts = match checker::check(&self.shared, &group) {
            Ok(verdicts) => verdicts,
            Err(error) => {
                let error = self.shared.stop(format!("the records cannot be read: {error}"));
                self.refuse_all(group, &error);
                return None;
            }
        };
        let journaled = if verdicts.iter().all(|verdict| matches!(verdict, Verdict::Refused(_))) {
            Ok(None)
        } else {
            self.write(&group, &verdicts).map(Some)
        };
        Some(Written { group, verdicts, journaled })
    }

    /// Has a group settled: by the thread beside this one if more waits to be written, else here, which
    /// spares a change of threads.
    fn settle(&mut self, written: Written, more_waits: bool) {
        let _ = self.await_settled();
        if !more_waits && !self.shared.faults.settles_beside.load(Ordering::Acquire) {
            self.beside.settler.settle(written);
            return;
        }
        let touched = Touched::by(&written.group);
        match self.beside.written.send(written) {
            Ok(()) => self.in_flight = Some(touched),
            Err(_) => drop(self.shared.stop(SETTLER_GONE.to_owned())),
        }
    }

    /// Waits until the group that is with the settling thread is settled. An error if everything has stopped.
    fn await_settled(&mut self) -> Result<(), CommitError> {
        if self.in_flight.take().is_some() && self.beside.settled.recv().is_err() {
            return Err(self.shared.stop(SETTLER_GONE.to_owned()));
        }
        self.shared.stop_reason().map_or(Ok(()), |why| Err(CommitError::Stopped(why)))
    }

    /// Answers a group that cannot be written, after those before it.
    fn refuse_all(&mut self, group: Vec<Work>, error: &CommitError) {
        let _ = self.await_settled();
        group.into_iter().for_each(|work| answer(work, Err(error.clone())));
    }

    /// Waits while the records are so far behind that memory must not hold more of what they lack: not
    /// at all if it is for want of room on the disk, else until `checkpoint_wait_max` has passed since
    /// the first commit that had to wait.
    fn wait_for_room(&mut self) -> Result<(), CommitError> {
        let wait_max = self.shared.settings.checkpoint_wait_max;
        while self.shared.records.is_full() {
            if let Some(why) = self.shared.stop_reason() {
                return Err(CommitError::Stopped(why));
            }
            if self.shared.flush_bell.is_closing() {
                return Err(CommitError::Stopped("the store is being closed".to_owned()));
            }
            if self.shared.lacks_room() {
                return Err(CommitError::Full("the records' checkpoint waits for room on the disk".to_owned()));
            }
            if self.behind_since.get_or_insert_with(Instant::now).elapsed() >= wait_max {
                return Err(CommitError::Failed(format!("a checkpoint of the records takes longer than {wait_max:?}")));
            }
            self.shared.flush_bell.ring();
            std::thread::sleep(CHECKPOINT_PAUSE);
        }
        self.behind_since = None;
        Ok(())
    }

    /// Writes a group and its seal. The seal only once the group before is settled: a sealed group behind one
    /// that is torn proves, at the next start, that the torn one had been acknowledged.
    fn write(&mut self, group: &[Work], verdicts: &[Verdict]) -> Result<Journaled, CommitError> {
        let bound: usize = group.iter().zip(verdicts).map(|(work, verdict)| bytes_bound(work, verdict)).sum();
        let bound = bound as u64 + seal_bytes();
        let segment = self.room_for(bound)?;
        self.group += 1;
        let framed = self.write_frames(group, verdicts, &segment);
        // Also before what failed is made unreadable, and before this segment is left.
        self.await_settled()?;
        let sealed = framed.and_then(|(journaled, seal)| self.write_seal(&seal, &segment).map(|()| journaled));
        let journaled = sealed.map_err(|error| self.roll_back(&segment, bound, &error))?;
        self.end = journaled.position.offset;
        self.commit = journaled.position.commit;
        self.chain.previous_end = self.end;
        Ok(journaled)
    }

    fn room_for(&mut self, bytes: u64) -> Result<Arc<Segment>, CommitError> {
        if let Some(current) = &self.current
            && self.end.saturating_add(bytes) <= current.size
        {
            return Ok(Arc::clone(current));
        }
        // The next one's header says where this one ends, and this one is not in hand any more.
        self.await_settled()?;
        self.begin_segment(bytes).map_err(|error| self.shared.refuse(&error))
    }

    fn begin_segment(&mut self, bytes: u64) -> io::Result<Arc<Segment>> {
        let spare = self.shared.segments.spare_for(bytes)?;
        let begun = self.shared.segments.begin_shared(spare, Chain { commits: self.commit, ..self.chain });
        // Its header says where this one ended, and may be on the disk: nothing may come behind that end.
        let begun = begun.inspect_err(|_| self.leave())?;
        // Its header alone says where the one before ended: kept, even if its own first group fails,
        // until a checkpoint holds what came after that end.
        begun.last_commit.store(self.commit + 1, Ordering::Release);
        if let Some(full) = self.current.replace(Arc::clone(&begun)) {
            full.in_hand.store(false, Ordering::Release);
        }
        self.end = DATA_START;
        self.chain = Chain { previous: begun.header.number, previous_end: DATA_START, commits: 0 };
        self.shared.house_bell.ring();
        Ok(begun)
    }

    fn write_frames(
        &self,
        group: &[Work],
        verdicts: &[Verdict],
        segment: &Arc<Segment>,
    ) -> io::Result<(Journaled, SealFrame)> {
        let (mut tally, mut commit) = (Vec::new(), self.commit);
        let mut plan = Plan::default();
        let bodies = plan.place(group, verdicts, segment.header.number, self.end);
        plan.encode(group, verdicts, &mut commit, &mut tally);
        let mut layout = Layout::new(segment.header.salt, self.group, self.end);
        for (body, location) in bodies.iter().zip(&plan.offsets) {
            let offset = layout.body(*body);
            debug_assert_eq!(offset, *location);
        }
        if !plan.settled.is_empty() {
            layout.plain(Kind::Settled, &plan.settled);
        }
        if !plan.dead.is_empty() {
            layout.plain(Kind::Dead, &plan.dead);
        }
        for payload in &plan.payloads {
            layout.plain(Kind::Batch, payload);
        }
        let faults = &self.shared.faults;
        let (is_full, fails) = (faults.disk_is_full.load(Ordering::Acquire), Faults::take(&faults.writes_fail));
        if is_full && !fails {
            return Err(asked_for(true));
        }
        let seal = layout.write(segment)?;
        if fails {
            // Nothing but what is done about the failure keeps it from being found.
            seal.write(segment)?;
            return Err(asked_for(is_full));
        }
        let position = Position { commit, segment: segment.header.number, offset: seal.end };
        let (segment, start) = (Arc::clone(segment), self.end);
        let journaled = Journaled { segment, start, position, payloads: plan.payloads, before: plan.before, tally };
        Ok((journaled, seal))
    }

    fn write_seal(&self, seal: &SealFrame, segment: &Segment) -> io::Result<()> {
        let faults = &self.shared.faults;
        seal.write(segment)?;
        match Faults::take(&faults.seals_fail) {
            true => Err(asked_for(faults.disk_is_full.load(Ordering::Acquire))),
            false => Ok(()),
        }
    }

    /// A write that failed: what arrived of it, `bound` octets at most, is made unreadable, and the next
    /// group goes elsewhere unless the disk was merely full. No frame of it may be found later: that a body
    /// was moved is said in frames of their own, and is not true. What was acknowledged lies in this file too:
    /// if what made the frames unreadable cannot be synced, it is a failed sync like any other, on a full disk
    /// as well.
    fn roll_back(&mut self, segment: &Segment, bound: u64, error: &io::Error) -> CommitError {
        let wiped =
            scan::wipe(&segment.file, segment.header.salt, (self.end, self.end.saturating_add(bound)), |_| true);
        if let Err(wipe) = &wiped {
            if durable::is_failed_sync(wipe) {
                return self.shared.refuse(wipe);
            }
            tracing::warn!(%wipe, "a failed group could not be wiped; a new segment is begun");
        }
        let refused = self.shared.refuse(error);
        if wiped.is_err() || !matches!(refused, CommitError::Full(_)) {
            self.leave();
        }
        refused
    }

    /// Nothing more is written to this segment.
    fn leave(&mut self) {
        if let Some(left) = self.current.take() {
            left.in_hand.store(false, Ordering::Release);
        }
    }
}

/// An error that a test asked for.
fn asked_for(is_full: bool) -> io::Error {
    if is_full { rustix::io::Errno::NOSPC.into() } else { rustix::io::Errno::IO.into() }
}

/// What waits, as much as goes into one group, and whether the store is closing.
fn gather(inbox: &Receiver<Work>, first: Work) -> (Vec<Work>, bool) {
    let mut bytes = weight(&first);
    let mut group = vec![first];
    while group.len() < GROUP_BATCHES_MAX && bytes < GROUP_BYTES_MAX {
        match inbox.try_recv() {
            Ok(Work::Close) => return (group, true),
            Ok(work) => {
                bytes += weight(&work);
                group.push(work);
            }
            Err(_) => break,
        }
    }
    (group, false)
}

fn weight(work: &Work) -> usize {
    match work {
        Work::Commit(waiting) => {
            waiting.bodies.iter().map(ReadyBody::journal_bytes).sum::<usize>() + record_bytes(&waiting.batch)
        }
        Work::Move(bodies, _) => bodies.iter().map(|moved| moved.body.journal_bytes()).sum(),
        Work::Carry(dead, settled, _) => {
            26 * dead.len() + settled.iter().map(|(_, list)| 20 + 2 * list.len()).sum::<usize>()
        }
        Work::Close => 0,
    }
}

/// At least what this work takes in the journal, headers and the engine's own records included.
fn bytes_bound(work: &Work, verdict: &Verdict) -> usize {
    let batches = |count: usize| count * (frame::HEADER_BYTES + 8 + record::OPERATIONS_HEAD_BYTES);
    let location = record::OPERATION_EXTRA_BYTES + 20 + Location::BYTES;
    let side_frames = 2 * (frame::HEADER_BYTES + 8);
    let own = match (work, verdict) {
        (_, Verdict::Refused(_)) => 0,
        (Work::Commit(waiting), _) => {
            let batch = &waiting.batch;
            let operations = batch.changes.len() + batch.appends.len() + 2 * batch.chained.len();
            batches(1)
                + operations * record::OPERATION_EXTRA_BYTES
                + waiting.bodies.len() * location
                + batch.freed.len() * 64
        }
        (Work::Move(bodies, _), _) => batches(1) + bodies.len() * (location + 26),
        _ => 0,
    };
    own + weight(work) + side_frames
}

/// Answers; whoever stopped waiting is not missed.
pub(super) fn answer(work: Work, result: Result<(), CommitError>) {
    match work {
        Work::Commit(waiting) => {
            let Waiting { batch, bodies, reply, permit } = *waiting;
            let _ = reply.send(result);
            drop((batch, bodies, permit));
        }
        Work::Move(_, reply) | Work::Carry(_, _, reply) => {
            let _ = reply.send(result);
        }
        Work::Close => {}
    }
}
