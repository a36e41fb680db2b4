//! What can be typed about the data folder and its copies: backups, the store offline, the master key.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Take one from the running daemon
    Make {
        /// The new file
        file: PathBuf,
    },
    /// Read one through: whether it is whole, and what is in it; changes nothing
    Verify {
        /// The file
        file: PathBuf,
        /// The file of its backup key, instead of the one the configuration names
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Make the backup key and show it once; never overwrites one
    Key,
}

#[derive(Args, Debug)]
pub struct Restore {
    /// The backup
    pub file: PathBuf,
    /// The file of its backup key: one line, as `postern backup key` showed it, mode 0600
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Where the folders `data` and `config` are made
    #[arg(long, value_name = "FOLDER")]
    pub into: PathBuf,
    /// Restore the mail that was owed too, every message held: it may have been delivered since
    #[arg(long)]
    pub with_queue: bool,
}

#[derive(Debug, Subcommand)]
pub enum MasterKey {
    /// Make a new key, seal everything under it, and put it in the old one's place; after a crash, run it again
    Rotate {
        /// The key's file, if the configuration names a credential
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// A step of `rotate`: the part on the store, before the file changes
    #[command(hide = true)]
    Reseal {
        /// The key's file
        file: PathBuf,
    },
    /// A step of `rotate`: the part on the store, after the file changed
    #[command(hide = true)]
    Forget {
        /// The key's file
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum Store {
    /// Read every record and every message and say what is damaged
    Verify,
    /// Copy everything into a new data folder and compare; for another engine, or a disk that is to be left
    Migrate {
        /// The new data folder
        #[arg(long, value_name = "FOLDER")]
        into: PathBuf,
    },
    /// Save what can be read without the record files: what people manage from the copy of the records, the
    /// mail from the message segments; without options, only count it
    Salvage {
        /// A new data folder that gets tenants, virtual IPs, domains, accounts and the rest, and in which the mail
        /// that was not settled is owed again
        #[arg(long, value_name = "FOLDER")]
        into: Option<PathBuf>,
        /// Hold all of it: what operators had held, paused or moved is not known without the records
        #[arg(long, requires = "into")]
        held: bool,
    },
}
