//! `postern domain ...`: what a tenant sends as, its keys, its return-path.

use clap::{Subcommand, ValueEnum};

use crate::mail::Domain;

#[derive(Debug, Subcommand)]
pub enum DomainCommand {
    /// Add a domain a tenant sends as; prints the DNS records to publish
    Add {
        /// The tenant
        tenant: String,
        /// The domain, as it stands after the @ in From; for the tenant @instance, the name notices come from
        domain: Domain,
    },
    /// List domains
    List {
        /// Of this tenant only
        tenant: Option<String>,
    },
    /// Look for the records in DNS now; without arguments, for those of every domain
    Verify {
        /// The tenant
        tenant: Option<String>,
        /// The domain
        domain: Option<Domain>,
    },
    /// Make new signing keys; prints the records to publish, the old keys sign until these are found
    Rotate {
        /// The tenant
        tenant: String,
        /// The domain
        domain: Domain,
        /// Show how far a rotation is, and when the old records may go
        #[arg(long)]
        status: bool,
        /// Drop the new keys of a rotation that is under way; the old ones go on signing
        #[arg(long, conflicts_with = "status")]
        cancel: bool,
    },
    /// Show a domain: state, keys, records
    Status {
        /// The tenant
        tenant: String,
        /// The domain
        domain: Domain,
    },
    /// Show every record of a domain as it should be and as DNS has it now
    Records {
        /// The tenant
        tenant: String,
        /// The domain
        domain: Domain,
    },
    /// Print the records of a domain as lines of a zone file
    Zone {
        /// The tenant
        tenant: String,
        /// The domain
        domain: Domain,
    },
    /// Judge a domain by the rules of Gmail, Yahoo and Microsoft for whoever sends much
    Readiness {
        /// The tenant
        tenant: String,
        /// The domain
        domain: Domain,
    },
    /// Let a tenant send as a domain without a record in its DNS
    Trust {
        /// The tenant
        tenant: String,
        /// The domain
        domain: Domain,
        /// Ask for the record again
        #[arg(long)]
        revoke: bool,
    },
    /// Whether names below the domain are covered by it
    Subdomains {
        /// The tenant
        tenant: String,
        /// The domain
        domain: Domain,
        /// Covered or not
        cover: Cover,
    },
    /// The name below the domain to which notices about its mail come; prints the DNS records to publish
    ReturnPath {
        /// The tenant
        tenant: String,
        /// The domain
        domain: Domain,
        /// A name below the domain; bounce below it if not given
        #[arg(long)]
        name: Option<Domain>,
        /// Show it as it is
        #[arg(long, conflicts_with_all = ["name", "verify", "off"])]
        status: bool,
        /// Look for its records in DNS now
        #[arg(long, conflicts_with_all = ["name", "off"])]
        verify: bool,
        /// Remove it: mail is sent with the client's reverse-path
        #[arg(long, conflicts_with = "name")]
        off: bool,
    },
    /// Remove a domain and erase its keys
    Remove {
        /// The tenant
        tenant: String,
        /// The domain
        domain: Domain,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Cover {
    /// `mail.example.com` may be used when `example.com` is verified.
    Covered,
    /// Each name needs a record of its own.
    Separate,
}
