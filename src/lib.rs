//! postern: your own sending service in one binary.
//!
//! Mail enters through one function, is made final by a pipeline, is owed by a queue, is
//! attempted by delivery, and every fact is written to one event log.
//! Rooms that *decide* are pure; rooms that *touch the world* are few and at the bottom.
//! Doors (SMTP, web, command line) translate and never decide.
//! Each room shows one face (`mod.rs`) and hides its files.
//! One file, `daemon.rs`, knows how everything is connected.

// floor: tiny tools any room may use
pub mod background; // stop signal, task set, periodic loops
pub mod calendar; // the time by which things lapse
pub mod ext; // small things std lacks
pub mod gate; // whether new work is begun
pub mod metrics; // every metric, declared once
pub mod seal; // secrets at rest, under the master key

// words: pure
pub mod access; // who may do what
pub mod mail; // addresses, envelopes, messages, replies, notices, signatures
pub mod smtp;
pub mod trace; // live sessions for whoever follows them // commands, replies and sessions of SMTP, both directions

// world: the only code that opens files and sockets
pub mod net; // DNS, dialling from a chosen address, TLS
pub mod store; // durable records and message bodies

// records: facts people manage or we learned
pub mod accounts; // tenants, SMTP accounts, limits
pub mod domains; // sending domains and their keys
pub mod events; // the append-only log of what happened
pub mod notifications; // what people should know without looking
pub mod operations; // imports and exports of lists
pub mod people; // who administers: users, sessions, API keys
pub mod records; // what the rooms of records share: load, change, audit
pub mod routing; // recipient -> lane
pub mod search; // which messages fit, over an index of them
pub mod statistics; // what happened to recipients, in numbers
pub mod suppression; // recipients a tenant never mails
pub mod vips; // virtual IPs
pub mod webhooks; // who is told what happened

// flow: one message's life
pub mod breaker; // pauses SMTP accounts whose mail goes wrong
pub mod delivery; // tries to pay what is owed
pub mod feedback; // what comes back: return-paths, notices, complaints
pub mod intake; // the only way mail gets in
pub mod pipeline; // turns a draft into final bytes
pub mod queue; // what is still owed
pub mod submission; // the SMTP door
pub mod tlsrpt; // what TLS came to, reported to recipient domains once a day

pub mod tenancy; // tenants that leave: deletion after a grace period

// copies
pub mod backup; // taken while serving, sealed; restored; one engine to another
pub mod keyring; // changing the master key

// doors over HTTP and the shell
pub mod cli; // sub-commands
pub mod web; // health and metrics; the admin API on the local socket

// trials
pub mod sink; // a throwaway receiving MX
pub mod trial; // `postern try`

// roof
pub mod config; // the file, checked, as one Settings per room
pub mod daemon; // builds every room, starts and stops them
