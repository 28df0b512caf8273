//! Why a node ended other than by being told to.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::config::ConfigError;
use crate::durable::DurableError;
use crate::exit::{Exit, cannot_listen};
use crate::lock::LockError;
use crate::migration::MigrationError;
use crate::migration::source::SourceError;
use crate::raft::StartError;
use crate::storage::StorageError;
use crate::telemetry::{TelemetryError, events};

/// Why a node ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub(super) enum NodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot {operation}")]
    System {
        operation: &'static str,
        source: io::Error,
    },
    #[error(
        "the data directory cannot be made; make it for the node's user, or correct node.data_dir"
    )]
    DataDir(#[source] DurableError),
    #[error("cannot listen on {address}; {} (http.listen)", cannot_listen(source))]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the HTTP listener failed")]
    Serve(#[source] io::Error),
    #[error(transparent)]
    Migration(#[from] MigrationError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Raft(#[from] StartError),
    #[error("the node cannot go on: {0}")]
    Failed(String),
    #[error("a thread of the node ended unexpectedly; please report this with the log")]
    Bug,
}

impl NodeError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Config(error) => error.exit(),
            Self::Telemetry(error) => error.exit(),
            Self::Durable(error) | Self::DataDir(error) => error.exit(),
            Self::Lock(error) => error.exit(),
            Self::System { source, .. } | Self::Listen { source, .. } | Self::Serve(source) => {
                Exit::of_io(source)
            }
            Self::Migration(error) => error.exit(),
            Self::Storage(error) => error.exit(),
            Self::Raft(error) => error.exit(),
            Self::Failed(_) => Exit::Io,
            Self::Bug => Exit::Software,
        }
    }

    /// The file that a migration ended at, where it is known.
    pub(super) fn source_path(&self) -> Option<&Path> {
        match self {
            Self::Migration(error) => error.source_path(),
            _ => None,
        }
    }

    /// The event that an operator looks for.
    pub(super) fn message_id(&self) -> &'static str {
        match self {
            Self::Lock(_) => events::DATA_DIR_LOCKED,
            Self::Migration(MigrationError::Refused(_)) => events::START_REFUSED,
            Self::Migration(MigrationError::RaftLog(_)) => events::SOURCE_DAMAGED,
            Self::Migration(error) => match error.source_error() {
                Some(SourceError::InUse(_)) => events::DATA_DIR_LOCKED,
                Some(error) if error.exit() == Exit::Data => events::SOURCE_DAMAGED,
                _ => events::MIGRATION_FAILED,
            },
            _ => events::NODE_FAILED,
        }
    }
}
