//! Arguments of the commands about people: who they are, what they may, what they did.

use clap::Subcommand;

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
