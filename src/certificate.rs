//! Certificates and keys for TLS, as PEM files hold them. Both listeners read
//! theirs here; what they make of them is their own.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::der::Decode as _;

use crate::exit::Exit;

/// How long before its end a certificate is warned of: longer than any renewal
/// waits that works, ACME's being 30 days before the end.
pub(crate) const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

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
    /// A certificate that cannot vouch for others.
    #[error("a certificate in {} cannot vouch for others; put those of the cluster's authorities there", path.display())]
    Authority {
        /// The authorities' file.
        path: PathBuf,
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

/// The keys of the configuration that name the files.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub(crate) certificate: &'static str,
    pub(crate) key: &'static str,
}

/// What a node shows, and what is doubtful about it, one sentence each.
pub(crate) struct Own {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// When the certificate ends, in seconds since 1970; 0 where that cannot be told.
    pub(crate) ends: u64,
    pub(crate) doubts: Vec<String>,
}

/// What a file should hold, and the key of the configuration that names it.
type Wanted = (&'static str, &'static str);

/// Reads a certificate (with its chain) and its key.
pub(crate) fn own(
    certificate: &Path,
    key: &Path,
    names: Names,
    now: SystemTime,
) -> Result<Own, TlsError> {
    let chain = all(certificate, ("certificate", names.certificate))?;
    let first = chain.first();
    let ends = first.and_then(ends).map_or(0, |ends| {
        let since = ends.duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    });
    let mut doubts: Vec<_> = first
        .and_then(|own| about_validity(certificate, own, now))
        .into_iter()
        .collect();

    let wanted = ("private key", names.key);
    let pem = contents(key, wanted)?;
    let private = PrivateKeyDer::from_pem_slice(&pem);
    let private = private.map_err(|source| no_pem(key, wanted, source))?;
    doubts.extend(about_readers(key));
    Ok(Own {
        chain,
        key: private,
        ends,
        doubts,
    })
}

/// Reads certificates, at least one.
pub(crate) fn all(path: &Path, wanted: Wanted) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = contents(path, wanted)?;
    let read = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|source| no_pem(path, wanted, source))?;
    match read.is_empty() {
        true => Err(no_pem(path, wanted, pem::Error::NoItemsFound)),
        false => Ok(read),
    }
}

fn contents(path: &Path, (what, key): Wanted) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        what,
        key,
        source,
    })
}

fn no_pem(path: &Path, (what, key): Wanted, source: pem::Error) -> TlsError {
    TlsError::Pem {
        path: path.to_owned(),
        what,
        key,
        source: Some(source).filter(|source| !matches!(source, pem::Error::NoItemsFound)),
    }
}

/// The end of a certificate. What the parser is too strict for has none that we know.
fn ends(der: &CertificateDer<'_>) -> Option<SystemTime> {
    let parsed = x509_cert::Certificate::from_der(der).ok()?;
    let validity = parsed.tbs_certificate.validity;
    Some(validity.not_after.to_system_time())
}

/// What to say about a certificate in use that ends so many seconds after 1970, if anything.
pub(crate) fn about_end(path: &Path, ends: u64, now: SystemTime) -> Option<String> {
    let ends = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(ends))?;
    let left = ends.duration_since(now).unwrap_or_default();
    let path = path.display();
    match left.as_secs() / (24 * 60 * 60) {
        _ if left >= SOON => None,
        0 if left.is_zero() => Some(format!(
            "The certificate in use has expired: clients refuse it; put a newer one into {path} \
             and reload the node"
        )),
        days => Some(format!(
            "The certificate in use expires in {days} days; put a newer one into {path} and reload \
             the node"
        )),
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
mod tests {
    use super::*;

    #[test]
    fn a_certificate_in_use_is_told_of_from_two_weeks_before_its_end() {
        let path = Path::new("/etc/aspen/tls.crt");
        let ends = 1_800_000_000;
        let before = |days: u64| {
            let now = Duration::from_secs(ends - days * 24 * 60 * 60);
            about_end(path, ends, SystemTime::UNIX_EPOCH + now)
        };
        assert_eq!(before(14), None);
        let told = before(13).unwrap_or_default();
        assert!(told.contains("expires in 13 days"), "{told}");
        assert!(told.contains("/etc/aspen/tls.crt"), "{told}");
        let told = before(0).unwrap_or_default();
        assert!(told.contains("has expired"), "{told}");
    }
}
