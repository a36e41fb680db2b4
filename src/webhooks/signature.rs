//! Signatures of Standard Webhooks 1.0: HMAC-SHA256 over id, time and body, so that none of them can be changed
//! and a request cannot be played again later.
//!
//! Easy to get wrong: the secret's text has a prefix and base 64 in it; what signs is the octets.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::ext::{self, Timestamp};

/// What the text of a secret begins with.
const PREFIX: &str = "whsec_";
/// Octets of a secret; the standard asks for 24 to 64.
const SECRET_OCTETS: usize = 32;

/// Makes a secret: its octets.
pub fn new_secret() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(ext::random_bytes::<SECRET_OCTETS>().to_vec())
}

/// The text of a secret, for the receiver.
pub fn text(secret: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(format!("{PREFIX}{}", STANDARD.encode(secret)))
}

/// The value of `webhook-signature`: one signature for each secret that is good, with spaces between.
pub fn sign(secrets: &[Zeroizing<Vec<u8>>], id: &str, at: Timestamp, body: &[u8]) -> String {
    let head = format!("{id}.{}.", at.as_secs());
    let one = |secret: &Zeroizing<Vec<u8>>| {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
        context.update(head.as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    };
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_standard_is_signed_as_it_says() {
        // The pair of secret and signature that the reference libraries test themselves with.
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = sign(
            &[Zeroizing::new(secret)],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            Timestamp(1_614_265_330_000),
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_is_shown_with_its_prefix_and_two_secrets_make_two_signatures() {
        let (one, two) = (new_secret(), new_secret());
        assert_ne!(*one, *two);
        let shown = text(&one);
        assert_eq!(STANDARD.decode(shown.strip_prefix("whsec_").unwrap()).unwrap(), *one);
        let both = sign(&[one.clone(), two.clone()], "evt_1", Timestamp(1_000), b"x");
        let each = |secret| sign(&[secret], "evt_1", Timestamp(1_000), b"x");
        assert_eq!(both, format!("{} {}", each(one), each(two)));
    }
}
