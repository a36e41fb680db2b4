//! What can be typed after `postern stats`.

use clap::{Args, ValueEnum};

/// How time is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsStep {
    /// By hours
    Hour,
    /// By days
    Day,
    /// Not at all
    Total,
}

/// By what rows are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsBy {
    /// Whose mail
    Tenant,
    /// The SMTP account
    SmtpAccount,
    /// The sender's tags
    Tag,
    /// The recipients' domain
    Domain,
    /// Who receives for it
    Provider,
    /// The virtual IP
    Vip,
    /// The class of replies
    Class,
    /// The sending domain that signed it
    SendingDomain,
}

#[derive(Args, Debug)]
pub struct Stats {
    /// Only this tenant's mail
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// From when on: 2026-11-01 or 2026-11-01T12:00:00Z; 30 days ago if left out. Hours and days are those of UTC
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Up to when, not included; now if left out
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// How time is cut
    #[arg(long, value_enum, default_value = "day")]
    pub step: StatsStep,
    /// By what rows are told apart
    #[arg(long, value_enum)]
    pub by: Option<StatsBy>,
    /// Only mail of this login
    #[arg(long, value_name = "LOGIN")]
    pub account: Option<String>,
    /// Only mail with this tag
    #[arg(long)]
    pub tag: Option<String>,
    /// Only mail to this domain
    #[arg(long)]
    pub domain: Option<String>,
    /// Only mail to this provider
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Only mail accepted for this virtual IP
    #[arg(long, value_name = "ADDRESS")]
    pub vip: Option<String>,
    /// Only mail signed by this sending domain
    #[arg(long, value_name = "DOMAIN")]
    pub sending_domain: Option<String>,
    /// Show this many groups, the most frequent; the others are counted together
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=250))]
    pub limit: u16,
    /// The most frequent by this status, such as hardbounce, come first
    #[arg(long, value_name = "STATUS")]
    pub order: Option<String>,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}
