//! `postern suppression ...`: the blacklists and whitelists of tenants and SMTP accounts.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Which list.
#[derive(Debug, Args)]
pub struct ListName {
    /// The whitelist: mailed although it is on a blacklist, unless the recipient complained or unsubscribed
    #[arg(long)]
    pub white: bool,
    /// Only for the mail of this SMTP account
    #[arg(long, value_name = "LOGIN")]
    pub account: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Suppression {
    /// Never mail this address, or this whole domain
    Add {
        /// The tenant
        tenant: String,
        /// Addresses, or domains for all of their addresses
        #[arg(required = true)]
        subjects: Vec<String>,
        /// What for: manual, hard_bounce, complaint, unsubscribe
        #[arg(long, value_name = "WORD")]
        reason: Option<String>,
        /// When it lapses: 2027-01-31T12:00:00Z
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        /// Why, for people
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
        #[command(flatten)]
        list: ListName,
    },
    /// Mail it again
    Remove {
        /// The tenant
        tenant: String,
        /// Addresses or domains
        #[arg(required = true)]
        subjects: Vec<String>,
        #[command(flatten)]
        list: ListName,
    },
    /// List what a tenant never mails
    List {
        /// The tenant
        tenant: String,
        /// Only what begins with this
        #[arg(long, value_name = "TEXT")]
        beginning: Option<String>,
        /// Only what is there for this: manual, import, hard_bounce, complaint, unsubscribe
        #[arg(long, value_name = "WORD")]
        reason: Option<String>,
        #[command(flatten)]
        list: ListName,
    },
    /// Put the lines of a CSV file on a list; rejected lines are printed
    Import {
        /// The tenant
        tenant: String,
        /// The file: subject, reason, note, expires; or with names in its first line
        file: PathBuf,
        /// For lines that name no reason
        #[arg(long, value_name = "WORD")]
        reason: Option<String>,
        #[command(flatten)]
        list: ListName,
    },
    /// Write a list to a CSV file
    Export {
        /// The tenant
        tenant: String,
        /// The file; it must not be there yet
        file: PathBuf,
        /// SHA-256 of each address instead of the address
        #[arg(long)]
        hashed: bool,
        #[command(flatten)]
        list: ListName,
    },
    /// Show, or set, when what happens to mail puts a recipient on the list
    Rules {
        /// The tenant
        tenant: String,
        /// Hard bounces before an address is stopped: 1 to 3
        #[arg(long, value_name = "COUNT")]
        hard_bounces: Option<u8>,
        /// Whose list: tenant, or account for the one that sent the message
        #[arg(long, value_name = "WORD", value_parser = ["tenant", "account"])]
        scope: Option<String>,
        /// Days an entry for hard bounces is good for; 0 for ever
        #[arg(long, value_name = "DAYS")]
        hard_bounce_days: Option<u32>,
        /// The same for complaints
        #[arg(long, value_name = "DAYS")]
        complaint_days: Option<u32>,
        /// The same for those who unsubscribed
        #[arg(long, value_name = "DAYS")]
        unsubscribe_days: Option<u32>,
    },
    /// List imports and exports, of a tenant or of all, newest first
    Operations {
        /// Only of this tenant; without it of all
        tenant: Option<String>,
        /// Only import, export or tenant-export
        #[arg(long, value_name = "KIND")]
        kind: Option<String>,
        /// Only waiting, running, done, cancelled or failed
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// Only with this in the id, who began it, the SMTP account, or why it failed
        #[arg(long, value_name = "TEXT")]
        text: Option<String>,
        /// So many of the newest
        #[arg(long, value_name = "COUNT", default_value_t = 250)]
        limit: usize,
    },
    /// Stop an import or export; what it did stays
    Cancel {
        /// The tenant
        tenant: String,
        /// Its id
        operation: String,
    },
}
