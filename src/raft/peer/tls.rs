//! TLS between nodes, always mutual: each shows its certificate and checks that
//! the cluster's authorities have signed the other's, and who connects also
//! that it names the host that was connected to.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::certificate::{self, Names, TlsError};
use crate::config::settings::PeerFiles;
use crate::raft::transport::Connection;
use crate::telemetry::count;

const NAMES: Names = Names {
    certificate: "cluster.tls_certificate",
    key: "cluster.tls_key",
};
const AUTHORITIES: (&str, &str) = ("certificate", "cluster.tls_ca");

/// What both directions need; read again while connections are served.
pub(super) struct Tls(RwLock<Configs>);

#[derive(Clone)]
struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    /// Reads the files. What is doubtful about them comes back, one sentence each.
    pub(super) fn load(files: &PeerFiles) -> Result<(Self, Vec<String>), TlsError> {
        let (configs, doubts) = read(files)?;
        Ok((Self(RwLock::new(configs)), doubts))
    }

    /// As [`Self::load`], for connections from now on.
    pub(super) fn reload(&self, files: &PeerFiles) -> Result<Vec<String>, TlsError> {
        let (configs, doubts) = read(files)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = configs;
        Ok(doubts)
    }

    fn configs(&self) -> Configs {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Protects a connection to `address`, a host and a port.
    pub(super) async fn connect(
        &self,
        stream: Box<dyn Connection>,
        address: &str,
    ) -> io::Result<Box<dyn Connection>> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let connector = tokio_rustls::TlsConnector::from(self.configs().client);
        Ok(Box::new(connector.connect(name, stream).await?))
    }

    /// Protects a connection from another.
    pub(super) async fn accept(
        &self,
        stream: Box<dyn Connection>,
    ) -> io::Result<Box<dyn Connection>> {
        let acceptor = tokio_rustls::TlsAcceptor::from(self.configs().server);
        Ok(Box::new(acceptor.accept(stream).await?))
    }
}

fn read(files: &PeerFiles) -> Result<(Configs, Vec<String>), TlsError> {
    let now = SystemTime::now();
    let own = certificate::own(&files.certificate, &files.key, NAMES, now)?;
    let unusable = |source| TlsError::Unusable {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    };
    let no_authority = |source: rustls::Error| TlsError::Authority {
        path: files.ca.clone(),
        source,
    };
    let mut authorities = RootCertStore::empty();
    for authority in certificate::all(&files.ca, AUTHORITIES)? {
        authorities.add(authority).map_err(no_authority)?;
    }
    let authorities = Arc::new(authorities);
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::clone(&authorities),
        Arc::clone(&provider),
    );
    let verifier = verifier
        .build()
        .map_err(|error| no_authority(rustls::Error::General(error.to_string())))?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain.clone(), own.key.clone_key())
        .map_err(unusable)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(authorities)
        .with_client_auth_cert(own.chain, own.key)
        .map_err(unusable)?;
    count::PEER_CERTIFICATE_ENDS.set(own.ends);
    let configs = Configs {
        server: Arc::new(server),
        client: Arc::new(client),
    };
    Ok((configs, own.doubts))
}
