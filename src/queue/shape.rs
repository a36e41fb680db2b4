//! The shape of the queue: how much waits for whom, by age, as Postfix's qshape prints it.
//!
//! Easy to get wrong: with millions of destinations it must not take memory for each; beyond
//! [`DESTINATIONS_MAX`] further ones are counted together.

use std::collections::HashMap;

use super::Queue;
use super::filter::Filter;
use super::walk::{Budget, Meant, Walk};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::records::AdminError;

/// Upper bounds of the ages that are told apart, in minutes; what is older has a column of its own.
pub const AGES_MINUTES: [u64; 9] = [5, 10, 20, 40, 80, 160, 320, 640, 1_280];
/// Destinations counted apart, at most.
pub const DESTINATIONS_MAX: usize = 100_000;
/// Columns of a row.
const COLUMNS: usize = AGES_MINUTES.len() + 1;

/// Unfinished recipients by age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShapeRow {
    /// By the age of their message: up to each of [`AGES_MINUTES`], then older.
    pub by_age: [u64; COLUMNS],
}

impl ShapeRow {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.by_age.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Takes the counts of another row in.
    pub fn join(&mut self, other: &Self) {
        for (own, more) in self.by_age.iter_mut().zip(other.by_age) {
            *own = own.saturating_add(more);
        }
    }

    fn add(&mut self, age_minutes: u64) {
        let column = AGES_MINUTES.iter().position(|most| age_minutes < *most).unwrap_or(AGES_MINUTES.len());
        if let Some(count) = self.by_age.get_mut(column) {
            *count = count.saturating_add(1);
        }
    }
}

/// Unfinished recipients by destination and age.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// By destination (recipient domain), most first.
    pub destinations: Vec<(Domain, ShapeRow)>,
    /// Those of destinations beyond [`DESTINATIONS_MAX`].
    pub others: ShapeRow,
    /// All of them.
    pub total: ShapeRow,
}

impl Queue {
    /// The shape of what a filter means. Looks at the whole queue: blocks on the disk, for seconds if
    /// there are millions of messages.
    ///
    /// # Errors
    /// If the actor may not, or the records could not be read.
    pub fn shape(&self, actor: &Actor, filter: &Filter, now: Timestamp) -> Result<Shape, AdminError> {
        filter.require(actor)?;
        let (mut rows, mut shape) = (HashMap::<Domain, ShapeRow>::new(), Shape::default());
        self.walk(&self.resolved(filter.clone()), None, Budget::WHOLE, &mut |meant| {
            count(&meant, now, &mut rows, &mut shape);
            Ok(Walk::GoOn)
        })?;
        shape.destinations = rows.into_iter().collect();
        shape.destinations.sort_by(|one, other| {
            other.1.total().cmp(&one.1.total()).then_with(|| one.0.as_str().cmp(other.0.as_str()))
        });
        Ok(shape)
    }
}

fn count(meant: &Meant, now: Timestamp, rows: &mut HashMap<Domain, ShapeRow>, shape: &mut Shape) {
    let age = now.since(meant.message.accepted).as_secs() / 60;
    for one in meant.unfinished.iter().filter(|one| one.is_meant) {
        let Some(recipient) = meant.recipient(one) else { continue };
        let destination = recipient.address.domain();
        shape.total.add(age);
        if let Some(row) = rows.get_mut(destination) {
            row.add(age);
        } else if rows.len() < DESTINATIONS_MAX {
            let mut row = ShapeRow::default();
            row.add(age);
            rows.insert(destination.clone(), row);
        } else {
            shape.others.add(age);
        }
    }
}
