//! Limits of one site as one virtual IP sees it, and where each comes from. Pure.
//!
//! Recipe: [`resolve`] merges what is known, the most special last. Easy to get wrong: a limit of
//! one tenant or one recipient domain does not replace the site's limit, it holds beside it.

use serde::{Deserialize, Serialize};

use super::providers::Provider;
use crate::mail::{Domain, TenantId, VipId};

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Knob {
    /// Connections at a time.
    Connections,
    /// Messages over one connection.
    MessagesPerConnection,
    /// New connections in any minute.
    ConnectionsPerMinute,
    /// Transactions in any minute.
    MessagesPerMinute,
    /// Recipients in one transaction.
    RecipientsPerTransaction,
}

impl Knob {
    /// All, in the order people are shown them.
    pub const ALL: [Self; 5] = [
        Self::Connections,
        Self::MessagesPerConnection,
        Self::ConnectionsPerMinute,
        Self::MessagesPerMinute,
        Self::RecipientsPerTransaction,
    ];

    /// As files, the API and people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::MessagesPerConnection => "messages_per_connection",
            Self::ConnectionsPerMinute => "connections_per_minute",
            Self::MessagesPerMinute => "messages_per_minute",
            Self::RecipientsPerTransaction => "recipients_per_transaction",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Connections => 0,
            Self::MessagesPerConnection => 1,
            Self::ConnectionsPerMinute => 2,
            Self::MessagesPerMinute => 3,
            Self::RecipientsPerTransaction => 4,
        }
    }
}

/// The value of a limit that is none.
pub const UNLIMITED: u32 = u32::MAX;

/// Some limits; what is not set is left to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitSet([Option<u32>; 5]);

impl LimitSet {
    /// The value of one; [`UNLIMITED`] says that there shall be none.
    pub fn get(&self, knob: Knob) -> Option<u32> {
        self.0.get(knob.index()).copied().flatten()
    }

    /// Sets one, or leaves it to others again.
    pub fn set(&mut self, knob: Knob, value: Option<u32>) {
        if let Some(place) = self.0.get_mut(knob.index()) {
            *place = value;
        }
    }

    /// Whether it sets nothing.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// Which sites an operator's limits are for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// Every site, each for itself.
    Every,
    /// One provider or site, by name.
    Site(String),
    /// One recipient domain, beside the limits of its site.
    Domain(Domain),
}

/// What an operator's limits are for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// Which sites.
    pub target: Target,
    /// Of this virtual IP only.
    pub vip: Option<VipId>,
    /// Of this tenant's mail only, beside the limits of the site.
    pub tenant: Option<TenantId>,
}

/// Limits an operator set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// For what.
    pub scope: Scope,
    /// Which.
    pub limits: LimitSet,
    /// Messages of this tenant for each of another when both wait (1).
    pub weight: Option<u32>,
}

/// Where a limit comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file, or nothing.
    Default,
    /// The data file of providers.
    Provider,
    /// An operator.
    Operator(Scope),
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// How much.
    pub value: u32,
    /// Who says so.
    pub origin: Origin,
}

/// Which part of a site's mail limits are for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it.
    Whole,
    /// To one domain.
    Domain(Domain),
    /// Of one tenant.
    Tenant(TenantId),
}

/// A limit for every knob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved([Bound; 5]);

impl Resolved {
    /// The limit of a knob.
    pub fn bound(&self, knob: Knob) -> &Bound {
        // An array of five and an index below five.
        self.0.get(knob.index()).unwrap_or(&self.0[0])
    }

    /// No limit at all.
    pub fn unlimited() -> Self {
        Self(Knob::ALL.map(|_| Bound { value: UNLIMITED, origin: Origin::Default }))
    }

    /// Its value.
    pub fn value(&self, knob: Knob) -> u32 {
        self.bound(knob).value
    }
}

/// What limits are made of.
pub struct Layers<'a> {
    /// Of every site.
    pub default: LimitSet,
    /// The provider, if the site is one.
    pub provider: Option<&'a Provider>,
    /// The operator's.
    pub overrides: &'a [Override],
}

impl Layers<'_> {
    /// The limits of a part of a site's mail, `None` if nothing is set for that part alone.
    /// Every site < provider < this virtual IP < this site < this site and virtual IP.
    pub fn resolve(&self, site: &str, vip: VipId, part: &Part) -> Option<Resolved> {
        let mut layers: Vec<(u8, LimitSet, Origin)> = Vec::new();
        if *part == Part::Whole {
            layers.push((0, self.default, Origin::Default));
            layers.extend(self.provider.map(|provider| (2, provider.limits, Origin::Provider)));
        }
        for set in self.overrides {
            let scope = &set.scope;
            if scope.vip.is_some_and(|own| own != vip) || set.limits.is_empty() {
                continue;
            }
            if let Some(rank) = rank(scope, site, part) {
                layers.push((rank, set.limits, Origin::Operator(scope.clone())));
            }
        }
        if layers.is_empty() {
            return None;
        }
        layers.sort_by_key(|(rank, ..)| *rank);
        Some(Resolved(Knob::ALL.map(|knob| {
            let set = layers.iter().rev().find_map(|(_, limits, origin)| limits.get(knob).map(|value| (value, origin)));
            set.map_or(Bound { value: UNLIMITED, origin: Origin::Default }, |(value, origin)| Bound {
                value,
                origin: origin.clone(),
            })
        })))
    }

    /// How much of a tenant's mail goes for each message of others.
    pub fn weight(&self, site: &str, vip: VipId, tenant: TenantId) -> u32 {
        let part = Part::Tenant(tenant);
        let fits = |set: &&Override| set.scope.vip.is_none_or(|own| own == vip) && set.weight.is_some();
        let ranked = self.overrides.iter().filter(fits).filter_map(|set| Some((rank(&set.scope, site, &part)?, set)));
        ranked.max_by_key(|(rank, _)| *rank).and_then(|(_, set)| set.weight).unwrap_or(1).max(1)
    }
}

/// Stands between the relay and the route in the name of a site that is a login at a relay.
pub const LOGIN_MARK: char = '/';

/// Whether people mean `site` by `name`: its own name, or that of the relay it is a login at.
pub fn is_called(site: &str, name: &str) -> bool {
    site == name || site.split_once(LOGIN_MARK).is_some_and(|(relay, _)| relay == name)
}

/// How special a scope is, `None` if it is about something else.
fn rank(scope: &Scope, site: &str, part: &Part) -> Option<u8> {
    let is_right_part = match (part, &scope.target, scope.tenant) {
        (Part::Whole, Target::Every | Target::Site(_), None) => true,
        (Part::Tenant(asked), Target::Every | Target::Site(_), Some(own)) => *asked == own,
        (Part::Domain(asked), Target::Domain(own), None) => asked == own,
        _ => false,
    };
    let by_target = match &scope.target {
        Target::Every => 1,
        Target::Site(own) if is_called(site, own) => 4,
        Target::Site(_) => return None,
        Target::Domain(_) => 4,
    };
    is_right_part.then_some(match (by_target, scope.vip) {
        (1, Some(_)) => 3,
        (base, Some(_)) => base + 1,
        (base, None) => base,
    })
}

#[cfg(test)]
mod tests {
    use super::super::providers::Providers;
    use super::*;

    fn set(knob: Knob, value: u32) -> LimitSet {
        let mut limits = LimitSet::default();
        limits.set(knob, Some(value));
        limits
    }

    fn scope(target: Target, vip: Option<u64>, tenant: Option<u64>) -> Scope {
        Scope { target, vip: vip.map(VipId), tenant: tenant.map(TenantId) }
    }

    fn over(scope: Scope, value: u32) -> Override {
        Override { scope, limits: set(Knob::Connections, value), weight: None }
    }

    #[test]
    fn the_most_special_limit_wins_and_says_where_it_comes_from() {
        let providers = Providers::built_in();
        let gmail = || Target::Site("gmail".to_owned());
        let mut overrides = Vec::new();
        let value = |overrides: &[Override], vip| {
            let layers = Layers { default: set(Knob::Connections, 7), provider: providers.named("gmail"), overrides };
            layers.resolve("gmail", VipId(vip), &Part::Whole).unwrap().bound(Knob::Connections).clone()
        };
        assert_eq!(value(&overrides, 1), Bound { value: 10, origin: Origin::Provider });
        for (scope, expected) in [
            (scope(Target::Every, None, None), 10),
            (scope(Target::Every, Some(1), None), 21),
            (scope(gmail(), None, None), 22),
            (scope(gmail(), Some(1), None), 23),
            (scope(Target::Site("yahoo".to_owned()), Some(1), None), 23),
            (scope(gmail(), Some(2), None), 23),
            (scope(gmail(), None, Some(5)), 23),
        ] {
            let next = 20 + u32::try_from(overrides.len()).unwrap();
            overrides.insert(0, over(scope, next));
            assert_eq!(value(&overrides, 1).value, expected, "{overrides:?}");
        }
        assert_eq!(value(&overrides, 1).origin, Origin::Operator(scope(gmail(), Some(1), None)));
        assert_eq!(value(&overrides, 3).value, 22);
    }

    #[test]
    fn limits_of_a_relay_hold_for_each_login_there() {
        let relay = Target::Site("relay.example:587".to_owned());
        let overrides = [over(scope(relay, None, None), 3)];
        let layers = Layers { default: set(Knob::Connections, 7), provider: None, overrides: &overrides };
        let of = |site| layers.resolve(site, VipId(1), &Part::Whole).unwrap().value(Knob::Connections);
        assert_eq!([of("relay.example:587"), of("relay.example:587/abc"), of("relay.example:25/abc")], [3, 3, 7]);
    }

    #[test]
    fn limits_of_a_tenant_or_a_domain_stand_beside_those_of_the_site() {
        let domain = Domain::parse("shop.example").unwrap();
        let overrides =
            [over(scope(Target::Every, None, Some(5)), 1), over(scope(Target::Domain(domain.clone()), None, None), 2)];
        let layers = Layers { default: set(Knob::Connections, 7), provider: None, overrides: &overrides };
        let of = |part| layers.resolve("mx.example", VipId(1), &part);
        assert_eq!(of(Part::Whole).unwrap().value(Knob::Connections), 7);
        assert_eq!(of(Part::Tenant(TenantId(5))).unwrap().value(Knob::Connections), 1);
        assert_eq!(of(Part::Tenant(TenantId(5))).unwrap().value(Knob::MessagesPerMinute), UNLIMITED);
        assert_eq!(of(Part::Tenant(TenantId(6))), None);
        assert_eq!(of(Part::Domain(domain)).unwrap().value(Knob::Connections), 2);
    }
}
