//! TLS for the API: a certificate and its key from files, exchanged for newer
//! ones while connections are served.
//!
//! A reload that fails at any point leaves the certificate in use as it is; one
//! that succeeds is used by every handshake after it. Connections that exist
//! keep what they were made with.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use x509_cert::der::Decode as _;

use crate::exit::Exit;

/// How long before its end a certificate is warned of: longer than any renewal
/// waits that works, ACME's being 30 days before the end.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read the {what} {}; correct {key}, or let the node's user read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The key of the configuration that names it.
        key: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} as PEM; correct {key}, or put a {what} there", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The key of the configuration that names it.
        key: &'static str,
        /// The reason; none when the file merely holds none.
        source: Option<pem::Error>,
    },
    /// The two do not make a certificate that can be used.
    #[error(
        "the certificate in {} cannot be used with the key in {}; put the key there that the \
         certificate was made for",
        certificate.display(),
        key.display()
    )]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The reason.
        source: rustls::Error,
    },
}

impl TlsError {
    /// The exit code: [`Exit::Config`], unless a file that is there cannot be read.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Read { source, .. } if source.kind() != io::ErrorKind::NotFound => {
                Exit::of_io(source)
            }
            _ => Exit::Config,
        }
    }
}

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

const CERTIFICATE: (&str, &str) = ("certificate", "http.tls_certificate");
const KEY: (&str, &str) = ("private key", "http.tls_key");

fn read(
    certificate: &Path,
    key: &Path,
    now: SystemTime,
) -> Result<(Arc<ServerConfig>, Vec<String>), TlsError> {
    let pem = contents(certificate, CERTIFICATE)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|source| no_pem(certificate, CERTIFICATE, source))?;
    let Some(own) = chain.first() else {
        return Err(no_pem(certificate, CERTIFICATE, pem::Error::NoItemsFound));
    };
    let mut warnings: Vec<_> = about_validity(certificate, own, now).into_iter().collect();

    let pem = contents(key, KEY)?;
    let private = PrivateKeyDer::from_pem_slice(&pem);
    let private = private.map_err(|source| no_pem(key, KEY, source))?;
    warnings.extend(about_readers(key));

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
        .with_single_cert(chain, private)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), warnings))
}

fn contents(path: &Path, (what, key): (&'static str, &'static str)) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        what,
        key,
        source,
    })
}

fn no_pem(path: &Path, (what, key): (&'static str, &'static str), source: pem::Error) -> TlsError {
    TlsError::Pem {
        path: path.to_owned(),
        what,
        key,
        source: Some(source).filter(|source| !matches!(source, pem::Error::NoItemsFound)),
    }
}

/// What to say about when a certificate is valid, if anything: clients refuse
/// one that is not, and this is not the place to stop a node for it.
fn about_validity(path: &Path, der: &CertificateDer<'_>, now: SystemTime) -> Option<String> {
    let path = path.display();
    // What this parser is too strict for may still be good: rustls decides.
    let parsed = x509_cert::Certificate::from_der(der).ok()?;
    let validity = parsed.tbs_certificate.validity;
    let (from, to) = (
        validity.not_before.to_system_time(),
        validity.not_after.to_system_time(),
    );
    if now > to {
        Some(format!(
            "The certificate in {path} has expired at {}: clients refuse it; put a newer one there \
             and reload the node",
            validity.not_after
        ))
    } else if now < from {
        Some(format!(
            "The certificate in {path} is not valid before {}: clients refuse it; check this \
             machine's clock",
            validity.not_before
        ))
    } else if to.duration_since(now).is_ok_and(|left| left < SOON) {
        Some(format!(
            "The certificate in {path} expires at {}; put a newer one there and reload the node",
            validity.not_after
        ))
    } else {
        None
    }
}

/// What to say about who may read a key, if anything.
fn about_readers(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o007 != 0).then(|| {
        let path = path.display();
        format!("The private key in {path} can be read by every user of this machine; chmod 640 it")
    })
}

#[cfg(test)]
mod tests;
