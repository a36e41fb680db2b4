//! What one group writes: bodies in their places, side frames, and each batch as a list of operations.
//!
//! It decides nothing; what is refused was sorted out before. Easy to get wrong: a batch names the places
//! of its bodies, so all bodies are placed before the first batch is encoded.

use std::collections::HashMap;

use super::batch::{appended_key, record_bytes};
use super::checker::{Freed, Verdict};
use super::committer::{MovedBody, ReadyBody, Waiting, Work};
use super::frame;
use super::layout::BodyParts;
use super::record::{Before, Location, Operations, location_key};
use super::settler::Tally;
use super::{Change, Key};
use crate::mail::BodyId;

/// The group's side frames and batches, encoded.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) offsets: Vec<u64>,
    places: HashMap<BodyId, Location>,
    pub(super) settled: Vec<u8>,
    pub(super) dead: Vec<u8>,
    pub(super) payloads: Vec<Vec<u8>>,
    /// What stood under the key of each operation of the payloads.
    pub(super) before: Vec<Before>,
}

impl Plan {
    /// Gives every body of the group its place, in the order of the work.
    pub(super) fn place<'a>(
        &mut self,
        group: &'a [Work],
        verdicts: &[Verdict],
        segment: u64,
        start: u64,
    ) -> Vec<BodyParts<'a>> {
        let mut at = start;
        let mut parts = Vec::new();
        for (work, verdict) in group.iter().zip(verdicts) {
            let bodies: Vec<&ReadyBody> = match (work, verdict) {
                (Work::Commit(waiting), Verdict::Accepted { .. }) => waiting.bodies.iter().collect(),
                (Work::Move(bodies, _), Verdict::Moves(still)) => {
                    still.iter().filter_map(|index| bodies.get(*index)).map(|moved| &moved.body).collect()
                }
                _ => continue,
            };
            for body in bodies {
                if body.own.is_some() {
                    continue;
                }
                let message_bytes = body.message.iter().map(|part| part.len() as u64).sum();
                let envelope_bytes = u32::try_from(body.envelope.len()).unwrap_or(u32::MAX);
                let location = Location { segment, offset: at, envelope_bytes, message_bytes };
                self.places.insert(body.id, location);
                self.offsets.push(at);
                at += location.frame_bytes();
                let message = [&body.message[0][..], &body.message[1][..]];
                parts.push(BodyParts { id: body.id, envelope: &body.envelope, message, crc: body.crc });
            }
        }
        parts
    }

    pub(super) fn encode(&mut self, group: &[Work], verdicts: &[Verdict], commit: &mut u64, tally: &mut Vec<Tally>) {
        for (work, verdict) in group.iter().zip(verdicts) {
            match (work, verdict) {
                (Work::Commit(waiting), Verdict::Accepted { freed, linked }) => {
                    *commit += 1;
                    self.encode_batch(waiting, (freed, linked), *commit, tally);
                }
                (Work::Move(bodies, _), Verdict::Moves(still)) => {
                    *commit += 1;
                    self.encode_moves(still.iter().filter_map(|index| bodies.get(*index)), *commit, tally);
                }
                (Work::Carry(dead, settled, _), Verdict::Carried) => {
                    dead.iter().for_each(|entry| frame::push_dead(&mut self.dead, *entry));
                    settled.iter().for_each(|(id, numbers)| frame::push_settled(&mut self.settled, *id, numbers));
                }
                _ => {}
            }
        }
    }

    fn encode_batch(
        &mut self,
        waiting: &Waiting,
        (freed, linked): (&[Freed], &[(Key, Vec<u8>)]),
        commit: u64,
        tally: &mut Vec<Tally>,
    ) {
        let batch = &waiting.batch;
        let mut operations = Operations::new(commit, record_bytes(batch) + 128);
        for change in &batch.changes {
            match change {
                Change::Set(key, value) | Change::Make(key, value) => operations.set(key, value),
                Change::Remove(key) => operations.remove(key),
            }
            self.before.push(if matches!(change, Change::Make(..)) { Before::Absent } else { Before::Unknown });
        }
        for (position, (prefix, value)) in (0_u16..=u16::MAX).zip(&batch.appends) {
            operations.set(&appended_key(prefix.clone(), commit, position), value);
            self.before.push(Before::Absent); // the number of a commit never repeats
        }
        for (key, value) in linked {
            operations.set(key, value);
            self.before.push(Before::Unknown);
        }
        for body in &waiting.bodies {
            let location =
                body.own.as_ref().map(|(location, _)| *location).or_else(|| self.places.get(&body.id).copied());
            if let Some(location) = location {
                operations.set(&location_key(body.id), &location.to_bytes());
                self.before.push(Before::Absent); // as was checked
                tally.push(Tally::Gained(location));
            }
        }
        for (id, location) in freed {
            if let Some(location) = location.or_else(|| self.places.get(id).copied()) {
                operations.remove(&location_key(*id));
                self.before.push(Before::Unknown);
                frame::push_dead(&mut self.dead, (*id, location.segment));
                tally.push(Tally::Lost(*id, location));
            }
        }
        for (queue_id, numbers) in &batch.settled {
            frame::push_settled(&mut self.settled, *queue_id, numbers);
        }
        self.payloads.push(operations.into_bytes());
    }

    fn encode_moves<'a>(&mut self, moves: impl Iterator<Item = &'a MovedBody>, commit: u64, tally: &mut Vec<Tally>) {
        let mut operations = Operations::new(commit, 256);
        for moved in moves {
            let id = moved.body.id;
            if let Some(location) = self.places.get(&id) {
                operations.set(&location_key(id), &location.to_bytes());
                self.before.push(Before::Unknown);
                frame::push_dead(&mut self.dead, (id, moved.from.segment));
                tally.push(Tally::Gained(*location));
                tally.push(Tally::Lost(id, moved.from));
            }
        }
        self.payloads.push(operations.into_bytes());
    }
}
