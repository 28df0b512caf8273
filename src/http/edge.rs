//! What protects the API and can change while it serves: TLS, tokens, limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::auth::Auth;
use super::tls::{Tls, TlsError};
use crate::config::settings::Http;

/// TLS, tokens and limits of one listener. Clones change the same.
#[derive(Clone)]
pub struct Edge(Arc<Inner>);

struct Inner {
    tls: Option<Tls>,
    auth: Auth,
    max_connections: AtomicUsize,
}

impl Edge {
    /// What `[http]` says; and what is doubtful about the certificate and its
    /// key, one sentence each.
    ///
    /// # Errors
    /// When the certificate or its key cannot be used.
    pub fn new(settings: &Http) -> Result<(Self, Vec<String>), TlsError> {
        let (tls, warnings) = match settings.tls() {
            Some((certificate, key)) => {
                let (tls, warnings) = Tls::load(certificate, key)?;
                (Some(tls), warnings)
            }
            None => (None, Vec::new()),
        };
        let edge = Self(Arc::new(Inner {
            tls,
            auth: Auth::default(),
            max_connections: AtomicUsize::default(),
        }));
        edge.set(settings);
        Ok((edge, warnings))
    }

    /// Takes over the tokens and the limit of newer settings, and reads the
    /// certificate again. The settings must be such that only those differ from
    /// the ones in use: see
    /// [`Settings::changes_that_need_a_restart`](crate::config::Settings::changes_that_need_a_restart).
    ///
    /// # Errors
    /// When the certificate or its key cannot be used; the one in use stays, the
    /// rest is taken over.
    pub fn reload(&self, settings: &Http) -> Result<Vec<String>, TlsError> {
        self.set(settings);
        match (&self.0.tls, settings.tls()) {
            (Some(tls), Some((certificate, key))) => tls.reload(certificate, key),
            _ => Ok(Vec::new()),
        }
    }

    fn set(&self, settings: &Http) {
        let Inner {
            auth,
            max_connections,
            ..
        } = &*self.0;
        auth.set(settings.token.as_ref(), settings.admin_token.as_ref());
        // More than fit are as good as no limit.
        let most = usize::try_from(settings.max_connections).unwrap_or(usize::MAX);
        max_connections.store(most, Ordering::Relaxed);
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match self.0.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    pub(super) fn tls(&self) -> Option<&Tls> {
        self.0.tls.as_ref()
    }

    pub(super) fn auth(&self) -> &Auth {
        &self.0.auth
    }

    pub(super) fn max_connections(&self) -> usize {
        self.0.max_connections.load(Ordering::Relaxed)
    }
}
