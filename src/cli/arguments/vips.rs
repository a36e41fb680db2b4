//! What can be typed after `postern vip`.

use std::net::IpAddr;

use clap::{Args, Subcommand};

use crate::mail::Domain;

#[derive(Debug, Subcommand)]
pub enum Vip {
    /// Add a virtual IP
    Add(VipAdd),
    /// List all virtual IPs, and whether each is on this host
    List,
    /// Change what the world sees of it: its EHLO name, its public addresses; without options, show it
    Set(VipSet),
    /// The SPF record that permits every virtual IP, as lines of a zone file, for tenants to include
    Spf,
    /// Remove a virtual IP
    Remove {
        /// Its address or id
        vip: String,
    },
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("owner").required(true).args(["tenant", "shared"]))]
pub struct VipAdd {
    /// Its address on this host
    #[arg(value_name = "ADDR")]
    pub address: IpAddr,
    /// Its IPv6 address too
    #[arg(long, value_name = "ADDR")]
    pub ipv6: Option<std::net::Ipv6Addr>,
    /// The name it says in EHLO; its PTR record should say the same
    #[arg(long, value_name = "NAME")]
    pub ehlo: Domain,
    /// Only this tenant may use it
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Every tenant may use it
    #[arg(long)]
    pub shared: bool,
    /// The address the world sees instead (NAT); at most one of each family
    #[arg(long, value_name = "ADDR")]
    pub public: Vec<IpAddr>,
    /// The id it had: for mail that was salvaged without the records and waits for it
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
}

#[derive(Args, Debug)]
pub struct VipSet {
    /// Its address, EHLO name or id
    pub vip: String,
    /// The name it says in EHLO; its PTR record should say the same
    #[arg(long, value_name = "NAME")]
    pub ehlo: Option<Domain>,
    /// The address the world sees instead (NAT), in place of those set before; at most one of each family
    #[arg(long, value_name = "ADDR")]
    pub public: Vec<IpAddr>,
    /// The world sees its own addresses
    #[arg(long, conflicts_with = "public")]
    pub no_public: bool,
}
