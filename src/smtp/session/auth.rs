//! AUTH within a session (RFC 4954): PLAIN and LOGIN, with and without initial response.
//!
//! It decodes and asks; whether the login is good, and how long the answer takes, is decided by
//! the driver. Easy to get wrong: `*` cancels at every question, and nothing that was typed as
//! an answer is ever read as a command.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::super::command::{InitialResponse, Mechanism};
use super::super::extension::Security;
use super::{Asked, LINE_OCTETS_MAX, LoginAnswer, Session, Step, say};

/// Octets of a login or a password, at most; longer ones are simply wrong.
const SECRET_OCTETS_MAX: usize = 512;

/// Clients differ in padding; the octets are the same.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A login as the client typed it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Whom the client claims to be.
    pub login: String,
    /// The password: never logged.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credentials").field("login", &self.login).finish_non_exhaustive()
    }
}

/// What the client was asked for.
pub(super) enum Exchange {
    PlainResponse,
    LoginName,
    LoginPassword(String),
}

impl fmt::Debug for Exchange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::PlainResponse => "PlainResponse",
            Self::LoginName => "LoginName",
            Self::LoginPassword(_) => "LoginPassword",
        })
    }
}

impl Session {
    pub(super) fn begin_login(
        &mut self,
        mechanism: Mechanism,
        initial: Option<InitialResponse>,
        out: &mut Vec<u8>,
    ) -> Step {
        let refusal = if self.security == Security::Plain {
            Some("538 5.7.11 Log in under TLS only; send STARTTLS first")
        } else if !self.helo.as_ref().is_some_and(|helo| helo.extended) {
            Some("503 5.5.1 Send EHLO first")
        } else if self.is_logged_in {
            Some("503 5.5.1 You are logged in already")
        } else if self.transaction.is_some() {
            Some("503 5.5.1 Not within a message")
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return self.wrong(refusal, out);
        }
        let exchange = match mechanism {
            Mechanism::Plain => Exchange::PlainResponse,
            Mechanism::Login => Exchange::LoginName,
            Mechanism::Other => return self.wrong("504 5.5.4 Use AUTH PLAIN or AUTH LOGIN", out),
        };
        match initial {
            // RFC 4954 s4: `=` is an initial response of no octets.
            Some(initial) if initial.as_str() == "=" => self.answer_given(exchange, b"", out),
            Some(initial) => self.answer_given(exchange, initial.as_str().as_bytes(), out),
            None => {
                // Base64 of `Username:`, which clients of LOGIN expect.
                say(out, if mechanism == Mechanism::Plain { "334 " } else { "334 VXNlcm5hbWU6" });
                self.exchange = Some(exchange);
                Step::Next
            }
        }
    }

    pub(super) fn continue_login(&mut self, exchange: Exchange, line: &[u8], out: &mut Vec<u8>) -> Step {
        if line == b"*" {
            return self.wrong("501 5.7.0 Login cancelled", out);
        }
        if line.len() > LINE_OCTETS_MAX {
            return self.line_too_long(out);
        }
        self.answer_given(exchange, line, out)
    }

    fn answer_given(&mut self, exchange: Exchange, base64: &[u8], out: &mut Vec<u8>) -> Step {
        let decoded = BASE64.decode(base64.trim_ascii_end()).ok().map(Zeroizing::new);
        let Some(octets) = decoded else {
            return self.wrong("501 5.5.2 That is not base64", out);
        };
        match exchange {
            Exchange::PlainResponse => self.plain(&octets, out),
            Exchange::LoginName => {
                self.exchange = Some(Exchange::LoginPassword(String::from_utf8_lossy(&octets).into_owned()));
                // Base64 of `Password:`.
                say(out, "334 UGFzc3dvcmQ6");
                Step::Next
            }
            Exchange::LoginPassword(login) => self.ask_login(login.as_bytes(), &octets, out),
        }
    }

    /// RFC 4616 s2: authorization identity, NUL, login, NUL, password.
    fn plain(&mut self, octets: &[u8], out: &mut Vec<u8>) -> Step {
        let mut parts = octets.split(|octet| *octet == 0);
        let (Some(identity), Some(login), Some(password), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return self.wrong("501 5.5.2 PLAIN is identity NUL login NUL password, in base64", out);
        };
        // Nobody may act for somebody else.
        if !identity.is_empty() && identity != login {
            return self.login_failed(out);
        }
        self.ask_login(login, password, out)
    }

    fn ask_login(&mut self, login: &[u8], password: &[u8], out: &mut Vec<u8>) -> Step {
        let usable = |octets: &[u8]| {
            let text = std::str::from_utf8(octets).ok()?;
            ((1..=SECRET_OCTETS_MAX).contains(&text.len()) && !text.contains('\0')).then(|| text.to_owned())
        };
        let (Some(login), Some(password)) = (usable(login), usable(password).map(Zeroizing::new)) else {
            return self.login_failed(out);
        };
        self.asked = Some(Asked::Login);
        Step::CheckLogin(Credentials { login, password })
    }

    /// Answers [`Step::CheckLogin`], after the delay that the answer asks for.
    pub fn login_checked(&mut self, answer: LoginAnswer, out: &mut Vec<u8>) -> Step {
        let Some(Asked::Login) = self.asked.take() else { return self.out_of_step(out) };
        match answer {
            LoginAnswer::Accepted => {
                self.is_logged_in = true;
                self.login_failures = 0;
                say(out, "235 2.7.0 Logged in");
                Step::Next
            }
            LoginAnswer::Refused => self.login_failed(out),
            LoginAnswer::Unavailable => {
                say(out, "454 4.7.0 Logins are not possible now; try again later");
                self.count_login_failure(out)
            }
        }
    }

    fn login_failed(&mut self, out: &mut Vec<u8>) -> Step {
        say(out, "535 5.7.8 Login or password is wrong");
        self.count_login_failure(out)
    }

    fn count_login_failure(&mut self, out: &mut Vec<u8>) -> Step {
        self.login_failures = self.login_failures.saturating_add(1);
        if self.login_failures < self.settings.login_failures_max {
            return Step::Next;
        }
        self.close_with("4.7.0 Too many failed logins", out);
        Step::Close
    }
}
