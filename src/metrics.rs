//! Every metric: its name, kind, unit and help, declared once. Rooms use the constants with the
//! macros of the `metrics` crate; a metric that is not in [`ALL`] does not exist.
//!
//! Labels stay few: never an address, a login, a recipient domain.

/// What kind a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution, in seconds or bytes as the name says.
    Histogram,
}

/// Messages for which a 250 was said.
pub const ACCEPTED: &str = "postern_messages_accepted_total";
/// Messages refused by the pipeline, label `code`.
pub const REFUSED: &str = "postern_messages_refused_total";
/// Recipients delivered.
pub const DELIVERED: &str = "postern_recipients_delivered_total";
/// Attempts deferred, by recipient.
pub const DEFERRED: &str = "postern_recipients_deferred_total";
/// Recipients given up.
pub const BOUNCED: &str = "postern_recipients_bounced_total";
/// Sessions open now, label `port`.
pub const SESSIONS: &str = "postern_smtp_sessions";

/// All of them, with kind and help.
pub const ALL: &[(&str, Kind, &str)] = &[
    (ACCEPTED, Kind::Counter, "Messages for which a 250 was said"),
    (REFUSED, Kind::Counter, "Messages refused by the pipeline, by reply code"),
    (DELIVERED, Kind::Counter, "Recipients delivered"),
    (DEFERRED, Kind::Counter, "Recipients deferred, once for each attempt"),
    (BOUNCED, Kind::Counter, "Recipients given up for good"),
    (SESSIONS, Kind::Gauge, "SMTP sessions open now, by port"),
];

/// Registers the help texts with the installed recorder.
pub fn describe() {
    for (name, kind, help) in ALL {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *help),
            Kind::Gauge => metrics::describe_gauge!(*name, *help),
            Kind::Histogram => metrics::describe_histogram!(*name, *help),
        }
    }
}
