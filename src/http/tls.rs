//! TLS for the API: a certificate and its key from files, exchanged for newer
//! ones while connections are served.
//!
//! A reload that fails at any point leaves the certificate in use as it is; one
//! that succeeds is used by every handshake after it. Connections that exist
//! keep what they were made with.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio_rustls::TlsAcceptor;

pub use crate::certificate::TlsError;
use crate::certificate::{self, Names};
use crate::telemetry::count;

/// What a listener with TLS hands its connections.
pub(super) struct Tls(RwLock<Arc<ServerConfig>>);

impl Tls {
    /// Reads a certificate (with its chain) and its key. What is doubtful about
    /// them comes back as warnings, one sentence each.
    pub(super) fn load(certificate: &Path, key: &Path) -> Result<(Self, Vec<String>), TlsError> {
        let (config, warnings) = read(certificate, key, SystemTime::now())?;
        Ok((Self(RwLock::new(config)), warnings))
    }

    /// As [`Self::load`], for the handshakes from now on.
    pub(super) fn reload(&self, certificate: &Path, key: &Path) -> Result<Vec<String>, TlsError> {
        let (config, warnings) = read(certificate, key, SystemTime::now())?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(warnings)
    }

    /// For one handshake.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&config).into()
    }
}

const NAMES: Names = Names {
    certificate: "http.tls_certificate",
    key: "http.tls_key",
};

fn read(
    certificate: &Path,
    key: &Path,
    now: SystemTime,
) -> Result<(Arc<ServerConfig>, Vec<String>), TlsError> {
    let own = certificate::own(certificate, key, NAMES, now)?;
    let unusable = |source| TlsError::Unusable {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    };
    // The provider is named: what another crate may set for the process has no effect.
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(own.chain, own.key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    count::CERTIFICATE_ENDS.set(own.ends);
    Ok((Arc::new(config), own.doubts))
}

#[cfg(test)]
mod tests;
