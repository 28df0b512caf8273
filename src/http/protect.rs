//! What every request and every answer passes.

use std::net::{IpAddr, SocketAddr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Request, Uri, header};

use super::edge::Edge;
use super::error::ApiError;

/// Stands before all routes. It is no layer among layers but part of the
/// server, so that there is no route beside it.
pub(super) struct Guard {
    edge: Edge,
    /// Whether a browser could be made to send requests here without anybody's
    /// word: a web page's name can be made to resolve to loopback (DNS
    /// rebinding). It cannot have our certificate, and reaches no more than its
    /// user does at any other address.
    local_only: bool,
}

impl Guard {
    pub(super) fn new(listening: SocketAddr, edge: Edge) -> Self {
        let loopback = listening.ip().to_canonical().is_loopback();
        Self {
            local_only: loopback && edge.tls().is_none(),
            edge,
        }
    }

    /// Whether a request may pass.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<(), ApiError> {
        if self.local_only && !is_local(request.uri(), request.headers()) {
            return Err(ApiError::host());
        }
        let path = request.uri().path();
        self.edge.auth().admit(path, request.headers())
    }

    /// What every answer has: browsers do not guess at content types, nobody
    /// keeps what may be stale or secret.
    pub(super) fn seal(headers: &mut HeaderMap) {
        let nosniff = HeaderValue::from_static("nosniff");
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// Whether the target, every `Host` and every `Origin` are such as only this
/// machine's own clients use. A web page may post a form to any address, and
/// its browser then names the page's origin. HTTP/1.0 has none of them, and no
/// browser speaks that.
fn is_local(target: &Uri, headers: &HeaderMap) -> bool {
    let hosts = headers.get_all(header::HOST).iter().map(|host| {
        let text = host.to_str().ok()?;
        text.parse::<Authority>().ok()
    });
    let origins = headers.get_all(header::ORIGIN).iter().map(|origin| {
        let text = origin.to_str().ok()?;
        text.parse::<Uri>().ok()?.into_parts().authority
    });
    // A target with a host of its own comes before the header (RFC 9112, 3.2.2).
    let target = target.authority().cloned().map(Some);
    target
        .into_iter()
        .chain(hosts)
        .chain(origins)
        .all(|host| host.is_some_and(|host| is_loopback(&host)))
}

fn is_loopback(host: &Authority) -> bool {
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn host(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, value.parse().unwrap());
        is_local(&Uri::from_static("/"), &headers)
    }

    #[test]
    fn loopback_hosts_pass_and_others_do_not() {
        for good in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "127.8.8.8",
            "[::1]:8080",
        ] {
            assert!(host(good), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example:8080",
            "10.0.0.1",
            "",
            "@",
            "[::2]",
        ] {
            assert!(!host(bad), "{bad}");
        }
        assert!(is_local(&Uri::from_static("/"), &HeaderMap::new()));
    }

    #[test]
    fn a_form_of_a_foreign_web_page_does_not_pass() {
        let from = |origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("localhost:8080"));
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            is_local(&Uri::from_static("/admin/shutdown"), &headers)
        };
        for good in [
            "http://localhost:8080",
            "https://127.0.0.1",
            "http://[::1]:3000",
        ] {
            assert!(from(good), "{good}");
        }
        for bad in [
            "https://evil.example",
            "null",
            "",
            "localhost:8080/x",
            "file://",
        ] {
            assert!(!from(bad), "{bad}");
        }
    }
}
