//! Stored shapes of people: the present one, and the one without passkeys.
//!
//! Easy to get wrong: a change is conditional on what is stored, so a person without passkeys is written as it
//! always was, and whatever was read is written again octet by octet.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Totp, User, UserState, user_key};
use crate::access::{Action, Role};
use crate::ext::Timestamp;
use crate::mail::{SmtpAccountId, UserId};
use crate::store::{Batch, StoreError, codec};

/// A person without passkeys.
#[derive(Serialize, Deserialize)]
struct FirstUser {
    id: UserId,
    email: String,
    name: String,
    role: Role,
    state: UserState,
    password: Option<String>,
    allowed_from: Vec<IpNet>,
    accounts: Option<BTreeMap<SmtpAccountId, Action>>,
    totp: Option<Totp>,
    recovery: Vec<[u8; 32]>,
    created: Timestamp,
    last_login: Option<Timestamp>,
}

impl From<FirstUser> for User {
    fn from(first: FirstUser) -> Self {
        Self {
            id: first.id,
            email: first.email,
            name: first.name,
            role: first.role,
            state: first.state,
            password: first.password,
            allowed_from: first.allowed_from,
            accounts: first.accounts,
            totp: first.totp,
            recovery: first.recovery,
            created: first.created,
            last_login: first.last_login,
            passkeys: Vec::new(),
        }
    }
}

impl From<User> for FirstUser {
    fn from(user: User) -> Self {
        Self {
            id: user.id,
            email: user.email,
            name: user.name,
            role: user.role,
            state: user.state,
            password: user.password,
            allowed_from: user.allowed_from,
            accounts: user.accounts,
            totp: user.totp,
            recovery: user.recovery,
            created: user.created,
            last_login: user.last_login,
        }
    }
}

/// A person as it is written.
pub fn user_bytes(user: &User) -> Vec<u8> {
    if user.passkeys.is_empty() { codec::encode(&FirstUser::from(user.clone())) } else { codec::encode_second(user) }
}

/// A person in either shape.
pub fn read_user(bytes: &[u8]) -> Result<User, StoreError> {
    codec::decode_second::<FirstUser, User>(bytes)
}

/// Writes `after` in the place of `before`, if that is what is stored.
pub(super) fn replace(batch: &mut Batch, before: &User, after: &User) {
    batch.if_equals(user_key(before.id), user_bytes(before)).set(user_key(after.id), user_bytes(after));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::people::Passkey;
    use crate::people::users::new_user;

    fn user() -> User {
        new_user("anna@example.com".to_owned(), "Anna".to_owned(), Role::InstanceAdmin, Timestamp(7))
    }

    #[test]
    fn who_was_stored_before_there_were_passkeys_is_read_and_written_as_before() {
        let bytes = codec::encode(&FirstUser::from(user()));
        let read = read_user(&bytes).unwrap();
        assert!(read.passkeys.is_empty() && read.email == "anna@example.com");
        assert_eq!(user_bytes(&read), bytes);
    }

    #[test]
    fn whoever_has_a_passkey_is_read_as_written_and_by_no_release_that_knows_none() {
        let passkey = Passkey {
            name: "key".to_owned(),
            credential: vec![1; 16],
            public_key: vec![2; 36],
            state: [3; 7],
            transports: 1,
            created: Timestamp(8),
            last_used: None,
            copied: Some(Timestamp(9)),
            host: "mail.example".to_owned(),
        };
        let user = User { passkeys: vec![passkey], ..user() };
        let bytes = user_bytes(&user);
        assert_eq!(read_user(&bytes).unwrap(), user);
        assert!(codec::decode::<FirstUser>(&bytes).is_err(), "it would let the password in alone");
    }

    /// What is stored does not change with the shape of a field: this is to be read for ever.
    #[test]
    fn a_person_with_a_passkey_is_read_from_the_octets_of_the_first_release() {
        let bytes = b"\x02\xe6\xbc\x8f\x8d\xf5\x88\xdb\xb5\xa5\x01\x10anna@example.com\x04Anna\x00\x00\x00\x00\
            \x00\x00\x00\x07\x00\x01\x03key\x10\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\
            \x01\x01\x01$\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\
            \x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x03\x03\x03\x03\x03\
            \x03\x03\x01\x08\x00\x01\t\x0cmail.example";
        let read = read_user(bytes).unwrap();
        let passkey = &read.passkeys[0];
        assert_eq!(
            (read.email.as_str(), read.role, read.created),
            ("anna@example.com", Role::InstanceAdmin, Timestamp(7))
        );
        assert_eq!((passkey.name.as_str(), passkey.state, passkey.copied), ("key", [3; 7], Some(Timestamp(9))));
        assert_eq!(passkey.host, "mail.example");
        assert_eq!(user_bytes(&read), bytes);
    }
}
