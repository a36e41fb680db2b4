//! The vocabulary of mail and its formats. Pure: no sockets, no clock, no tasks.
//!
//! Recipe: [`Address`] and [`Domain`] read what people and peers wrote; an [`Envelope`] and a
//! [`Draft`] are one message on its way in; [`Sealed`] is final; [`Reply`] is what SMTP said.

mod address;
mod canonical;
mod compose;
mod dialogue;
pub mod dkim;
pub mod dsn;
mod envelope;
mod header;
mod id;
mod labels;
mod mailbox;
mod masks;
mod message;
mod mime;
mod proof;
pub mod returned;
mod signed;
mod spill;
mod status;

pub use address::{Address, AddressError, DOMAIN_OCTETS_MAX, Domain, LOCAL_PART_OCTETS_MAX};
pub use compose::{
    ATTACHMENTS_MAX, Attachment, ComposeError, Composition, FREE_FIELDS_MAX, SUBJECT_OCTETS_MAX, compose, read_whole,
};
pub use dialogue::{
    CUT, DIALOGUE_OCTETS_MAX, Dialogue, Heard, Named, Over, Place, STEP_OCTETS_MAX, Sent, Step, StoredDialogue, cut,
    reached,
};
pub use envelope::{
    BodyType, Class, Envelope, ForwardPath, Hold, MailParameters, Notify, RequireTls, Ret, ReversePath, Smtputf8,
};
pub use header::{Field, HeaderBlock, HeaderError};
pub use id::{BodyId, IdUnreadable, KeyId, QueueId, SmtpAccountId, TenantId, UserId, VipId, WebhookId};
pub use labels::{
    HeaderDialect, LabelError, Labels, METADATA_MAX, METADATA_NAME_OCTETS_MAX, METADATA_VALUE_OCTETS_MAX,
    TAG_OCTETS_MAX, TAGS_MAX,
};
pub use mailbox::{MAILBOXES_MAX, Mailbox, MailboxError, parse_mailboxes};
pub use masks::{ADDRESS_MASK, Masks, RECIPIENT_MASK, SENDER_MASK, without_addresses};
pub use message::{BODY_IN_MEMORY_BYTES_MAX, Body, Draft, SLICE_BYTES, Sealed, Spill};
pub use mime::{
    LINE_OCTETS_MAX, MediaType, PART_FIELDS_MAX, PART_HEADER_OCTETS_MAX, Stretch, has_long_line, repair_base64,
    repair_quoted_printable, split_entity, split_multipart, split_part, to_base64, to_quoted_printable,
};
pub use proof::{SIGNATURES_MAX, proven_domains, signature_keys};
pub use signed::{Signed, offers_one_click};
pub use spill::BodyWriter;
pub use status::{EnhancedStatus, Refusal, Reply, ReplyCode, Severity, printable, printable_lines};
