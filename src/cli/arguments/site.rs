//! What can be typed after `postern site` and `postern classify`.

use clap::{Args, Subcommand};

use super::Ceiling;
use crate::mail::Domain;

#[derive(Debug, Subcommand)]
pub enum Site {
    /// List sites that mail goes to, and what holds each back
    List,
    /// Show every limit of a site, where it comes from, and which one binds now
    Show {
        /// A provider, a recipient domain, or a site's own name
        site: String,
        /// The virtual IP: an address or id
        #[arg(long, value_name = "VIP")]
        ip: String,
    },
    /// List the limits that were set
    Limits,
    /// Set limits; those left out stay as they are
    Set {
        #[command(flatten)]
        scope: SiteScope,
        #[command(flatten)]
        limits: SiteLimits,
    },
    /// Take back the limits that were set for exactly this
    Clear {
        #[command(flatten)]
        scope: SiteScope,
    },
    /// End a pause or slow-down now
    Release {
        /// A provider, a recipient domain, or a site's own name
        site: String,
        /// The virtual IP: an address or id
        #[arg(long, value_name = "VIP")]
        ip: String,
    },
    /// Warm a virtual IP for a site: so many messages a day, more each day that goes well
    Warm {
        /// A provider, a recipient domain, or a site's own name
        site: String,
        /// The virtual IP: an address or id
        #[arg(long, value_name = "VIP")]
        ip: String,
        /// Messages a day, step by step, instead of 50,100,200,400,800,1500,...
        #[arg(long, value_name = "MESSAGES", value_delimiter = ',')]
        ladder: Vec<u32>,
    },
    /// End a warm-up: the limits alone hold from now on
    StopWarming {
        /// A provider, a recipient domain, or a site's own name
        site: String,
        /// The virtual IP: an address or id
        #[arg(long, value_name = "VIP")]
        ip: String,
    },
}

/// What limits are for.
#[derive(Args, Debug)]
pub struct SiteScope {
    /// A provider, a recipient domain that stands for its site, or a site's own name; without it every site
    pub site: Option<String>,
    /// One recipient domain, beside the limits of its site
    #[arg(long, value_name = "DOMAIN", conflicts_with = "site")]
    pub domain: Option<Domain>,
    /// One virtual IP: an address or id
    #[arg(long, value_name = "VIP")]
    pub ip: Option<String>,
    /// One tenant, beside the limits of the site
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
}

/// Limits, for each virtual IP; `none` for no limit.
#[derive(Args, Debug)]
pub struct SiteLimits {
    /// Connections at a time
    #[arg(long, value_name = "NUMBER")]
    pub connections: Option<Ceiling>,
    /// Messages over one connection
    #[arg(long, value_name = "NUMBER")]
    pub messages_per_connection: Option<Ceiling>,
    /// New connections in any minute
    #[arg(long, value_name = "NUMBER")]
    pub connections_per_minute: Option<Ceiling>,
    /// Messages in any minute
    #[arg(long, value_name = "NUMBER")]
    pub messages_per_minute: Option<Ceiling>,
    /// Recipients in one transaction
    #[arg(long, value_name = "NUMBER")]
    pub recipients_per_transaction: Option<Ceiling>,
    /// Messages of this tenant for each of another when both wait
    #[arg(long, value_name = "NUMBER")]
    pub weight: Option<u32>,
}

#[derive(Args, Debug)]
pub struct Classify {
    /// The reply as it stands in a log, in quotes: "550 5.1.1 no such user"; ` / ` parts its lines
    pub reply: String,
    /// After which command it came: greeting, ehlo, starttls, auth, mail, rcpt, data, body or dot
    #[arg(long, value_name = "COMMAND", default_value = "rcpt")]
    pub after: String,
    /// Who said it, as `site list` names providers; without it the rules of all of them are tried
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
}
