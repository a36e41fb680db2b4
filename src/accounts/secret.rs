//! Generated passwords: made here, shown once, kept as SHA-256. With 160 random bits no slow hash
//! is needed (OWASP ASVS 6.5.2 allows a fast one from 112 bits), so a flood of logins costs little.
//!
//! Easy to get wrong: an unknown login must cost exactly what a wrong password costs, so every
//! check compares [`SECRETS_MAX`] digests, dummies where there are fewer.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::ext;

/// Valid passwords of one account, at most: the new and the old one while clients change over.
pub const SECRETS_MAX: usize = 2;
/// Random octets of a password: 160 bits, 32 characters of base 32, nothing to escape in a URL,
/// an INI file or a shell.
const PASSWORD_OCTETS: usize = 20;

/// A new password.
pub fn generate() -> Zeroizing<String> {
    let octets = Zeroizing::new(ext::random_bytes::<PASSWORD_OCTETS>());
    Zeroizing::new(ext::base32(octets.as_slice()))
}

/// What is stored of a password.
pub fn digest(password: &str) -> [u8; 32] {
    Sha256::digest(password.as_bytes()).into()
}

/// The digests one login is compared with; always [`SECRETS_MAX`] of them.
#[derive(Clone, Copy)]
pub struct Candidates([[u8; 32]; SECRETS_MAX]);

impl Candidates {
    /// Digests nothing hashes to, made at random: what an unknown login is compared with.
    pub fn dummy() -> Self {
        Self([ext::random_bytes(), ext::random_bytes()])
    }

    /// The account's digests, with dummies in the free places.
    pub fn of(secrets: &[[u8; 32]], dummy: Self) -> Self {
        let mut all = dummy;
        for (place, secret) in all.0.iter_mut().zip(secrets) {
            *place = *secret;
        }
        all
    }

    /// Whether `password` is one of them, in a time that depends on its length alone.
    pub fn prove(&self, password: &str) -> bool {
        let digest = digest(password);
        let mut proven = Choice::from(0);
        for secret in &self.0 {
            #[cfg(test)]
            COMPARED.with(|count| count.set(count.get() + 1));
            proven |= digest.ct_eq(secret);
        }
        proven.into()
    }
}

#[cfg(test)]
thread_local! {
    /// How many digests this thread has compared.
    pub static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_has_160_bits_and_needs_no_escaping() {
        let password = generate();
        assert_eq!(password.len() * 5, 160);
        assert!(password.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        assert_ne!(*password, *generate());
    }

    #[test]
    fn either_of_two_passwords_proves_and_no_other() {
        let candidates = Candidates::of(&[digest("new"), digest("old")], Candidates::dummy());
        assert!(candidates.prove("new") && candidates.prove("old"));
        assert!(!candidates.prove("") && !candidates.prove("New"));
        assert!(!Candidates::of(&[], Candidates::dummy()).prove(""));
    }
}
