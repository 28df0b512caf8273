//! Certificates good and bad, made on the spot.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::error::Error as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::*;
use crate::certificate::SOON;
use crate::exit::Exit;

/// A directory with a certificate for localhost and its key.
struct Files(tempfile::TempDir);

impl Files {
    /// Valid in the years given.
    fn of(from: i32, to: i32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Self(dir);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(files.certificate(), certificate.pem()).unwrap();
        std::fs::write(files.key(), key.serialize_pem()).unwrap();
        files.protect(0o640);
        files
    }

    fn certificate(&self) -> PathBuf {
        self.0.path().join("tls.crt")
    }

    fn key(&self) -> PathBuf {
        self.0.path().join("tls.key")
    }

    fn protect(&self, mode: u32) {
        std::fs::set_permissions(self.key(), PermissionsExt::from_mode(mode)).unwrap();
    }

    fn load(&self) -> Result<Vec<String>, TlsError> {
        Tls::load(&self.certificate(), &self.key()).map(|(_, warnings)| warnings)
    }

    /// What is said instead of TLS, its directory left out.
    fn refused(&self) -> (String, Exit) {
        let error = self.load().unwrap_err();
        let dir = format!("{}/", self.0.path().display());
        let source = error.source().map(|source| format!(": {source}"));
        let text = format!("{error}{}", source.unwrap_or_default());
        (text.replace(&dir, ""), error.exit())
    }
}

#[test]
fn a_good_certificate_and_key_are_used_without_a_word() {
    assert_eq!(Files::of(2020, 4000).load().unwrap(), [""; 0]);
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_name_and_its_key() {
    let files = Files::of(2020, 4000);
    std::fs::write(files.certificate(), "nonsense").unwrap();
    let (text, exit) = files.refused();
    assert_eq!(
        text,
        "tls.crt holds no certificate as PEM; correct http.tls_certificate, or put a certificate there"
    );
    assert_eq!(exit, Exit::Config);
    std::fs::write(files.certificate(), "-----BEGIN CERTIFICATE-----\n!\n").unwrap();
    let (text, _) = files.refused();
    assert!(text.starts_with("tls.crt holds no certificate as PEM;"));

    std::fs::remove_file(files.certificate()).unwrap();
    let (text, exit) = files.refused();
    assert!(text.starts_with(
        "cannot read the certificate tls.crt; correct http.tls_certificate, or let the node's user read it: "
    ), "{text}");
    assert_eq!(exit, Exit::Config);

    let files = Files::of(2020, 4000);
    // The two exchanged.
    std::fs::copy(files.certificate(), files.key()).unwrap();
    let (text, exit) = files.refused();
    assert_eq!(
        text,
        "tls.key holds no private key as PEM; correct http.tls_key, or put a private key there"
    );
    assert_eq!(exit, Exit::Config);
    std::fs::remove_file(files.key()).unwrap();
    std::fs::create_dir(files.key()).unwrap();
    assert_eq!(files.refused().1, Exit::Io);
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (files, other) = (Files::of(2020, 4000), Files::of(2020, 4000));
    std::fs::copy(other.key(), files.key()).unwrap();
    let (text, exit) = files.refused();
    assert!(
        text.starts_with("the certificate in tls.crt cannot be used with the key in tls.key; put"),
        "{text}"
    );
    assert_eq!(exit, Exit::Config);
}

#[test]
fn a_certificate_that_clients_refuse_and_a_key_that_all_can_read_are_warned_of() {
    let one = |files: &Files| {
        let mut warnings = files.load().unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        warnings.remove(0)
    };
    let expired = one(&Files::of(2020, 2021));
    assert!(
        expired.contains("tls.crt has expired at 2021-01-01"),
        "{expired}"
    );
    let early = one(&Files::of(3000, 3001));
    assert!(early.contains("is not valid before 3000-01-01"), "{early}");
    let files = Files::of(2020, 4000);
    files.protect(0o644);
    let open = one(&files);
    assert!(open.contains("tls.key can be read by every user"), "{open}");

    let files = Files::of(2020, 2031);
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_924_992_000);
    let (_, warnings) = read(&files.certificate(), &files.key(), end - SOON / 2).unwrap();
    assert!(
        warnings[0].contains("expires at 2031-01-01"),
        "{warnings:?}"
    );
}

#[test]
fn a_reload_that_fails_keeps_what_was() {
    let files = Files::of(2020, 4000);
    let (tls, _) = Tls::load(&files.certificate(), &files.key()).unwrap();
    let in_use = || Arc::as_ptr(&tls.0.read().unwrap());
    let first = in_use();
    let newer = Files::of(2020, 4000);
    // Half of a renewal.
    std::fs::copy(newer.certificate(), files.certificate()).unwrap();
    assert!(tls.reload(&files.certificate(), &files.key()).is_err());
    assert_eq!(in_use(), first);
    std::fs::copy(newer.key(), files.key()).unwrap();
    tls.reload(&files.certificate(), &files.key()).unwrap();
    assert_ne!(in_use(), first);
}
