//! Arguments of the commands about people: who they are, what they may, what they did.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Who changed what, newest first: of the instance, or of one tenant
    List {
        /// The tenant; without it, what belongs to no tenant
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Entries to show
        #[arg(long, value_name = "NUMBER", default_value_t = 50)]
        limit: usize,
    },
    /// Check that no entry was changed, removed or inserted; exits with 1 if one was
    Verify {
        /// The tenant; without it, the instance's own log
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// What an earlier check printed and was kept elsewhere: that entry must still be there
        #[arg(long, value_name = "NUMBER:HASH")]
        expect: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum User {
    /// Invite somebody; prints a one-time link by which he chooses his password
    Invite {
        /// The tenant, or @instance
        tenant: String,
        /// The e-mail address he logs in with
        email: String,
        /// instance-admin, owner, admin, developer, analyst or support
        #[arg(long, value_name = "ROLE")]
        role: String,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        name: String,
        /// Only this SMTP account, to read or to write: LOGIN=read; give it several times
        #[arg(long, value_name = "LOGIN=HOW")]
        account: Vec<String>,
    },
    /// Change somebody's role, name, networks or SMTP accounts; what is not given stays
    Set(Box<UserSet>),
    /// People of a tenant, or of the instance (@instance)
    List {
        /// The tenant, or @instance
        tenant: String,
    },
    /// One person and its sessions
    Show {
        /// The person's id
        id: String,
    },
    /// Lock somebody out at once; his sessions end
    Lock {
        /// The person's id
        id: String,
    },
    /// Let him in again
    Unlock {
        /// The person's id
        id: String,
    },
    /// Print a one-time link by which he chooses a new password (30 minutes)
    Reset {
        /// The person's id
        id: String,
    },
    /// Take his second factors away, passkeys too, when the device is lost; his sessions end
    ResetFactor {
        /// The person's id
        id: String,
    },
    /// End all his sessions
    EndSessions {
        /// The person's id
        id: String,
    },
    /// End one of his sessions
    EndSession {
        /// The person's id
        id: String,
        /// The session, as `postern user show` names it, or more of it
        session: String,
    },
    /// Remove him
    Remove {
        /// The person's id
        id: String,
    },
    /// Print a one-time link to make the instance's first admin with (a day)
    SetUpLink,
    /// Follow a one-time link: reads the new password from standard input
    Redeem {
        /// What the link says after #
        token: String,
        /// The admin's e-mail address; for the set-up link only
        #[arg(long, value_name = "ADDRESS")]
        email: Option<String>,
    },
    /// Which roles must have a second factor; without --role, shows it
    RequireFactor {
        /// The tenant, or @instance
        tenant: String,
        /// A role; give it several times, or "none"
        #[arg(long, value_name = "ROLE")]
        role: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub struct UserSet {
    /// The person's id
    pub id: String,
    /// owner, admin, developer, analyst or support
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// For people
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Where he may log in from: an address or network; give it several times, all of them
    #[arg(long, value_name = "NETWORK", conflicts_with = "from_anywhere")]
    pub from: Vec<String>,
    /// Let him log in from anywhere
    #[arg(long)]
    pub from_anywhere: bool,
    /// Bind him to this SMTP account, to read or to write: LOGIN=read; give it several times, all of them
    #[arg(long, value_name = "LOGIN=HOW", conflicts_with_all = ["all_accounts", "no_accounts"])]
    pub account: Vec<String>,
    /// Let him have all SMTP accounts, as his role says
    #[arg(long, conflicts_with = "no_accounts")]
    pub all_accounts: bool,
    /// Let him have none
    #[arg(long)]
    pub no_accounts: bool,
}

#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make an API key; prints its text once
    Add {
        /// The tenant, or @instance
        tenant: String,
        /// What it may: resource:action, such as domains:read; give it several times
        #[arg(long, value_name = "SCOPE", required = true)]
        scope: Vec<String>,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        name: String,
        /// Where it may come from: an address or network; give it several times
        #[arg(long, value_name = "NETWORK")]
        from: Vec<String>,
        /// Only this sending domain; give it several times
        #[arg(long, value_name = "DOMAIN")]
        domain: Vec<crate::mail::Domain>,
        /// When it ends: 2027-01-31T12:00:00Z
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
    },
    /// Keys of a tenant, or of the instance (@instance)
    List {
        /// The tenant, or @instance
        tenant: String,
    },
    /// One key
    Show {
        /// The key's id
        id: String,
    },
    /// Change a key's name, networks or end; what is not given stays
    Set {
        /// The key's id
        id: String,
        /// For people
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
        /// Where it may come from: an address or network; give it several times, all of them
        #[arg(long, value_name = "NETWORK", conflicts_with = "from_anywhere")]
        from: Vec<String>,
        /// Let it come from anywhere
        #[arg(long)]
        from_anywhere: bool,
        /// When it ends: 2027-01-31T12:00:00Z, or never
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
    },
    /// Give a key a new text; the old one stays good for a while
    Rotate {
        /// The key's id
        id: String,
        /// Hours the old text stays good
        #[arg(long, value_name = "NUMBER", default_value_t = 24)]
        overlap_hours: u32,
    },
    /// End a key at once
    Remove {
        /// The key's id
        id: String,
    },
}
