//! Passkeys as the protocol sees them (WebAuthn level 3): challenges that wait for an answer, what a browser is
//! sent, and whether what came back is right. The library does the checking; this file says what is asked of it.
//!
//! Easy to get wrong: a challenge is taken away by the first answer to it, right or wrong, and is good for one
//! person, on one occasion, for a while; and it is kept in memory only, so a restart ends them all.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use webauthn_rp::bin::{Decode, Encode};
use webauthn_rp::request::auth::{AllowedCredentials, AuthenticationVerificationOptions};
use webauthn_rp::request::register::{
    Nickname, PublicKeyCredentialUserEntity, RegistrationVerificationOptions, UserHandle, Username,
};
use webauthn_rp::request::{
    AsciiDomain, Credentials as _, PublicKeyCredentialDescriptor, RpId, TimedCeremony, UserVerificationRequirement,
};
use webauthn_rp::response::auth::error::AuthCeremonyErr;
use webauthn_rp::response::register::{CompressedPubKey, DynamicState, StaticState};
use webauthn_rp::response::{AuthTransports, CredentialId};
use webauthn_rp::{
    AuthenticatedCredential, NonDiscoverableAuthentication, NonDiscoverableAuthenticationServerState,
    NonDiscoverableCredentialRequestOptions, PublicKeyCredentialCreationOptions, Registration, RegistrationServerState,
};

use super::{Passkey, User};
use crate::accounts::Network;
use crate::ext::Timestamp;
use crate::mail::{Domain, UserId, cut};
use crate::records;

/// How long a challenge may be answered; the library counts as long.
pub const CHALLENGE_LASTS: Duration = Duration::from_secs(300);
/// Challenges of one person on one occasion that wait for an answer, for logins from one network; the oldest ends
/// when one more begins. Whoever has only the password must not end those of the person itself.
const OPEN_MAX: usize = 8;
/// Challenges of one person in all.
const OPEN_ALL_MAX: usize = 64;
/// Octets of what the log and a problem say of a wrong answer, which may quote it.
const WHY_OCTETS_MAX: usize = 200;
/// Octets of an answer of a browser, at most.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Octets of what a person is called towards authenticators: its id, which says nothing about it.
const HANDLE_OCTETS: usize = 8;

type PublicKey = CompressedPubKey<[u8; 32], [u8; 32], [u8; 48], Vec<u8>>;

/// Where people's browsers reach the admin API: what passkeys are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The host (the relying party's id).
    host: RpId,
    /// The whole of it as a browser says it.
    origin: String,
}

impl Site {
    /// Reads `https://HOST` or `https://HOST:PORT`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("https://").ok_or("must begin with https://")?;
        let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
        let host = host.to_ascii_lowercase();
        if host.parse::<std::net::IpAddr>().is_ok() || host.starts_with('[') {
            return Err("names an address; browsers bind passkeys to a host's name".to_owned());
        }
        // The name as browsers have it: a dot at its end would make another one of it.
        let is_name = host == "localhost" || Domain::parse(&host).is_ok_and(|parsed| parsed.as_str() == host);
        let domain = AsciiDomain::try_from(host.clone()).ok().filter(|_| is_name);
        let domain = domain.ok_or(
            "must be https://HOST or https://HOST:PORT, the host in ASCII (xn--), without a path or a dot at its end",
        )?;
        if port.is_some_and(|port| !port.bytes().all(|octet| octet.is_ascii_digit())) {
            return Err("names a port that cannot be".to_owned());
        }
        let origin = match port.map(str::parse::<u16>) {
            None | Some(Ok(443)) => format!("https://{host}"),
            Some(Ok(port)) if port != 0 => format!("https://{host}:{port}"),
            Some(_) => return Err("names a port that cannot be".to_owned()),
        };
        Ok(Self { host: RpId::Domain(domain), origin })
    }

    /// Whether browsers use a passkey here.
    pub(super) fn is_of(&self, passkey: &Passkey) -> bool {
        self.host.as_ref() == passkey.host
    }
}

/// What a challenge was given out for; an answer to it is taken for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// A login from this network, after the password was right. It may be answered from another one.
    Login(Network),
    /// A confirmation of this session.
    Confirm([u8; 32]),
    /// A passkey that is set up in this session.
    Register([u8; 32]),
}

impl Occasion {
    fn takes(self, answered: Self) -> bool {
        matches!((self, answered), (Self::Login(_), Self::Login(_))) || self == answered
    }
}

/// Why an answer is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is wrong, for the log.
    Wrong(String),
    /// It is right, but counts less than was counted before: somebody has a copy of the passkey.
    Copied,
}

fn wrong(why: impl std::fmt::Display) -> Refusal {
    Refusal::Wrong(cut(&why.to_string(), WHY_OCTETS_MAX))
}

enum Waiting {
    Registration(RegistrationServerState<HANDLE_OCTETS>),
    Assertion(NonDiscoverableAuthenticationServerState),
}

struct Open {
    user: UserId,
    occasion: Occasion,
    began: Timestamp,
    waiting: Waiting,
}

/// Challenges that wait for an answer. A moment further away than they last, before or behind, ends one: the
/// clock was set.
#[derive(Default)]
pub(super) struct Ceremonies(HashMap<u128, Open>);

impl Ceremonies {
    /// What the browser needs to make a passkey of `user`.
    pub(super) fn invite(
        &mut self,
        site: &Site,
        user: &User,
        session: [u8; 32],
        now: Timestamp,
    ) -> Result<Value, Refusal> {
        let handle = handle_of(user.id);
        let fallback = || Username::try_from(user.id.to_string()).map_err(wrong);
        let name = Username::try_from(user.email.as_str()).or_else(|_| fallback())?;
        let entity = PublicKeyCredentialUserEntity {
            name,
            id: &handle,
            display_name: Nickname::try_from(user.name.as_str()).ok(),
        };
        let known = user.passkeys.iter().map(described).collect::<Result<Vec<_>, _>>()?;
        let mut options = PublicKeyCredentialCreationOptions::second_factor(&site.host, entity, known);
        options.authenticator_selection.user_verification = UserVerificationRequirement::Preferred;
        let (server, client) = options.start_ceremony().map_err(wrong)?;
        let (challenge, occasion) = (server.sent_challenge().0, Occasion::Register(session));
        self.open(challenge, Open { user: user.id, occasion, began: now, waiting: Waiting::Registration(server) });
        serde_json::to_value(&client).map_err(wrong)
    }

    /// What the browser needs to prove one of the passkeys of `user` that were made for this site.
    pub(super) fn ask(
        &mut self,
        site: &Site,
        user: &User,
        occasion: Occasion,
        now: Timestamp,
    ) -> Result<Value, Refusal> {
        let mut allowed = AllowedCredentials::with_capacity(user.passkeys.len());
        for passkey in user.passkeys.iter().filter(|passkey| site.is_of(passkey)) {
            allowed.push(described(passkey)?.into());
        }
        let mut options = NonDiscoverableCredentialRequestOptions::second_factor(&site.host, allowed).map_err(wrong)?;
        options.options().user_verification = UserVerificationRequirement::Preferred;
        let (server, client) = options.start_ceremony().map_err(wrong)?;
        let challenge = server.sent_challenge().0;
        self.open(challenge, Open { user: user.id, occasion, began: now, waiting: Waiting::Assertion(server) });
        serde_json::to_value(&client).map_err(wrong)
    }

    fn open(&mut self, challenge: u128, open: Open) {
        self.0.retain(|_, known| open.began.apart(known.began) < CHALLENGE_LASTS);
        self.end_oldest(OPEN_MAX, |known| known.user == open.user && known.occasion == open.occasion);
        self.end_oldest(OPEN_ALL_MAX, |known| known.user == open.user);
        self.0.insert(challenge, open);
    }

    /// Makes room for one more of those `among` if there are as many as may be.
    fn end_oldest(&mut self, most: usize, among: impl Fn(&Open) -> bool) {
        let found = self.0.iter().filter(|(_, known)| among(known));
        let found: Vec<(Timestamp, u128)> = found.map(|(challenge, known)| (known.began, *challenge)).collect();
        if found.len() >= most
            && let Some((_, oldest)) = found.iter().min()
        {
            self.0.remove(oldest);
        }
    }

    /// A session has another secret: what is set up in it goes on.
    pub(super) fn session_became(&mut self, old: [u8; 32], new: [u8; 32]) {
        let registers = self.0.values_mut().filter(|open| open.occasion == Occasion::Register(old));
        registers.for_each(|open| open.occasion = Occasion::Register(new));
    }

    /// Takes a challenge away; what waited for its answer, if that was for this person on this occasion.
    fn take(&mut self, challenge: u128, (user, occasion): (UserId, Occasion), now: Timestamp) -> Option<Waiting> {
        let open = self.0.remove(&challenge)?;
        let is_meant = open.user == user && open.occasion.takes(occasion) && now.apart(open.began) < CHALLENGE_LASTS;
        is_meant.then_some(open.waiting)
    }
}

/// The passkey that `answer` makes, called `name`.
pub(super) fn register(
    ceremonies: &Mutex<Ceremonies>,
    site: &Site,
    (user, session, name): (UserId, [u8; 32], String),
    answer: &[u8],
    now: Timestamp,
) -> Result<Passkey, Refusal> {
    check_size(answer)?;
    let answer = Registration::from_json_relaxed(answer).map_err(wrong)?;
    let challenge = answer.challenge_relaxed().map_err(wrong)?.0;
    let waiting = records::lock(ceremonies).take(challenge, (user, Occasion::Register(session)), now);
    let Some(Waiting::Registration(server)) = waiting else {
        return Err(wrong("no such challenge waits for an answer"));
    };
    let options = RegistrationVerificationOptions::<&str, &str> {
        allowed_origins: &[site.origin.as_str()],
        error_on_unsolicited_extensions: false,
        ..Default::default()
    };
    let made = server.verify(&site.host, &answer, &options).map_err(wrong)?;
    let (Ok(public_key), Ok(state)) = (made.static_state().encode(), made.dynamic_state().encode());
    let (Ok(credential), Ok(transports)) = (made.id().encode().map(<[u8]>::to_vec), made.transports().encode());
    let host = site.host.as_ref().to_owned();
    Ok(Passkey { name, credential, public_key, state, transports, created: now, last_used: None, copied: None, host })
}

/// Whether `answer` proves one of the passkeys of `user`, whose counter and time of use move on.
pub(super) fn prove(
    ceremonies: &Mutex<Ceremonies>,
    site: &Site,
    (user, occasion): (&mut User, Occasion),
    answer: &[u8],
    now: Timestamp,
) -> Result<(), Refusal> {
    check_size(answer)?;
    let answer = NonDiscoverableAuthentication::<HANDLE_OCTETS>::from_json_relaxed(answer).map_err(wrong)?;
    let challenge = answer.challenge_relaxed().map_err(wrong)?.0;
    let waiting = records::lock(ceremonies).take(challenge, (user.id, occasion), now);
    let Some(Waiting::Assertion(server)) = waiting else {
        return Err(wrong("no such challenge waits for an answer"));
    };
    let handle = handle_of(user.id);
    let mut own = user.passkeys.iter_mut();
    let is_it = |passkey: &&mut Passkey| answer.raw_id().as_ref() == passkey.credential.as_slice();
    let passkey = own.find(is_it).ok_or_else(|| wrong("this is none of the person's passkeys"))?;
    let mut known = AuthenticatedCredential::new(
        CredentialId::<&[u8]>::decode(passkey.credential.as_slice()).map_err(wrong)?,
        &handle,
        StaticState::<PublicKey>::decode(passkey.public_key.as_slice()).map_err(wrong)?,
        DynamicState::decode(passkey.state).map_err(wrong)?,
    )
    .map_err(wrong)?;
    let options = AuthenticationVerificationOptions::<&str, &str> {
        allowed_origins: &[site.origin.as_str()],
        error_on_unsolicited_extensions: false,
        update_uv: true,
        ..Default::default()
    };
    match server.verify(&site.host, &answer, &mut known, &options) {
        Ok(_) => {
            let Ok(state) = known.dynamic_state().encode();
            (passkey.state, passkey.last_used) = (state, Some(now));
            Ok(())
        }
        Err(AuthCeremonyErr::SignatureCounter) => {
            passkey.copied = Some(now);
            Err(Refusal::Copied)
        }
        Err(error) => Err(wrong(error)),
    }
}

fn check_size(answer: &[u8]) -> Result<(), Refusal> {
    if answer.len() > ANSWER_BYTES_MAX { Err(wrong("it is far too long")) } else { Ok(()) }
}

fn handle_of(user: UserId) -> UserHandle<HANDLE_OCTETS> {
    let Ok(handle) = UserHandle::decode(user.0.to_be_bytes());
    handle
}

fn described(passkey: &Passkey) -> Result<PublicKeyCredentialDescriptor<Vec<u8>>, Refusal> {
    let id = CredentialId::<Vec<u8>>::decode(passkey.credential.clone()).map_err(wrong)?;
    Ok(PublicKeyCredentialDescriptor { id, transports: AuthTransports::decode(passkey.transports).map_err(wrong)? })
}
