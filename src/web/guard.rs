//! Who is asking: the credentials of a peer on the local socket (`SO_PEERCRED`) become an `Actor`.
//!
//! Root, the daemon's own user and members of one Unix group administer the instance; nobody else
//! gets past. Easy to get wrong: the kernel tells a peer's user and primary group as they were at
//! connect; further memberships are read from `/etc/group`, so that leaving the group takes effect
//! at the next connection.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::door::NetworkPeer;
use super::problem::Problem;
use crate::access::Actor;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// A peer on the socket, as the kernel described it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerUser {
    /// Its user.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

/// Decides which peers may administer.
#[derive(Clone, Debug)]
pub struct Guard {
    own_uid: u32,
    group: String,
}

impl Guard {
    /// A guard that admits root, this process's user and members of `group` (empty: no group).
    pub fn new(group: &str) -> Self {
        Self { own_uid: rustix::process::geteuid().as_raw(), group: group.to_owned() }
    }

    /// The actor `peer` is, if it may come in.
    pub fn admit(&self, peer: PeerUser) -> Option<Actor> {
        let is_admitted = peer.uid == 0 || peer.uid == self.own_uid || self.is_member(peer);
        is_admitted.then(|| Actor::local(peer.uid))
    }

    fn is_member(&self, peer: PeerUser) -> bool {
        if self.group.is_empty() {
            return false;
        }
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        belongs(&read(PASSWD), &read(GROUP), &self.group, peer)
    }
}

/// The number of the group called `name`.
pub fn group_number(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string(GROUP).ok()?;
    group_line(&groups, name).map(|(gid, _)| gid)
}

fn group_line<'a>(groups: &'a str, name: &str) -> Option<(u32, &'a str)> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((gid, fields.next().unwrap_or_default()))
    })
}

fn belongs(users: &str, groups: &str, name: &str, peer: PeerUser) -> bool {
    let Some((gid, members)) = group_line(groups, name) else { return false };
    if gid == peer.gid {
        return true;
    }
    let mut names = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let user = fields.next()?;
        (fields.nth(1)?.parse() == Ok(peer.uid)).then_some(user)
    });
    names.any(|user| !user.is_empty() && members.split(',').any(|member| member.trim() == user))
}

/// Lets a request pass only if its connection was given an [`Actor`]. A tenant's actor is told of
/// what is missing in the same words, whether it exists elsewhere or nowhere.
pub async fn require_actor(request: Request, next: Next) -> Response {
    let Some(actor) = request.extensions().get::<Actor>() else {
        if request.extensions().get::<NetworkPeer>().is_some() {
            let detail = "log in (POST /api/v1/session), or send a key (Authorization: Bearer)";
            return Problem::new(StatusCode::UNAUTHORIZED, "missing_api_key", detail).into_response();
        }
        let detail = "this socket is for root, the daemon's user and members of its group";
        return Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).into_response();
    };
    let is_of_a_tenant = actor.role.tenant().is_some();
    let mut response = next.run(request).await;
    if is_of_a_tenant && let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response.extensions_mut().insert(problem.without_a_trace());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n\
        bert:x:1001:1001::/home/bert:/bin/sh\n";
    const GROUPS: &str = "root:x:0:\npostern:x:990:bert,carl\npostern2:x:991:anna\nbroken\n";

    #[test]
    fn a_member_by_list_or_primary_group_belongs_and_others_do_not() {
        let is_in = |uid, gid| belongs(USERS, GROUPS, "postern", PeerUser { uid, gid });
        assert!(is_in(1001, 1001), "bert is listed");
        assert!(is_in(1000, 990), "anna with that primary group");
        assert!(!is_in(1000, 1000), "anna is in another group of a similar name");
        assert!(!is_in(4711, 4711), "nobody knows this user");
        assert!(!belongs(USERS, GROUPS, "missing", PeerUser { uid: 1001, gid: 1001 }));
    }

    #[test]
    fn root_and_the_daemons_own_user_come_in_and_a_stranger_does_not() {
        let guard = Guard { own_uid: 990, group: String::new() };
        assert_eq!(guard.admit(PeerUser { uid: 0, gid: 0 }), Some(Actor::local(0)));
        assert_eq!(guard.admit(PeerUser { uid: 990, gid: 990 }), Some(Actor::local(990)));
        assert_eq!(guard.admit(PeerUser { uid: 4711, gid: 4711 }), None);
    }
}
