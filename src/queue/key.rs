//! The keys of the queue in the one ordered tree, written and read back.
//!
//! A lane is written so that keys sort by lane, then due time: fixed-width fields, the next hop,
//! and a zero octet, which no domain contains. Easy to get wrong: a due key must be readable
//! without any record, since lanes are found at start from these keys alone.

use super::record::QueueTime;
use crate::events::NoticeKind;
use crate::mail::{Class, Domain, QueueId, TenantId, VipId};
use crate::routing::{Lane, TransportName};
use crate::store::{Key, prefix};

/// One key of the due index without its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Entry {
    pub(super) due: QueueTime,
    pub(super) queue_id: QueueId,
    pub(super) number: u16,
}

impl Entry {
    /// The entry that sorts right behind this one.
    pub(super) fn next(self) -> Self {
        match self.number.checked_add(1) {
            Some(number) => Self { number, ..self },
            None => Self { due: self.due, queue_id: QueueId(successor(self.queue_id.0)), number: 0 },
        }
    }
}

fn successor(mut bytes: [u8; 16]) -> [u8; 16] {
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    bytes
}

pub(super) fn message(id: QueueId) -> Key {
    with_id(prefix::MESSAGE, id, 0)
}

pub(super) fn lane_record(id: QueueId, number: u16) -> Key {
    let mut key = with_id(prefix::LANE, id, 2);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// Every lane record of a message sorts under this.
pub(super) fn lane_records(id: QueueId) -> Key {
    with_id(prefix::LANE, id, 0)
}

fn with_id(first: u8, id: QueueId, more: usize) -> Key {
    let mut key = Vec::with_capacity(17 + more);
    key.push(first);
    key.extend_from_slice(&id.0);
    key
}

/// The message's id of a message, history or lane record's key.
pub(super) fn id_of(key: &[u8]) -> Option<QueueId> {
    key.get(1..17).and_then(|bytes| bytes.try_into().ok()).map(QueueId)
}

/// The number of a lane record's key.
pub(super) fn number_of(key: &[u8]) -> Option<u16> {
    key.get(17..).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes)
}

/// Every due key of the lane begins with this.
pub(super) fn lane(lane: &Lane) -> Key {
    let hop = lane.next_hop.as_str().as_bytes();
    let mut key = Vec::with_capacity(LANE_FIXED_BYTES + hop.len() + 1 + ENTRY_BYTES);
    key.push(prefix::DUE);
    key.extend_from_slice(&lane.vip.0.to_be_bytes());
    key.extend_from_slice(&lane.tenant.0.to_be_bytes());
    key.push(match lane.class {
        Class::Transactional => 0,
        Class::Marketing => 1,
    });
    let (kind, route) = match lane.transport {
        TransportName::Mx => (0, 0),
        TransportName::Smarthost(route) => (1, route),
        TransportName::MxDespiteTls => (2, 0),
    };
    key.push(kind);
    key.extend_from_slice(&route.to_be_bytes());
    key.extend_from_slice(hop);
    key.push(0);
    key
}

/// Every due key of a virtual IP begins with this.
pub(super) fn due_of(vip: VipId) -> Key {
    let mut key = vec![prefix::DUE];
    key.extend_from_slice(&vip.0.to_be_bytes());
    key
}

pub(super) fn due(of: &Lane, entry: Entry) -> Key {
    let mut key = lane(of);
    push_entry(&mut key, entry);
    key
}

pub(super) fn push_entry(key: &mut Key, entry: Entry) {
    key.extend_from_slice(&entry.due.0.to_be_bytes());
    key.extend_from_slice(&entry.queue_id.0);
    key.extend_from_slice(&entry.number.to_be_bytes());
}

/// Reads a due key back; `None` if it is none.
pub(super) fn read_due(key: &[u8]) -> Option<(Lane, Entry)> {
    let rest = key.strip_prefix(&[prefix::DUE])?;
    let (vip, rest) = number(rest)?;
    let (tenant, rest) = number(rest)?;
    let (class, rest) = rest.split_first()?;
    let (kind, rest) = rest.split_first()?;
    let (route, rest) = number(rest)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    let (hop, entry) = (rest.get(..end)?, rest.get(end + 1..)?);
    let class = match class {
        0 => Class::Transactional,
        1 => Class::Marketing,
        _ => return None,
    };
    let transport = match kind {
        0 => TransportName::Mx,
        1 => TransportName::Smarthost(route),
        2 => TransportName::MxDespiteTls,
        _ => return None,
    };
    let next_hop = Domain::parse(std::str::from_utf8(hop).ok()?).ok()?;
    Some((Lane { vip: VipId(vip), tenant: TenantId(tenant), class, transport, next_hop }, read_entry(entry)?))
}

/// Reads what follows the lane in a due key.
pub(super) fn read_entry(bytes: &[u8]) -> Option<Entry> {
    let (due, rest) = number(bytes)?;
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let number = u16::from_be_bytes(rest.try_into().ok()?);
    Some(Entry { due: QueueTime(due), queue_id: QueueId(*id), number })
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (digits, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*digits), rest))
}

pub(super) fn notice(due: QueueTime, id: QueueId, kind: NoticeKind) -> Key {
    let mut key = Vec::with_capacity(26);
    key.push(prefix::NOTICE);
    key.extend_from_slice(&due.0.to_be_bytes());
    key.extend_from_slice(&id.0);
    key.push(match kind {
        NoticeKind::Failure => 0,
        NoticeKind::Delay => 1,
        NoticeKind::Success => 2,
    });
    key
}

/// Reads a notice's key back; `None` if it is none.
pub(super) fn read_notice(key: &[u8]) -> Option<(QueueTime, QueueId, NoticeKind)> {
    let (due, rest) = number(key.strip_prefix(&[prefix::NOTICE])?)?;
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let kind = match rest {
        [0] => NoticeKind::Failure,
        [1] => NoticeKind::Delay,
        [2] => NoticeKind::Success,
        _ => return None,
    };
    Some((QueueTime(due), QueueId(*id), kind))
}

pub(super) fn clock() -> Key {
    state(b"clock", &[])
}

/// Where a record that cannot be read is kept.
pub(super) fn damaged(original: &[u8]) -> Key {
    state(b"damaged", original)
}

/// Virtual IPs that are missing on this host.
pub(super) fn outages() -> Key {
    state(b"outage", &[])
}

pub(super) fn outage(vip: VipId) -> Key {
    state(b"outage", &vip.0.to_be_bytes())
}

/// The virtual IP of an outage's key.
pub(super) fn read_outage(key: &[u8]) -> Option<VipId> {
    let rest = key.strip_prefix(outages().as_slice())?;
    rest.try_into().ok().map(|digits| VipId(u64::from_be_bytes(digits)))
}

/// Messages that were told of a virtual IP's outage.
pub(super) fn told_at(vip: VipId) -> Key {
    state(b"told", &vip.0.to_be_bytes())
}

pub(super) fn told(vip: VipId, id: QueueId) -> Key {
    let mut key = told_at(vip);
    key.extend_from_slice(&id.0);
    key
}

fn state(name: &[u8], more: &[u8]) -> Key {
    let mut key = vec![prefix::QUEUE_STATE];
    key.extend_from_slice(name);
    key.extend_from_slice(more);
    key
}

/// `q`, virtual IP, tenant, class, transport.
const LANE_FIXED_BYTES: usize = 1 + 8 + 8 + 1 + 9;
/// Due time, queue id, number.
const ENTRY_BYTES: usize = 8 + 16 + 2;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        /// Lanes so alike that every field decides now and then.
        fn near_lanes()(vip in 0_u64..2, tenant in 255_u64..258, class: bool,
                        route in proptest::option::of(prop_oneof![Just(0_u64), Just(255), Just(256), Just(u64::MAX)]),
                        hop in "[ab-]{0,2}a(\\.[ab]{1,2}){1,2}") -> Lane {
            Lane {
                vip: VipId(vip),
                tenant: TenantId(tenant),
                class: if class { Class::Transactional } else { Class::Marketing },
                transport: route.map_or(TransportName::Mx, TransportName::Smarthost),
                next_hop: Domain::parse(hop.trim_start_matches('-')).unwrap(),
            }
        }
    }

    prop_compose! {
        fn lanes()(vip: u64, tenant: u64, class: bool, route in proptest::option::of(any::<u64>()),
                   hop in "[a-z]{1,8}(\\.[a-z]{2,5}){1,2}") -> Lane {
            Lane {
                vip: VipId(vip),
                tenant: TenantId(tenant),
                class: if class { Class::Transactional } else { Class::Marketing },
                transport: route.map_or(if vip % 2 == 0 { TransportName::Mx } else { TransportName::MxDespiteTls }, TransportName::Smarthost),
                next_hop: Domain::parse(&hop).unwrap(),
            }
        }
    }

    proptest! {
        #[test]
        fn a_due_key_reads_back_and_sorts_by_lane_then_time(
            one in lanes(), two in lanes(), early: u64, late: u64, id: [u8; 16], number: u16
        ) {
            let entry = |due| Entry { due: QueueTime(due), queue_id: QueueId(id), number };
            prop_assert_eq!(read_due(&due(&one, entry(early))), Some((one.clone(), entry(early))));
            prop_assert_eq!(early.cmp(&late), due(&one, entry(early)).cmp(&due(&one, entry(late))));
            if one != two {
                prop_assert_eq!(lane(&one).cmp(&lane(&two)), due(&one, entry(late)).cmp(&due(&two, entry(early))));
            }
            let key = due(&one, entry(early));
            prop_assert_eq!(read_due(&key[..key.len() - 1]), None);
        }

        #[test]
        fn keys_sort_as_lanes_do(one in near_lanes(), two in near_lanes(), early: [u8; 4], late: [u8; 4]) {
            prop_assert_eq!(one.cmp(&two), lane(&one).cmp(&lane(&two)));
            prop_assert!(one == two || !lane(&two).starts_with(&lane(&one)), "one lane within another");
            // Times and numbers around the borders of an octet.
            let entry = |octets: [u8; 4]| {
                let [due, id, number, more] = octets.map(|octet| octet % 3);
                let number = 254 + u16::from(number) + (u16::from(more) << 8);
                Entry { due: QueueTime(254 + u64::from(due)), queue_id: QueueId([id; 16]), number }
            };
            let (early, late) = (entry(early), entry(late));
            prop_assert_eq!((&one, early).cmp(&(&two, late)), due(&one, early).cmp(&due(&two, late)));
        }

        #[test]
        fn the_next_entry_is_the_smallest_greater_one(due: u64, id: [u8; 16], number: u16) {
            let entry = Entry { due: QueueTime(due), queue_id: QueueId(id), number };
            prop_assume!(id != [255; 16]);
            prop_assert!(entry.next() > entry);
        }
    }

    #[test]
    fn a_notices_key_reads_back() {
        let key = notice(QueueTime(7), QueueId([3; 16]), NoticeKind::Delay);
        assert_eq!(read_notice(&key), Some((QueueTime(7), QueueId([3; 16]), NoticeKind::Delay)));
        assert_eq!(read_notice(&key[..20]), None);
    }
}
