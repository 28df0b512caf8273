//! Answers: JSON in one buffer, and memory that is given back once it is sent.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use super::limits::Share;

/// What every answer but a stream and the metrics is.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Bytes of most answers, so that they are written into one allocation.
const USUAL_BYTES: usize = 256;

/// `value` as JSON. It must not be able to fail: a map has text as its keys.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    if let Err(error) = serde_json::to_writer(&mut bytes, value) {
        debug_assert!(false, "{error}");
    }
    bytes
}

/// An answer of JSON.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    encoded(status, encode(value))
}

/// An answer of what is JSON already.
pub(super) fn encoded(status: StatusCode, bytes: impl Into<Bytes>) -> Response {
    with_type(status, JSON, Body::from(bytes.into()))
}

/// The same, giving `share` back once the client has it, or is gone.
pub(super) fn held(status: StatusCode, bytes: Vec<u8>, share: Share) -> Response {
    let held = Held {
        bytes,
        _share: share,
    };
    encoded(status, Bytes::from_owner(held))
}

/// An answer of any type.
pub(super) fn with_type(status: StatusCode, content_type: HeaderValue, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    response
}

/// Bytes that hold their share of the memory. Not a body that does: the
/// connection lets go of that while most bytes are still in its own queue.
struct Held {
    bytes: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
