//! One test binary for everything that needs more than one room.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod api_clients;
mod backup;
mod clients;
mod composure;
mod config_mistakes;
mod crash;
mod daemon_life;
mod dialogues;
mod disk_full;
mod dkim_verifiers;
mod dnssec;
mod faults;
mod figures;
mod fuzz;
mod hardening;
#[allow(dead_code, reason = "shared by tests that come and go")]
mod harness;
mod import_memory;
mod interop;
mod isolation;
mod lists;
mod notices;
mod notifications;
mod once;
mod power_cut;
mod scale;
mod scenarios;
mod search;
mod secrets;
mod sending_by_http;
mod soak;
mod statistics;
mod systemd;
mod tidy;
mod trial;
mod upgrade;
mod webhooks;
