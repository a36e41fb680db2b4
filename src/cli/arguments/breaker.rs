//! What can be typed after `postern breaker`.

use clap::{Args, Subcommand};

use super::MailClass;

#[derive(Debug, Subcommand)]
pub enum Breaker {
    /// List SMTP accounts that are paused, and why
    List,
    /// Show what is counted of an SMTP account, and the limits that is judged by
    Show {
        /// The login
        login: String,
    },
    /// List the limits that were set
    Limits,
    /// Set limits; those left out stay as they are. The most special wins: account, tenant, class, configuration
    Set {
        #[command(flatten)]
        scope: BreakerScope,
        #[command(flatten)]
        limits: BreakerLimits,
    },
    /// Take back the limits that were set for exactly this
    Clear {
        #[command(flatten)]
        scope: BreakerScope,
    },
    /// Leave an SMTP account alone, whatever the limits say
    Waive {
        /// The login
        login: String,
        /// Why, in your own words
        #[arg(long, value_name = "TEXT", required_unless_present = "revoke")]
        reason: Option<String>,
        /// End by itself after this, such as 12h or 3d; without it, only by --revoke
        #[arg(long = "for", value_name = "SPAN", value_parser = crate::cli::output::read_span)]
        lasting: Option<u64>,
        /// End the waiver
        #[arg(long, conflicts_with_all = ["reason", "lasting"])]
        revoke: bool,
    },
}

/// Whose limits.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct BreakerScope {
    /// Every SMTP account of this class
    #[arg(long, value_enum)]
    pub class: Option<MailClass>,
    /// Every SMTP account of this tenant
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// This SMTP account
    #[arg(long, value_name = "LOGIN")]
    pub account: Option<String>,
}

/// The limits; 0 switches one off.
#[derive(Args, Clone, Copy, Debug)]
pub struct BreakerLimits {
    /// Of recipients within an hour, so many in 100 may not exist
    #[arg(long, value_name = "PERCENT")]
    pub failures: Option<u32>,
    /// Of recipients within an hour, so many in 100 may be refused for reputation or content
    #[arg(long, value_name = "PERCENT")]
    pub blocks: Option<u32>,
    /// Recipients within an hour, before these two are judged
    #[arg(long, value_name = "RECIPIENTS")]
    pub recipients_min: Option<u64>,
    /// Of deliveries within a day, so many in 1,000 may be complained about
    #[arg(long, value_name = "PER THOUSAND")]
    pub complaints: Option<u32>,
    /// Messages within an hour, in multiples of what is usual
    #[arg(long, value_name = "FACTOR")]
    pub volume: Option<u32>,
    /// Messages within an hour, before the volume is judged
    #[arg(long, value_name = "MESSAGES")]
    pub volume_min: Option<u64>,
}
