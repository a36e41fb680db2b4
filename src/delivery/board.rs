//! What operators may say to delivery, and what delivery says to them: suspensions, and why a
//! lane waits. In memory: after a restart everything runs again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::access::{Actor, Forbidden, Permission};
use crate::mail::{Domain, VipId};
use crate::routing::Lane;

/// Lanes whose reason to wait is remembered, at most.
const REASONS_MAX: usize = 100_000;

/// What is suspended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everything.
    All,
    /// One lane.
    Lane(Lane),
    /// All mail to a recipient domain.
    Domain(Domain),
    /// All mail to a site, by its name (sorted MX hosts).
    Site(String),
    /// All mail of one virtual IP.
    Vip(VipId),
}

/// One suspension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    /// Of what.
    pub scope: Scope,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who said so.
    pub by: String,
}

#[derive(Default)]
struct Board {
    suspended: HashMap<Scope, Suspension>,
    waiting: HashMap<Lane, (u64, String)>,
    resumed: Vec<String>,
    pass: u64,
}

/// The operator's hand on delivery.
#[derive(Default)]
pub struct Delivery {
    board: Mutex<Board>,
    nudge: Notify,
}

impl Delivery {
    /// Nothing suspended.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No new attempt is begun for what `scope` names; running ones finish their turn.
    pub fn suspend(&self, actor: &Actor, scope: Scope, reason: &str) -> Result<(), Forbidden> {
        actor.require(Permission::ManageInstance)?;
        tracing::info!(%actor, ?scope, reason, "delivery suspended");
        let suspension = Suspension { scope: scope.clone(), reason: reason.to_owned(), by: actor.name.clone() };
        self.board().suspended.insert(scope, suspension);
        Ok(())
    }

    /// Ends a suspension, and for a site its pause after failures too. Whether there was one.
    pub fn resume(&self, actor: &Actor, scope: &Scope) -> Result<bool, Forbidden> {
        actor.require(Permission::ManageInstance)?;
        tracing::info!(%actor, ?scope, "delivery resumed");
        let mut board = self.board();
        let was_suspended = board.suspended.remove(scope).is_some();
        if let Scope::Site(site) = scope {
            board.resumed.push(site.clone());
        }
        drop(board);
        self.nudge.notify_one();
        Ok(was_suspended)
    }

    /// What is suspended now.
    pub fn suspensions(&self, actor: &Actor) -> Result<Vec<Suspension>, Forbidden> {
        actor.require(Permission::ManageInstance)?;
        Ok(self.board().suspended.values().cloned().collect())
    }

    /// Why the lane waited when it was last looked at; `None` if nothing holds it.
    pub fn why(&self, lane: &Lane) -> Option<String> {
        self.board().waiting.get(lane).map(|(_, reason)| reason.clone())
    }

    pub(super) async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// `Err` is why the lane may not run.
    pub(super) fn suspension(&self, lane: &Lane, site: Option<&str>) -> Result<(), String> {
        let board = self.board();
        if board.suspended.is_empty() {
            return Ok(());
        }
        let scopes = match site {
            Some(site) => vec![Scope::Site(site.to_owned())],
            None => {
                vec![Scope::All, Scope::Lane(lane.clone()), Scope::Domain(lane.next_hop.clone()), Scope::Vip(lane.vip)]
            }
        };
        match scopes.iter().find_map(|scope| board.suspended.get(scope)) {
            Some(found) => Err(format!("suspended by {}: {}", found.by, found.reason)),
            None => Ok(()),
        }
    }

    /// The lane waits for `reason`, as of this pass.
    pub(super) fn waits(&self, lane: &Lane, reason: String) {
        let mut board = self.board();
        let pass = board.pass;
        if board.waiting.len() < REASONS_MAX || board.waiting.contains_key(lane) {
            board.waiting.insert(lane.clone(), (pass, reason));
        }
    }

    /// Nothing holds the lane.
    pub(super) fn runs(&self, lane: &Lane) {
        self.board().waiting.remove(lane);
    }

    /// Reasons that no pass repeated for a while are forgotten.
    pub(super) fn pass_done(&self) {
        let mut board = self.board();
        board.pass = board.pass.saturating_add(1);
        if board.pass.is_multiple_of(PASSES_KEPT) {
            let oldest = board.pass.saturating_sub(PASSES_KEPT);
            board.waiting.retain(|_, (pass, _)| *pass >= oldest);
        }
    }

    /// Sites whose pause an operator ended.
    pub(super) fn take_resumed(&self) -> Vec<String> {
        std::mem::take(&mut self.board().resumed)
    }
}

/// A reason is remembered for so many passes.
const PASSES_KEPT: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{Class, TenantId};
    use crate::routing::TransportName;

    fn lane() -> Lane {
        Lane {
            vip: VipId(1),
            tenant: TenantId(1),
            class: Class::Transactional,
            transport: TransportName::Mx,
            next_hop: Domain::parse("shop.example").unwrap(),
        }
    }

    #[test]
    fn a_suspension_holds_what_it_names_and_says_who_and_why() {
        let (delivery, actor) = (Delivery::new(), Actor::local(0));
        for scope in [Scope::All, Scope::Lane(lane()), Scope::Domain(lane().next_hop), Scope::Vip(VipId(1))] {
            delivery.suspend(&actor, scope.clone(), "they asked us to").unwrap();
            let reason = "suspended by uid 0 by local socket: they asked us to".to_owned();
            assert_eq!(delivery.suspension(&lane(), None), Err(reason));
            assert_eq!(delivery.resume(&actor, &scope), Ok(true));
            assert_eq!(delivery.suspension(&lane(), None), Ok(()));
        }
        delivery.suspend(&actor, Scope::Site("mx.example".to_owned()), "x").unwrap();
        assert!(delivery.suspension(&lane(), Some("mx.example")).is_err());
        assert!(delivery.suspension(&lane(), Some("other.example")).is_ok());
    }

    #[test]
    fn only_those_who_run_the_instance_may_suspend() {
        let owner = Actor::of("o", crate::access::Role::TenantOwner(TenantId(1)));
        assert!(Delivery::new().suspend(&owner, Scope::All, "x").is_err());
    }
}
