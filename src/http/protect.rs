//! What every request and every answer passes.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, header};
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
    let allowed = !listening.ip().is_loopback() || is_local(request.headers());
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

/// Whether the `Host` is one that only this machine's own clients use.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
    else {
        // HTTP/1.0 has none, and no browser speaks that.
        return !headers.contains_key(header::HOST);
    };
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
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
        is_local(&headers)
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
        assert!(is_local(&HeaderMap::new()));
    }
}
