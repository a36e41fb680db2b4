//! May this login use this reverse-path, and may mail go to this forward-path.
//!
//! The header From is decided by the pipeline, which sees the message. Easy to get wrong: the
//! null reverse-path is no way around the rules, only a different one (RFC 5321 s4.5.5).

use crate::accounts::Sender;
use crate::ext::Timestamp;
use crate::intake::Entering;
use crate::mail::{ForwardPath, Refusal, Reply, ReversePath};
use crate::vips::{Vip, Vips};

use super::Submitting;

/// Whether `sender`, logged in on `vip`, may hand in mail of `path` now.
pub(super) fn reverse_path(
    (submitting, vips): (&Submitting, &Vips),
    sender: &Sender,
    vip: &Vip,
    path: &ReversePath,
) -> Result<(), Refusal> {
    submitting.accounts.may_send(sender.tenant, Some(sender.account))?;
    // The virtual IP may have been removed or given to somebody else since the login.
    if !vips.get(vip.id).is_some_and(|now| now.serves(sender.tenant)) {
        let reply = Reply::enhanced(451, 7, 1, "This address no longer serves this login; connect again");
        return Err(Refusal::with_cause(reply, format!("virtual IP {} no longer serves the tenant", vip.id)));
    }
    let entering = Entering { tenant: sender.tenant, account: Some(sender.account), vip: vip.id, to: None };
    (submitting.may_enter)(&entering, Timestamp::now())?;
    match &path.0 {
        None => Ok(()),
        Some(address) => {
            (submitting.may_send_from)(sender.tenant, address.domain())?;
            submitting.accounts.may_send_as(sender.account, address)
        }
    }
}

/// Whether mail of `sender` may go to `path` now.
pub(super) fn forward_path(
    submitting: &Submitting,
    sender: &Sender,
    vip: &Vip,
    path: &ForwardPath,
) -> Result<(), Refusal> {
    routes_nowhere(path)?;
    let to = Some(path.address.domain());
    let entering = Entering { tenant: sender.tenant, account: Some(sender.account), vip: vip.id, to };
    (submitting.may_enter)(&entering, Timestamp::now())
}

fn routes_nowhere(path: &ForwardPath) -> Result<(), Refusal> {
    if path.routes_on() {
        let text = "Addresses that route by %, ! or @ in the local part are not accepted here";
        return Err(Refusal::plain(Reply::enhanced(550, 7, 1, text)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Address;

    #[test]
    fn addresses_that_ask_to_be_routed_on_are_refused() {
        for (text, is_fine) in [
            ("a@b.example", true),
            ("a+b=c.example@b.example", true),
            ("a%c.example@b.example", false),
            ("c.example!a@b.example", false),
            ("\"a@c.example\"@b.example", false),
        ] {
            let path = ForwardPath::plain(Address::parse(text).unwrap());
            assert_eq!(routes_nowhere(&path).is_ok(), is_fine, "{text}");
        }
    }
}
