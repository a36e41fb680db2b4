//! How notifications are mailed: who people are, by which address mail to them leaves, and the way in.

use std::sync::Arc;

use super::rooms::Rooms;
use crate::access::{Action, Actor, Narrowing};
use crate::accounts::Accounts;
use crate::intake::{Source, Submission, Way};
use crate::mail::{Address, Class, TenantId};
use crate::notifications::{Egress, HandIn, INSTANCE, Person, PersonLookup, Post};
use crate::people::{People, UserState};
use crate::vips::{Owner, Vips};

/// What the room of notifications is given.
pub(super) fn post(rooms: &Rooms, instance: String) -> Post {
    let (vips, accounts) = (Arc::clone(&rooms.vips), Arc::clone(&rooms.accounts));
    let intake = Arc::clone(&rooms.intake);
    let hand_in: HandIn = Arc::new(move |id, envelope, draft, egress| {
        let intake = Arc::clone(&intake);
        let source = Source {
            tenant: egress.tenant,
            account: None,
            vip: egress.vip,
            vip_name: egress.name,
            class: Class::Transactional,
            way: Way::Report,
        };
        Box::pin(async move {
            let submission = Submission { envelope, draft, source };
            intake.accept_as(id, submission, crate::ext::Timestamp::now()).await.map(drop)
        })
    });
    Post {
        person: person(&rooms.people, &rooms.accounts, instance),
        egress: Arc::new(move |tenant| egress(&vips, &accounts, tenant)),
        hand_in,
    }
}

fn person(people: &Arc<People>, accounts: &Arc<Accounts>, instance: String) -> PersonLookup {
    let (people, accounts) = (Arc::clone(people), Arc::clone(accounts));
    let asking = Actor::system("notifications by mail");
    Arc::new(move |id| {
        let user = people.user_for(&asking, id, Action::Read).ok()?;
        let place = match user.role.tenant() {
            Some(tenant) => accounts.tenant(tenant).map_or_else(|| tenant.to_string(), |tenant| tenant.name),
            None => instance.clone(),
        };
        let address = Address::parse(&user.email).ok()?;
        let (is_active, has_followed_link) = (user.state == UserState::Active, user.state != UserState::Invited);
        let narrowing = Arc::new(Narrowing { accounts: user.accounts, ..Narrowing::default() });
        Some(Person { address, role: user.role, narrowing, is_active, has_followed_link, place })
    })
}

/// The tenant's default virtual IP; for the instance a shared one. Never an address that belongs to somebody else.
fn egress(vips: &Vips, accounts: &Accounts, tenant: TenantId) -> Option<Egress> {
    let vip = if tenant == INSTANCE {
        vips.all().iter().find(|vip| vip.owner == Owner::Shared).cloned()
    } else {
        vips.default_for(tenant, accounts.tenant(tenant)?.default_vip)
    };
    vip.map(|vip| Egress { tenant, vip: vip.id, name: vip.ehlo })
}
