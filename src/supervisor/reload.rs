//! What a running node takes over from a newer configuration.

use std::time::SystemTime;

use super::Life;
use crate::certificate;
use crate::config::Loaded;
use crate::config::settings::{Http, Settings};
use crate::raft::Node;
use crate::telemetry::{Chain, count, events};

impl Life<'_> {
    /// Takes over what can be changed while the node runs, and says what cannot.
    pub(super) fn reload(&mut self) {
        self.reopen_log();
        let file = self.loaded.file.as_ref();
        let file = file.map(|file| file.display().to_string());
        let loaded = match self.newer() {
            Ok(loaded) => loaded,
            Err(why) => {
                tracing::error!(
                    MESSAGE_ID = events::NOT_RELOADED,
                    ASPEN_CONFIG = file,
                    "Not reloaded, the running configuration stays: {why}"
                );
                return;
            }
        };
        if let Err(error) = self.log.set_filter(&loaded.settings.log.filter) {
            tracing::error!(
                MESSAGE_ID = events::NOT_RELOADED,
                ASPEN_CONFIG = file,
                "The log filter was not reloaded: {}",
                Chain(&error)
            );
            return;
        }
        self.reload_edge(&loaded.settings.http);
        let waiting = self
            .loaded
            .settings
            .changes_that_need_a_restart(&loaded.settings);
        let rest = match waiting.is_empty() {
            true => "nothing else has changed".to_owned(),
            false => format!("a restart is needed for {}", waiting.join(", ")),
        };
        tracing::info!(
            MESSAGE_ID = events::RELOADED,
            ASPEN_CONFIG = loaded.file.as_ref().map(|file| file.display().to_string()),
            "Reloaded: log filter {:?}, log file reopened; {rest}",
            loaded.settings.log.filter
        );
    }

    /// The configuration as it is by now, or why there is none. A file that was read at the start
    /// and is gone, which a start would do without, is an editor at work or a mistake: defaults in
    /// its place would take the tokens away that it sets.
    fn newer(&self) -> Result<Loaded, String> {
        let newer = self.arguments.load();
        let newer = newer.map_err(|error| Chain(&error).to_string())?;
        match (&self.loaded.file, &newer.file) {
            (Some(file), None) => Err(format!(
                "the configuration file {} is there no more; bring it back, or restart to do without it",
                file.display()
            )),
            _ => Ok(newer),
        }
    }

    /// Writes to the file that has the log's name now, after a rotation.
    pub(super) fn reopen_log(&self) {
        if let Err(error) = self.log.reopen_file() {
            tracing::warn!(
                MESSAGE_ID = events::LOG_FILE_UNAVAILABLE,
                ASPEN_LOG_FILE = self
                    .settings()
                    .log
                    .file
                    .as_ref()
                    .map(|file| file.display().to_string()),
                "{}",
                Chain(&error)
            );
        }
    }

    /// Takes over the certificate, tokens and limits, if nothing else of `[http]` has changed.
    fn reload_edge(&self, newer: &Http) {
        if self.settings().http.needs_a_restart_for(newer) {
            return;
        }
        match self.edge.reload(newer) {
            Ok(doubts) => warn_of_certificate(newer, &doubts),
            Err(error) => tracing::error!(
                MESSAGE_ID = events::CERTIFICATE_KEPT,
                ASPEN_CERTIFICATE = newer.tls().map(|(path, _)| path.display().to_string()),
                "The certificate in use stays: {}",
                Chain(&error)
            ),
        }
    }

    /// Reads the certificate for other nodes again; the files stay those of the start.
    pub(super) fn renew_peer_certificate(&self, node: &Node) {
        let Some(files) = self.settings().cluster.tls() else {
            return;
        };
        if let Err(error) = node.renew_certificate(&files) {
            tracing::error!(
                MESSAGE_ID = events::CERTIFICATE_KEPT,
                ASPEN_CERTIFICATE = %files.certificate.display(),
                "The certificate for other nodes in use stays: {}",
                Chain(&error)
            );
        }
    }
}

/// Tells of certificates in use that have come near their end while the node ran.
pub(super) fn warn_of_ends(settings: &Settings) {
    let (http, peers) = (settings.http.tls(), settings.cluster.tls());
    let own = http.map(|(path, _)| (path.to_owned(), count::CERTIFICATE_ENDS.get()));
    let of_peers = peers.map(|files| (files.certificate, count::PEER_CERTIFICATE_ENDS.get()));
    for (path, ends) in own.into_iter().chain(of_peers) {
        let doubt = certificate::about_end(&path, ends, SystemTime::now());
        if let Some(doubt) = doubt.filter(|_| ends > 0) {
            tracing::warn!(
                MESSAGE_ID = events::CERTIFICATE_DOUBTFUL,
                ASPEN_CERTIFICATE = %path.display(),
                "{doubt}"
            );
        }
    }
}

/// Tells what [`Edge`](crate::http::Edge) finds doubtful.
pub(super) fn warn_of_certificate(http: &Http, doubts: &[String]) {
    for doubt in doubts {
        tracing::warn!(
            MESSAGE_ID = events::CERTIFICATE_DOUBTFUL,
            ASPEN_CERTIFICATE = http.tls().map(|(path, _)| path.display().to_string()),
            "{doubt}"
        );
    }
}
