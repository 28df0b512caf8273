//! Who signs certificates for nodes, made on the spot.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

use super::fixture::{Scratch, scratch};

/// Certificates of one authority, by name, in a directory of their own.
pub(crate) struct Authority {
    dir: Scratch,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let (dir, key) = (scratch(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = params.self_signed(&key).unwrap();
        std::fs::write(dir.join("ca"), own.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Self { dir, issuer }
    }

    /// A certificate for `hosts` that ends with the year; where it and its key are.
    pub(crate) fn sign(&self, name: &str, hosts: &[String], until: i32) -> [PathBuf; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = ["crt", "key"].map(|kind| self.dir.join(format!("{name}.{kind}")));
        std::fs::write(&files[0], certificate.pem()).unwrap();
        std::fs::write(&files[1], key.serialize_pem()).unwrap();
        files
    }

    /// Where its own certificate is.
    pub(crate) fn own(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// What tells a node of them.
    pub(crate) fn environment(
        &self,
        [certificate, key]: [PathBuf; 2],
    ) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        vec![
            ("ASPEN_CLUSTER__TLS_CERTIFICATE", text(&certificate)),
            ("ASPEN_CLUSTER__TLS_KEY", text(&key)),
            ("ASPEN_CLUSTER__TLS_CA", text(&self.own())),
        ]
    }
}
