//! People's passwords: Argon2id with 19 MiB, two passes and one lane (OWASP's floor), and a list of
//! common ones nobody may choose.
//!
//! Easy to get wrong: an unknown user must cost what a wrong password costs, so there is always a
//! hash to compare with; and many logins at once must not take all memory, so few run at a time.

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::ext;
use crate::records::AdminError;

/// Memory of one hash, in KiB.
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over it.
const PASSES: u32 = 2;
/// Hashes computed at the same time, at most: 76 MiB.
const AT_ONCE_MAX: usize = 4;
/// Characters of a password, at least (NIST SP 800-63B asks for 8, and for 15 without a second factor).
pub const CHARACTERS_MIN: usize = 12;
/// Octets of a password, at most: nobody types more, and hashing it must stay cheap.
const OCTETS_MAX: usize = 1024;
/// The most common passwords, sorted.
const COMMON: &str = include_str!("common-passwords.txt");
/// What an unknown user's password is compared with: the same parameters, and nobody's hash.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cG9zdGVybi1ub2JvZHktMQ$QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE";

/// Computes and compares hashes, a few at a time.
pub struct Hashes {
    permits: Semaphore,
}

impl Default for Hashes {
    fn default() -> Self {
        Self { permits: Semaphore::new(AT_ONCE_MAX) }
    }
}

impl Hashes {
    /// What is stored of a password.
    ///
    /// # Errors
    /// If hashing itself failed, which means memory is out.
    pub async fn hash(&self, password: Zeroizing<String>) -> Result<String, AdminError> {
        self.off_workers(move || {
            let salt = SaltString::encode_b64(&ext::random_bytes::<16>()).map_err(|error| error.to_string())?;
            let hash = argon2()?.hash_password(password.as_bytes(), &salt);
            hash.map(|hash| hash.to_string()).map_err(|error| error.to_string())
        })
        .await
    }

    /// Whether `password` is the one of `stored`; `None` is a user nobody knows, and takes as long.
    ///
    /// # Errors
    /// If hashing itself failed.
    pub async fn matches(&self, stored: Option<String>, password: Zeroizing<String>) -> Result<bool, AdminError> {
        self.off_workers(move || {
            let is_known = stored.is_some();
            let stored = stored.as_deref().unwrap_or(NOBODY);
            let hash = PasswordHash::new(stored).map_err(|error| error.to_string())?;
            // The parameters are those in the hash, so older ones verify as they were made.
            Ok(argon2()?.verify_password(password.as_bytes(), &hash).is_ok() && is_known)
        })
        .await
    }

    async fn off_workers<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, AdminError> {
        let _permit = self.permits.acquire().await.map_err(|error| AdminError::Invalid(error.to_string()))?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| error.to_string()).and_then(|done| done).map_err(|error| {
            tracing::error!(error, "a password could not be hashed");
            AdminError::Invalid("the password could not be checked; the log has the details".to_owned())
        })
    }
}

fn argon2() -> Result<Argon2<'static>, String> {
    let parameters = Params::new(MEMORY_KIB, PASSES, 1, Some(32)).map_err(|error| error.to_string())?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters))
}

/// Whether a hash was made with other parameters than today's.
pub fn is_outdated(stored: &str) -> bool {
    !stored.starts_with(&format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p=1$"))
}

/// Refuses what is too short, too long, common, or made of the person's own address.
///
/// # Errors
/// A sentence that says what to do.
pub fn check(password: &str, email: &str) -> Result<(), AdminError> {
    let refuse = |why: String| Err(AdminError::field("password", why));
    if password.chars().count() < CHARACTERS_MIN {
        return refuse(format!("a password has at least {CHARACTERS_MIN} characters; a few words are fine"));
    }
    if password.len() > OCTETS_MAX {
        return refuse(format!("a password has at most {OCTETS_MAX} octets"));
    }
    let folded = password.to_lowercase();
    let distinct: std::collections::BTreeSet<char> = folded.chars().collect();
    if distinct.len() < 5 {
        return refuse("this password repeats a few characters; take other words".to_owned());
    }
    if is_common(&folded) {
        return refuse("this password is a common one with something around it; take other words".to_owned());
    }
    let own = email.split('@').next().unwrap_or_default().to_lowercase();
    if own.len() >= 4 && core(&folded).contains(&own) && folded.len() < own.len() + 8 {
        return refuse("this password is the address with something around it; take other words".to_owned());
    }
    Ok(())
}

/// The password without digits and signs at its ends, which is how people lengthen a common one.
fn core(folded: &str) -> String {
    folded.trim_matches(|character: char| !character.is_alphabetic()).to_owned()
}

fn is_common(folded: &str) -> bool {
    let core = core(folded);
    let half = folded.get(..folded.len() / 2).filter(|half| folded.len() == 2 * half.len() && folded.ends_with(*half));
    let plain: String = core
        .chars()
        .map(|character| match character {
            '0' => 'o',
            '1' | '!' => 'i',
            '3' => 'e',
            '4' | '@' => 'a',
            '5' | '$' => 's',
            other => other,
        })
        .collect();
    let candidates = [Some(folded), Some(core.as_str()), Some(plain.as_str()), half];
    COMMON.lines().filter(|line| !line.starts_with('#')).any(|line| candidates.contains(&Some(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    #[tokio::test]
    async fn a_hash_has_the_stated_parameters_and_matches_its_password_only() {
        let hashes = Hashes::default();
        let stored = hashes.hash(secret("correct horse battery")).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(!is_outdated(&stored) && is_outdated("$argon2id$v=19$m=4096,t=3,p=1$x$y"));
        assert!(hashes.matches(Some(stored.clone()), secret("correct horse battery")).await.unwrap());
        assert!(!hashes.matches(Some(stored), secret("correct horse batterx")).await.unwrap());
        assert!(
            !hashes.matches(None, secret("anything")).await.unwrap(),
            "nobody's hash can be read and matches nothing"
        );
    }

    #[test]
    fn short_common_and_own_passwords_are_refused_and_words_are_taken() {
        for bad in [
            "short",
            "password1234",
            "Password!!!!",
            "P4ssw0rd2026",
            "qwertyuiop12",
            "aaaaaaaaaaaaaaa",
            "iloveyouiloveyou",
        ] {
            assert!(check(bad, "x@example.com").is_err(), "{bad}");
        }
        assert!(check("anna.kowalska2026", "anna.kowalska@example.com").is_err());
        for good in ["correct horse battery", "wiadro-mokre-7-sowa", "Ąęśćżźółńabc"] {
            assert!(check(good, "x@example.com").is_ok(), "{good}");
        }
        assert!(COMMON.lines().filter(|line| !line.starts_with('#')).count() > 5_000);
    }
}
