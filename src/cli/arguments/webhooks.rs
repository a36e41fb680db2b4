//! Arguments of `postern webhook`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Switch;

#[derive(Debug, Subcommand)]
pub enum Webhook {
    /// Make a webhook; prints its secret once
    Add(WebhookAdd),
    /// Webhooks of a tenant, and how each does
    List {
        /// The tenant
        tenant: String,
    },
    /// One webhook
    Show(WebhookName),
    /// Change a webhook; one that is enabled again is told of what happens from then on
    Set(WebhookSet),
    /// Give it a new secret; requests are signed with both for a while
    Rotate {
        #[command(flatten)]
        which: WebhookName,
        /// Hours the old secret is used too
        #[arg(long, value_name = "NUMBER", default_value_t = 24)]
        overlap_hours: u32,
    },
    /// Make one request that says it is a test; exits with 1 if it was not taken
    Test(WebhookName),
    /// What became of each request, newest first
    Attempts {
        #[command(flatten)]
        which: WebhookName,
        /// Attempts to show
        #[arg(long, value_name = "NUMBER", default_value_t = 50)]
        limit: usize,
    },
    /// Send past events again, each with the id it had: one request, or all of a window
    Replay(WebhookReplay),
    /// Remove a webhook and what is known of its requests
    Remove(WebhookName),
}

#[derive(Args, Debug)]
pub struct WebhookName {
    /// The tenant
    pub tenant: String,
    /// The webhook's id
    pub id: String,
}

#[derive(Args, Debug)]
pub struct WebhookAdd {
    /// The tenant
    pub tenant: String,
    /// Where requests go: https://..., at port 443 or one from 1024 on
    pub url: String,
    /// Where they go when that one does not take them
    #[arg(long, value_name = "URL")]
    pub secondary_url: Option<String>,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub name: String,
    /// What it is told of, such as message.bounced; give it several times; without it all but message.deferred
    #[arg(long, value_name = "EVENT")]
    pub event: Vec<String>,
    /// Events in one request, at most
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub batch: u16,
    /// The user of basic authentication
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// A file with its password; `-` reads standard input
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct WebhookSet {
    #[command(flatten)]
    pub which: WebhookName,
    /// Where requests go
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Where they go when that one does not take them; `none` for nowhere
    #[arg(long, value_name = "URL")]
    pub secondary_url: Option<String>,
    /// For people
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// What it is told of; give it several times
    #[arg(long, value_name = "EVENT")]
    pub event: Vec<String>,
    /// Events in one request, at most
    #[arg(long, value_name = "NUMBER")]
    pub batch: Option<u16>,
    /// Whether it is told anything
    #[arg(long, value_name = "YES|NO")]
    pub enabled: Option<Switch>,
    /// The user of basic authentication; `none` for no authentication
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// A file with its password; `-` reads standard input
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["attempt", "from"]))]
pub struct WebhookReplay {
    #[command(flatten)]
    pub which: WebhookName,
    /// The request of this attempt
    #[arg(long, value_name = "ID")]
    pub attempt: Option<String>,
    /// Events from this moment on: 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Events before this moment; without it, before now
    #[arg(long, value_name = "TIME", requires = "from")]
    pub to: Option<String>,
}
