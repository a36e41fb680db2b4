//! The second factors of a person: TOTP, set up by himself, all of them taken away by an admin, and ten recovery
//! codes that stand for any of them. Passkeys are in `passkeys`.
//!
//! Easy to get wrong: a secret that was shown is asked for only after one code has proved that the
//! person has it; a code, of either kind, is spent in the batch that lets the person in; and whoever
//! sets up a factor confirms with it alone from then on, so that setting it up needs a fresh proof itself.

use zeroize::Zeroizing;

use super::users::act_on;
use super::{People, Totp, TotpState, User, digest, is_same, is_self, stored, totp};
use crate::access::{Action, Actor};
use crate::events;
use crate::ext::{self, Timestamp};
use crate::mail::UserId;
use crate::records::{self, AdminError};
use crate::store::Batch;

/// Recovery codes made at a time.
pub const RECOVERY_CODES: usize = 10;

/// What a person needs to set up its authenticator program; shown once.
pub struct Enrolment {
    /// To type in.
    pub secret: Zeroizing<String>,
    /// `otpauth://...`, what the QR code says.
    pub address: Zeroizing<String>,
    /// The QR code as SVG.
    pub qr_svg: Zeroizing<String>,
}

/// What a person proved its second factor with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    /// A code of its device.
    Code,
    /// A passkey.
    Passkey,
    /// A recovery code; so many are left.
    Recovery {
        /// How many.
        left: usize,
    },
}

/// What came of a second factor that was given.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is right, and spent in the person that the caller stores.
    Right(Spent),
    /// It is wrong.
    Wrong,
    /// It is a passkey of which somebody may have a copy; marked so in the person.
    Copied,
}

impl Spent {
    /// Puts a recovery code that was used into the batch that lets `user` in: the person is told of it.
    pub(super) fn record(self, batch: &mut Batch, actor: &Actor, user: &User, now: Timestamp) {
        if let Self::Recovery { left } = self {
            let act = act_on(events::RECOVERY_USED_ACT, user);
            let act = act.changed("recovery_codes", Some((left + 1).to_string()), Some(left.to_string()));
            records::record(batch, actor, act, now);
        }
    }
}

pub(super) fn purpose(user: UserId) -> String {
    format!("totp {user}")
}

fn folded(code: &str) -> String {
    code.chars().filter(|character| character.is_ascii_alphanumeric()).collect::<String>().to_lowercase()
}

impl People {
    /// Begins to set up a second factor: for oneself only. One that is proved stays in use until
    /// the new one is.
    ///
    /// # Errors
    /// If it is somebody else's, the proof is old, or one is in use.
    pub async fn offer_totp(
        &self,
        actor: &Actor,
        id: UserId,
        issuer: &str,
        now: Timestamp,
    ) -> Result<Enrolment, AdminError> {
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let user = self.own(actor, id)?;
        if user.totp.as_ref().is_some_and(|totp| totp.state == TotpState::Proved) {
            return Err(AdminError::Invalid("a second factor is in use: take it away first".to_owned()));
        }
        let secret = Zeroizing::new(ext::random_bytes::<{ totp::SECRET_OCTETS }>());
        let sealed = self.key.seal(&purpose(id), secret.as_slice());
        let mut changed = user.clone();
        changed.totp = Some(Totp { sealed, last_step: 0, state: TotpState::Offered });
        let address = Zeroizing::new(totp::address(secret.as_slice(), issuer, &user.email));
        let code = qrcode::QrCode::new(address.as_bytes());
        let code = code.map_err(|error| AdminError::Invalid(format!("the QR code cannot be made: {error}")))?;
        let qr_svg = Zeroizing::new(code.render::<qrcode::render::svg::Color<'_>>().min_dimensions(240, 240).build());
        let mut batch = Batch::new();
        stored::replace(&mut batch, &user, &changed);
        records::record(&mut batch, actor, act_on("second-factor.offer", &changed), now);
        self.remember(turn, batch, changed).await?;
        Ok(Enrolment { secret: Zeroizing::new(totp::written(secret.as_slice())), address, qr_svg })
    }

    /// Ends setting up with a first code: from now on codes are asked for. The recovery codes are
    /// shown this once, if it is the first second factor; all other sessions of the person end.
    ///
    /// # Errors
    /// If the proof is old, nothing was offered, or the code is wrong.
    pub async fn prove_totp(
        &self,
        actor: &Actor,
        (id, keep): (UserId, Option<[u8; 32]>),
        code: &str,
        now: Timestamp,
    ) -> Result<Vec<Zeroizing<String>>, AdminError> {
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let user = match keep {
            Some(session) => self.own_within(actor, (id, session))?,
            None => self.own(actor, id)?,
        };
        let mut changed = user.clone();
        let nothing = || AdminError::Invalid("no second factor is being set up".to_owned());
        let totp = changed.totp.as_mut().filter(|totp| totp.state == TotpState::Offered).ok_or_else(nothing)?;
        let secret = self.opened(id, totp)?;
        let step = totp::accepts(&secret, code, totp.last_step, now)
            .ok_or_else(|| AdminError::field("code", "this code is wrong; is the device's clock right?".to_owned()))?;
        totp.last_step = step;
        totp.state = TotpState::Proved;
        let codes = if user.has_factor() { Vec::new() } else { new_codes() };
        if !user.has_factor() {
            changed.recovery = recovery_digests(&codes);
        }
        let mut batch = Batch::new();
        stored::replace(&mut batch, &user, &changed);
        let ended = self.end_in(&mut batch, id, keep);
        records::record(&mut batch, actor, act_on("second-factor.add", &changed), now);
        self.remember_without(turn, batch, changed, ended).await?;
        Ok(codes)
    }

    /// New recovery codes for oneself; the old ones are worth nothing. Shown this once.
    ///
    /// # Errors
    /// If it is somebody else's, there is no second factor, the proof is old, or the session has ended.
    pub async fn new_recovery_codes(
        &self,
        actor: &Actor,
        (id, session): (UserId, [u8; 32]),
        now: Timestamp,
    ) -> Result<Vec<Zeroizing<String>>, AdminError> {
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let user = self.own_within(actor, (id, session))?;
        if !user.has_factor() {
            return Err(AdminError::Invalid("there is no second factor to recover".to_owned()));
        }
        let codes = new_codes();
        let mut changed = user.clone();
        changed.recovery = recovery_digests(&codes);
        let mut batch = Batch::new();
        stored::replace(&mut batch, &user, &changed);
        records::record(&mut batch, actor, act_on("second-factor.recovery-codes", &changed), now);
        self.remember(turn, batch, changed).await?;
        Ok(codes)
    }

    /// Takes one's own TOTP away after a fresh proof, and the recovery codes with the last second factor. The
    /// person's sessions end, so that it logs in anew.
    ///
    /// # Errors
    /// If it is somebody else's, the proof is old, the session has ended, or there is none.
    pub async fn remove_totp(
        &self,
        actor: &Actor,
        (id, session): (UserId, [u8; 32]),
        now: Timestamp,
    ) -> Result<(), AdminError> {
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let user = self.own_within(actor, (id, session))?;
        if user.totp.is_none() {
            return Err(AdminError::Missing("second factor".to_owned()));
        }
        let mut changed = User { totp: None, ..user.clone() };
        if !changed.has_factor() {
            changed.recovery.clear();
        }
        self.take_away(turn, actor, (&user, changed), now).await
    }

    /// Takes all second factors of a person away: TOTP, passkeys and recovery codes, by whoever manages it or by
    /// itself. Its sessions end, so that it logs in anew.
    ///
    /// # Errors
    /// If the actor may not, the proof is old, or there is none.
    pub async fn reset_factors(&self, actor: &Actor, id: UserId, now: Timestamp) -> Result<(), AdminError> {
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let user = if is_self(actor, id) { self.own(actor, id)? } else { self.user_for(actor, id, Action::Write)? };
        if !is_self(actor, id) {
            actor.may_give(user.role)?;
        }
        if user.totp.is_none() && user.passkeys.is_empty() {
            return Err(AdminError::Missing("second factor".to_owned()));
        }
        let changed = User { totp: None, passkeys: Vec::new(), recovery: Vec::new(), ..user.clone() };
        self.take_away(turn, actor, (&user, changed), now).await
    }

    async fn take_away(
        &self,
        turn: records::Turn,
        actor: &Actor,
        (user, changed): (&User, User),
        now: Timestamp,
    ) -> Result<(), AdminError> {
        let mut batch = Batch::new();
        stored::replace(&mut batch, user, &changed);
        let ended = self.end_in(&mut batch, user.id, None);
        records::record(&mut batch, actor, act_on("second-factor.remove", &changed), now);
        self.remember_without(turn, batch, changed, ended).await
    }

    /// Spends a code of either kind in `user`, which the caller stores. `None`: it is wrong.
    pub(super) fn spend_code(&self, user: &mut User, code: &str, now: Timestamp) -> Result<Option<Spent>, AdminError> {
        let id = user.id;
        // One that is still being set up proves nothing, whatever else the person has.
        if let Some(totp) = user.totp.as_mut().filter(|totp| totp.state == TotpState::Proved) {
            let secret = self.opened(id, totp)?;
            if let Some(step) = totp::accepts(&secret, code, totp.last_step, now) {
                totp.last_step = step;
                return Ok(Some(Spent::Code));
            }
        }
        let typed = digest(&folded(code));
        let mut found = None;
        for (at, stored) in user.recovery.iter().enumerate() {
            if is_same(stored, &typed) {
                found = Some(at);
            }
        }
        Ok(found.map(|at| {
            user.recovery.remove(at);
            Spent::Recovery { left: user.recovery.len() }
        }))
    }

    fn opened(&self, id: UserId, totp: &Totp) -> Result<Zeroizing<Vec<u8>>, AdminError> {
        self.key.open(&purpose(id), &totp.sealed).map_err(|error| {
            AdminError::Invalid(format!("the second factor cannot be read: {error}; an admin can take it away"))
        })
    }
}

/// 80 random bits each, in groups that can be read out loud.
pub(super) fn new_codes() -> Vec<Zeroizing<String>> {
    let code = |_| {
        let text = ext::base32(&ext::random_bytes::<10>());
        let groups: Vec<&str> = (0..4).filter_map(|at| text.get(at * 4..at * 4 + 4)).collect();
        Zeroizing::new(groups.join("-"))
    };
    (0..RECOVERY_CODES).map(code).collect()
}

/// As they are kept.
pub(super) fn recovery_digests(codes: &[Zeroizing<String>]) -> Vec<[u8; 32]> {
    codes.iter().map(|code| digest(&folded(code))).collect()
}
