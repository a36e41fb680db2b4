//! What can be typed after `postern messages`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Messages {
    /// Find messages, the newest first; everything that is given must fit
    Search(Box<MessagesSearch>),
    /// Show one message: every try, every reply, every event; also after it has left the queue
    Show {
        /// The queue id
        id: String,
        /// Show what was said in each try too, line by line, with times
        #[arg(long)]
        dialogue: bool,
    },
    /// Hand one in, of parts or whole
    Send(Box<MessagesSend>),
    /// Hand several in: a file with what POST /messages/batch takes, or the list of messages alone
    SendBatch {
        /// The file; - is standard input
        file: PathBuf,
        /// What makes it safe to give the same command again within 24 hours
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Show how far the index that is searched is
    Index,
    /// Make the index that is searched anew, from the event log
    Rebuild,
}

#[derive(Args, Debug)]
pub struct MessagesSend {
    /// Whose mail it is
    #[arg(long, value_name = "NAME")]
    pub tenant: String,
    /// The SMTP account whose class and limits apply: its login
    #[arg(long, value_name = "LOGIN")]
    pub account: Option<String>,
    /// Its sender: an address, or "Name <address>"
    #[arg(long, value_name = "SENDER", required_unless_present = "raw")]
    pub from: Option<String>,
    /// A recipient; give it several times
    #[arg(long, value_name = "RECIPIENT")]
    pub to: Vec<String>,
    /// A recipient of a copy; give it several times
    #[arg(long, value_name = "RECIPIENT")]
    pub cc: Vec<String>,
    /// A recipient the others do not see; give it several times
    #[arg(long, value_name = "RECIPIENT")]
    pub bcc: Vec<String>,
    /// Where answers go
    #[arg(long, value_name = "ADDRESS")]
    pub reply_to: Vec<String>,
    /// Where notices go
    #[arg(long, value_name = "ADDRESS")]
    pub return_path: Option<String>,
    /// One line
    #[arg(long, value_name = "TEXT")]
    pub subject: Option<String>,
    /// The text
    #[arg(long, value_name = "TEXT", conflicts_with = "text_file")]
    pub text: Option<String>,
    /// A file with the text; - is standard input
    #[arg(long, value_name = "FILE")]
    pub text_file: Option<PathBuf>,
    /// A file with the text as HTML
    #[arg(long, value_name = "FILE")]
    pub html_file: Option<PathBuf>,
    /// A file to attach; give it several times
    #[arg(long, value_name = "FILE")]
    pub attach: Vec<PathBuf>,
    /// A file with the whole message (RFC 5322) instead; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "subject", "text", "text_file", "html_file", "attach", "cc", "bcc", "reply_to"])]
    pub raw: Option<PathBuf>,
    /// What it is counted by; give it several times
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// What comes back with everything told of it; give it several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub metadata: Vec<String>,
    /// Not before this moment: 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// What makes it safe to give the same command again within 24 hours
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
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
