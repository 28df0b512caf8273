//! `/`: the status page, for people with a browser.
//!
//! One page with its style and its script in it, put together from the three
//! files in `page/`, the same for everybody. It holds nothing of the node, so
//! it needs no token; what it then asks the node for does, where one is set,
//! and the page asks its reader for that.
//!
//! The policy lets the page run its own script and style, named by their
//! hashes, and ask its own origin; nothing else, from nowhere. So text of the
//! node that got into the page as HTML after all could not do anything.
//!
//! Programs that do not ask for HTML get a list of where to go, as JSON.

use std::sync::LazyLock;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::ApiError;
use super::openapi::Outer;
use super::{Phase, Shared, answer};

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const POLICY: HeaderName = header::CONTENT_SECURITY_POLICY;
/// The page asks by itself every two seconds; a browser without its script need not hurry.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// The page and its policy.
struct Whole {
    page: Bytes,
    policy: HeaderValue,
}

static WHOLE: LazyLock<Whole> = LazyLock::new(|| {
    let page = PAGE.replacen("/*STYLE*/", STYLE, 1);
    let page = page.replacen("/*SCRIPT*/", SCRIPT, 1);
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    Whole {
        page: page.into(),
        // It is all visible ASCII; whatever were not would allow nothing.
        policy: HeaderValue::try_from(policy)
            .unwrap_or(HeaderValue::from_static("default-src 'none'")),
    }
});

/// A source of the policy (CSP level 3, 2.3.1).
fn hash(text: &str) -> String {
    format!(
        "sha256-{}",
        STANDARD.encode(digest(&SHA256, text.as_bytes()))
    )
}

/// Where to go.
#[derive(Serialize, ToSchema)]
pub(super) struct Index {
    /// `aspen-node`
    program: &'static str,
    /// What this is to people.
    message: &'static str,
    /// Paths that answer.
    see: [&'static str; 7],
}

const INDEX: Index = Index {
    program: "aspen-node",
    message: "a browser gets the status page here",
    see: [
        "/health",
        "/livez",
        "/readyz",
        "/status",
        "/metrics",
        "/openapi.json",
        "/api/kv",
    ],
};

/// The status page, for a browser; for others a list of paths.
#[utoipa::path(get, path = "/", tag = "operation", responses(
    (status = 200, description = "The page where `Accept` names `text/html`, else where to go",
        content((Index = "application/json"), (String = "text/html"))),
    (status = 503, description = "The same page, which tells how far a migration is; or an error",
        content((super::error::Failure = "application/json"), (String = "text/html")),
        headers(("Retry-After" = u32, description = "Seconds after which to ask again"))),
    Outer,
))]
pub(super) async fn page(
    State(shared): State<Shared>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let serves = matches!(shared.phase(), Phase::Serving(_));
    let mut response = match wants_html(&headers) {
        true => html(),
        false => {
            shared.node()?;
            answer::json(StatusCode::OK, &INDEX)
        }
    };
    let told = response.headers_mut();
    told.insert(header::VARY, HeaderValue::from_static("accept"));
    if !serves {
        told.insert(header::RETRY_AFTER, RETRY_AFTER);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

fn html() -> Response {
    let mut response = answer::with_type(StatusCode::OK, HTML, Body::from(WHOLE.page.clone()));
    response.headers_mut().insert(POLICY, WHOLE.policy.clone());
    response
}

fn wants_html(headers: &HeaderMap) -> bool {
    let named = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default().to_ascii_lowercase();
        value.contains("text/html")
    };
    headers.get_all(header::ACCEPT).iter().any(named)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn asked(accept: Option<&str>) -> Result<Response, ApiError> {
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        page(State(Shared::default()), headers).await
    }

    #[test]
    fn style_and_script_stand_in_the_page_once_and_as_they_are_hashed() {
        let page = std::str::from_utf8(&WHOLE.page).unwrap();
        assert!(page.contains(&format!("<style>{STYLE}</style>")));
        assert!(page.contains(&format!("<script>{SCRIPT}</script>")));
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("<style").count(), 1);
        for end in ["</script", "</style", "<!--"] {
            assert!(!SCRIPT.contains(end) && !STYLE.contains(end), "{end}");
        }
        let policy = WHOLE.policy.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"));
        assert!(!policy.contains("unsafe"), "{policy}");
        // `openssl dgst -sha256 -binary | base64` of nothing.
        let empty = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(hash(""), empty);
    }

    #[test]
    fn the_page_needs_nobody_else_and_takes_no_text_for_html() {
        let page = std::str::from_utf8(&WHOLE.page).unwrap();
        let svg = ["http://www.w3.org/2000/svg"; 2];
        let found: Vec<_> = page.match_indices("http").collect();
        let foreign = found.iter().filter(|(at, _)| {
            let rest = &page[*at..];
            rest.starts_with("https://")
                || (rest.starts_with("http://") && !rest.starts_with(svg[0]))
        });
        assert_eq!(foreign.count(), 0);
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "setTimeout(\"",
            " style=",
            " onclick=",
            "url(",
            "@import",
        ] {
            assert!(!page.contains(way), "{way}");
        }
    }

    #[tokio::test]
    async fn a_browser_gets_the_page_in_every_phase_and_a_program_an_error() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let page = asked(Some(browser)).await.unwrap();
        assert_eq!(page.status(), 503);
        assert_eq!(page.headers()[header::CONTENT_TYPE], HTML);
        assert!(page.headers().contains_key(POLICY));
        assert!(page.headers().contains_key(header::RETRY_AFTER));
        for other in [None, Some("*/*"), Some("application/json")] {
            assert!(asked(other).await.is_err());
        }
    }
}
