//! What every request and every answer passes.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::error::ApiError;

/// Refuses requests that a foreign web page has a browser send to loopback
/// (DNS rebinding), and keeps browsers from guessing at content types.
pub(super) async fn protect(
    State(listening): State<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let allowed = !listening.ip().is_loopback() || is_local(request.uri(), request.headers());
    let mut response = match allowed {
        true => next.run(request).await,
        false => ApiError::host().into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether the target and every `Host` are such as only this machine's own
/// clients use. HTTP/1.0 has neither, and no browser speaks that.
fn is_local(target: &Uri, headers: &HeaderMap) -> bool {
    let hosts = headers.get_all(header::HOST).iter().map(|host| {
        let text = host.to_str().ok()?;
        text.parse::<Authority>().ok()
    });
    // A target with a host of its own comes before the header (RFC 9112, 3.2.2).
    let target = target.authority().cloned().map(Some);
    target
        .into_iter()
        .chain(hosts)
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
}
