//! What an operator may set for delivery, with the documented defaults.

use std::sync::Arc;
use std::time::Duration;

use super::replies::Rules;
use super::shaping::{Limits, Providers};

/// Whether mail may go to addresses of this host or of private networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrivateAddresses {
    /// A public MX that names one is refused.
    #[default]
    Refused,
    /// For trials, tests and closed networks: our own addresses are allowed too.
    Allowed,
}

/// TLS towards mail exchangers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MxTls {
    /// STARTTLS where offered, plain text where it is not or fails.
    #[default]
    Opportunistic,
    /// Encryption or nothing; the certificate may be anything.
    Encrypted,
    /// Encryption with a certificate that verifies for the MX host's name, or nothing.
    Verified,
}

/// How long each phase may take (RFC 5321 s4.5.3.2); a peer that drips bytes gains nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands (60 s).
    pub connect: Duration,
    /// For the greeting (5 minutes, s4.5.3.2.1).
    pub greeting: Duration,
    /// For the reply to EHLO or HELO (5 minutes).
    pub hello: Duration,
    /// For STARTTLS and the handshake (2 minutes).
    pub starttls: Duration,
    /// For each step of AUTH (2 minutes).
    pub login: Duration,
    /// For the reply to MAIL (5 minutes, s4.5.3.2.2).
    pub mail: Duration,
    /// For each reply to RCPT (5 minutes, s4.5.3.2.3).
    pub rcpt: Duration,
    /// For the 354 (2 minutes, s4.5.3.2.4).
    pub data: Duration,
    /// For each write of message text (3 minutes, s4.5.3.2.5).
    pub body: Duration,
    /// For the reply to the final dot (10 minutes, s4.5.3.2.6).
    pub final_dot: Duration,
    /// For the reply to QUIT; the connection is closed anyway then (5 s).
    pub quit: Duration,
    /// For one transaction as a whole (1 hour).
    pub transaction: Duration,
    /// An attempt without any step forward for so long is aborted (12 minutes).
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            connect: secs(60),
            greeting: secs(300),
            hello: secs(300),
            starttls: secs(120),
            login: secs(120),
            mail: secs(300),
            rcpt: secs(300),
            data: secs(120),
            body: secs(180),
            final_dot: secs(600),
            quit: secs(5),
            transaction: secs(3_600),
            stall: secs(720),
        }
    }
}

/// Settings of delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The port of mail exchangers (25).
    pub mx_port: u16,
    /// TLS towards mail exchangers (opportunistic).
    pub mx_tls: MxTls,
    /// Mail to private addresses and to ourselves (refused).
    pub private_addresses: PrivateAddresses,
    /// Connections per site and virtual IP, at most; pauses of sites that fail (10; 30 s to 15 min).
    pub shaping: Limits,
    /// Connections at a time in all (1,000); the last twentieth is for tenants that have none.
    pub connections_max: usize,
    /// Of these, for one tenant's mail, so that its slow peers keep nobody else's mail waiting (750).
    pub connections_per_tenant_max: usize,
    /// Places that nothing is known of looked up at a time (100); the last twentieth is for tenants that
    /// have no lookup under way.
    pub lookups_max: usize,
    /// Of these, for one tenant's mail, so that its silent domains keep nobody else's mail waiting (75).
    pub lookups_per_tenant_max: usize,
    /// Places whose answer is too old looked up again at a time, beside the others (50).
    pub refreshes_max: usize,
    /// Of these, for one tenant's mail (37).
    pub refreshes_per_tenant_max: usize,
    /// If looking a place up again takes longer than this, the old answer is used meanwhile (1 s)...
    pub refresh_patience: Duration,
    /// ...but no longer than this beyond its time (5 minutes).
    pub site_stale_max: Duration,
    /// Messages over one connection, at most (500).
    pub messages_per_connection_max: usize,
    /// Messages before another lane of the same site gets its turn (100).
    pub messages_per_turn_max: usize,
    /// A connection is not used for new messages beyond this age (5 minutes).
    pub connection_age_max: Duration,
    /// An idle connection is kept so long (10 s).
    pub connection_idle_max: Duration,
    /// Idle connections kept, at most (200).
    pub idle_connections_max: usize,
    /// Recipients in one transaction, at most (100).
    pub recipients_per_transaction_max: usize,
    /// MX hosts of a domain looked at, at most (20).
    pub mx_hosts_max: usize,
    /// Addresses of one host used, at most (8).
    pub addresses_per_host_max: usize,
    /// Addresses tried for one connection, at most (5).
    pub addresses_tried_max: usize,
    /// The answer "where does this lane go" is kept so long (1 minute); DNS keeps its own TTLs.
    pub site_kept: Duration,
    /// A lane whose domain DNS did not answer for is asked about again after this (1 minute).
    pub lookup_pause: Duration,
    /// Outcomes of one connection that wait for the disk at a time (64).
    pub settling_max: usize,
    /// Messages that share the fate of one failed connection to their site, at most (1,000).
    pub failed_together_max: usize,
    /// Mail of a virtual IP that is missing on this host is looked at again after this (10 s).
    pub vip_check: Duration,
    /// Mail that an attempt dropped (aborted, panicked) is due again after this (10 s).
    pub given_back_pause: Duration,
    /// Running attempts may finish so long after a stop was asked for (25 s).
    pub grace: Duration,
    /// How long each phase may take.
    pub timeouts: Timeouts,
    /// Notices are paid at least so often (30 s).
    pub notices_every: Duration,
    /// The port of hosts that publish MTA-STS policies (443).
    pub policy_port: u16,
    /// Fetching a policy may take so long (20 s).
    pub policy_patience: Duration,
    /// Octets of a policy, at most (64 KiB).
    pub policy_bytes_max: usize,
    /// Kept policies are looked through so often, whether they must be fetched anew (1 hour).
    pub policies_every: Duration,
    /// Well-known receivers (those that come with the program).
    pub providers: Arc<Providers>,
    /// What replies mean (those that come with the program).
    pub replies: Arc<Rules>,
}

impl Default for Settings {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            mx_port: 25,
            mx_tls: MxTls::default(),
            private_addresses: PrivateAddresses::default(),
            shaping: Limits { connections_max: 10, pause_first: secs(30), pause_max: secs(900) },
            connections_max: 1_000,
            connections_per_tenant_max: 750,
            lookups_max: 100,
            lookups_per_tenant_max: 75,
            refreshes_max: 50,
            refreshes_per_tenant_max: 37,
            refresh_patience: secs(1),
            site_stale_max: secs(300),
            messages_per_connection_max: 500,
            messages_per_turn_max: 100,
            connection_age_max: secs(300),
            connection_idle_max: secs(10),
            idle_connections_max: 200,
            recipients_per_transaction_max: 100,
            mx_hosts_max: 20,
            addresses_per_host_max: 8,
            addresses_tried_max: 5,
            site_kept: secs(60),
            lookup_pause: secs(60),
            settling_max: 64,
            failed_together_max: 1_000,
            vip_check: secs(10),
            given_back_pause: secs(10),
            grace: secs(25),
            timeouts: Timeouts::default(),
            notices_every: secs(30),
            policy_port: 443,
            policy_patience: secs(20),
            policy_bytes_max: 64 * 1024,
            policies_every: secs(3_600),
            providers: Providers::built_in(),
            replies: Rules::built_in(),
        }
    }
}
