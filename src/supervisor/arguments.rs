//! The command line of `aspen-node`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;

use crate::config::{self, ConfigError, Loaded, Overrides};

/// One node of an Aspen cluster: a Raft key-value store run by systemd.
///
/// Without any configuration it is node 1, keeps its data in ./data/node-1 and
/// listens on 127.0.0.1:8080. A legacy redb state machine in the data directory
/// is migrated to SQLite at start, behind a backup, before the node is ready.
///
/// Command line wins over environment (ASPEN_..., see --check-config) over file
/// over defaults.
#[derive(Debug, Parser)]
#[command(name = "aspen-node", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Configuration file [default: $ASPEN_CONFIG, else /etc/aspen/config.toml where it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's Raft id
    #[arg(long, value_name = "ID")]
    pub node_id: Option<OsString>,
    /// Data directory
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<OsString>,
    /// Address of the HTTP API
    #[arg(long, value_name = "IP:PORT")]
    pub http_addr: Option<OsString>,
    /// State machine: sqlite, redb (deprecated) or memory
    #[arg(long, value_name = "BACKEND")]
    pub storage_backend: Option<OsString>,
    /// Print the effective configuration and where each value comes from, and exit
    #[arg(long)]
    pub check_config: bool,
}

const EXAMPLES: &str = "\
Examples:
  aspen-node                                     run with no configuration at all
  aspen-node --config /etc/aspen/config.toml     as the service does
  ASPEN_STORAGE_BACKEND=sqlite aspen-node        migrate redb data found, then serve it
  aspen-node --check-config                      what would be in effect, and why

Signals:
  SIGTERM, SIGINT  stop cleanly (a migration is left for the next start)
  SIGHUP           reload log filter, tokens, connection limit and certificates, reopen the
                   log file; the log names what needs a restart

Exit status:
  0 stopped as asked, 64 usage, 65 wrong data, 70 a bug, 74 I/O error or disk
  full, 75 locked (try again), 77 not permitted, 78 configuration";

impl Arguments {
    fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            node_id: self.node_id.clone(),
            data_dir: self.data_dir.clone(),
            http_addr: self.http_addr.clone(),
            storage_backend: self.storage_backend.clone(),
        }
    }

    pub(super) fn load(&self) -> Result<Loaded, ConfigError> {
        config::load(
            &self.overrides(),
            std::env::vars_os(),
            Path::new(config::DEFAULT_FILE),
        )
    }
}
