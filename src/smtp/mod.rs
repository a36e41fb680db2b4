//! SMTP as words and states, both directions (RFC 5321). Pure: no sockets, no clock, no tasks.
//!
//! Recipe, server: a [`Session`] greets; each line without its CRLF goes to [`Session::line`],
//! which writes replies and says by a [`Step`] what its driver must do; a [`DataReader`] reads
//! the message. Recipe, client: a [`ReplyParser`] is fed with bytes, [`Extensions`] reads the
//! reply to EHLO, a [`DotStuffer`] writes the message.

mod command;
mod data;
mod extension;
mod reply;
mod session;

pub use command::{Command, CommandError, InitialResponse, MailCommand, Mechanism, decode_xtext, encode_xtext};
pub use data::{BareLineEnds, DataFault, DataLimits, DataReader, DotStuffer, Progress};
pub use extension::{Duty, Extensions, Offer, PeerLimits, Security};
pub use reply::{MalformedReply, REPLY_LINE_OCTETS_MAX, REPLY_LINES_MAX, REPLY_OCTETS_MAX, ReplyParser, write_reply};
pub use session::{Credentials, LINE_OCTETS_MAX, LoginAnswer, Session, Settings, Step};
