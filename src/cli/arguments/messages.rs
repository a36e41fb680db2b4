//! What can be typed after `postern messages`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Messages {
    /// Find messages, the newest first; everything that is given must fit
    Search(Box<MessagesSearch>),
    /// Show one message: every try, every reply, every event; also after it has left the queue
    Show {
        /// The queue id
        id: String,
    },
    /// Show how far the index that is searched is
    Index,
    /// Make the index that is searched anew, from the event log
    Rebuild,
}

#[derive(Args, Debug)]
pub struct MessagesSearch {
    /// Only this tenant's
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Accepted at this moment or later: 2026-11-01 or 2026-11-01T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Accepted before this moment
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// To this address
    #[arg(long, value_name = "ADDRESS")]
    pub to: Option<String>,
    /// From this address or domain, of the envelope or the header
    #[arg(long, value_name = "ADDRESS")]
    pub sender: Option<String>,
    /// With a subject that has words that begin so
    #[arg(long, value_name = "WORDS")]
    pub subject: Option<String>,
    /// With this Message-ID
    #[arg(long, value_name = "ID")]
    pub message_id: Option<String>,
    /// With this queue id
    #[arg(long)]
    pub id: Option<String>,
    /// With a tag that begins so
    #[arg(long)]
    pub tag: Option<String>,
    /// With a recipient in this state: injected, ok, deferred, softbounce, hardbounce, spambounce, dropped, cancelled,
    /// complaint, unsubscribe
    #[arg(long)]
    pub status: Option<String>,
    /// To a domain that begins so
    #[arg(long)]
    pub domain: Option<String>,
    /// To a provider whose name begins so
    #[arg(long)]
    pub provider: Option<String>,
    /// With replies that have words that begin so, such as 5.7.1 or blocked
    #[arg(long, value_name = "WORDS")]
    pub reply: Option<String>,
    /// That came by this login
    #[arg(long, value_name = "LOGIN")]
    pub account: Option<String>,
    /// Show this many
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
}
