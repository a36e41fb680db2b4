//! The words a failure is told with: what a peer said, after which command, and of how many recipients at once. Pure.
//!
//! Recipe: whoever judges a reply writes with [`Said::words`]; whoever heeds the event reads with [`Said::read`].
//! Easy to get wrong: a reply to DATA or to the final dot is one for all recipients of a transaction, and which of
//! them it means is known only if there is one, or if it names him.

/// The command whose reply speaks of one recipient, always.
pub const AFTER_RCPT: &str = "RCPT";
/// Commands whose reply speaks of a message as a whole, or of its sender.
pub const AFTER_MAIL: &str = "MAIL";
/// What stands after the command if the reply has the recipient's address in it.
const NAMED: &str = ", naming the recipient";

/// Of whom in a transaction something was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Of one.
    One,
    /// Of so many at once, none of whom it is known to mean.
    Several(usize),
    /// Of several at once, and this one's address is in it.
    Named,
}

/// A failure's detail, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said<'d> {
    /// What was said.
    pub reply: &'d str,
    /// After which command; `None` if it is no reply to a command of ours.
    pub after: Option<&'d str>,
    /// Of whom.
    pub of: Audience,
}

impl<'d> Said<'d> {
    /// As it is told.
    pub fn words(reply: &str, after: &str, of: Audience) -> String {
        match of {
            Audience::One => format!("{reply} (after {after})"),
            Audience::Several(count) => format!("{reply} (after {after} for {count} recipients)"),
            Audience::Named => format!("{reply} (after {after}{NAMED})"),
        }
    }

    /// What was told.
    pub fn read(detail: &'d str) -> Self {
        let told = detail.rsplit_once(" (after ");
        let Some((reply, after)) = told.and_then(|(reply, rest)| Some((reply, rest.strip_suffix(')')?))) else {
            return Self { reply: detail, after: None, of: Audience::One };
        };
        if let Some(after) = after.strip_suffix(NAMED) {
            return Self { reply, after: Some(after), of: Audience::Named };
        }
        let counted = after.rsplit_once(" for ");
        let counted =
            counted.and_then(|(after, count)| Some((after, count.strip_suffix(" recipients")?.parse().ok()?)));
        match counted {
            Some((after, count)) => Self { reply, after: Some(after), of: Audience::Several(count) },
            None => Self { reply, after: Some(after), of: Audience::One },
        }
    }

    /// Whether it is said of each of the `recipients` that an event names: only that may be held against one.
    pub fn is_of_each(&self, recipients: usize) -> bool {
        match (self.after, self.of) {
            (Some(AFTER_MAIL), _) | (_, Audience::Several(_)) => false,
            (None | Some(AFTER_RCPT), _) | (_, Audience::Named) => true,
            // Replies that were recorded before they told their number.
            (Some(_), Audience::One) => recipients <= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let reply = "550 5.1.1 gone (after all)";
        for of in [Audience::One, Audience::Several(2), Audience::Named] {
            let words = Said::words(reply, "final dot", of);
            assert_eq!(Said::read(&words), Said { reply, after: Some("final dot"), of }, "{words}");
        }
        for detail in ["no reply in time after RCPT", "550 gone (after all", ""] {
            assert_eq!(Said::read(detail), Said { reply: detail, after: None, of: Audience::One });
        }
    }

    #[test]
    fn what_is_said_of_several_at_once_is_held_against_none_but_whom_it_names() {
        for (detail, recipients, expected) in [
            ("550 5.1.1 gone (after RCPT)", 3, true),
            ("550 5.1.1 gone (after MAIL)", 1, false),
            ("550 5.1.1 gone (after final dot)", 1, true),
            ("550 5.1.1 gone (after final dot)", 2, false),
            ("550 5.1.1 gone (after DATA for 2 recipients)", 1, false),
            ("550 5.1.1 gone (after final dot, naming the recipient)", 2, true),
            ("550 5.1.1 gone", 2, true),
        ] {
            assert_eq!(Said::read(detail).is_of_each(recipients), expected, "{detail} {recipients}");
        }
    }
}
