//! `/api/kv/KEY`: one key.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::error::{ApiError, Code, Conflict};
use super::limits::{NODE_TIME, Taken};
use super::openapi::{Freshness, OnceHeader, ReadKey, RemoveKey, WriteKey};
use super::{Shared, answer, input};
use crate::format::entry::{Idempotent, Outcome, Plain, Request as Write};
use crate::raft::{Node, RequestError, Written};

/// The client's name for a write, so that a repetition changes nothing again
/// (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Whether the answer is that of an earlier request with the same key.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A key and its value.
#[derive(Serialize, ToSchema)]
#[schema(as = KeyValue)]
pub(super) struct Pair<'a> {
    pub(super) key: &'a str,
    pub(super) value: &'a str,
}

/// What was written. Only a schema: see [`Echo`].
#[derive(ToSchema)]
#[schema(as = Written)]
#[allow(dead_code)]
pub(super) struct WrittenBody {
    key: String,
    value: String,
    /// Its index in the log.
    index: u64,
}

/// What was removed.
#[derive(Serialize, ToSchema)]
pub(super) struct Removed {
    key: String,
    deleted: bool,
    /// Its index in the log.
    index: u64,
}

/// The value of a key.
#[utoipa::path(get, path = "/api/kv/{*key}", tag = "keys",
    params(
        ("key" = String, Path, description = "May hold slashes; anything else percent-encoded"),
        Freshness,
    ),
    responses((status = 200, description = "The key exists", body = Pair), ReadKey))]
pub(super) async fn get(State(shared): State<Shared>, uri: Uri) -> Result<Response, ApiError> {
    let node = shared.node()?;
    let key = input::key(uri.path())?;
    let consistency = input::consistency(uri.query())?;
    let read = timeout(NODE_TIME, node.get(key.clone(), consistency)).await;
    let value = read.unwrap_or(Err(RequestError::Timeout))?;
    let value = value.ok_or_else(ApiError::no_key)?;
    let (key, value) = (key.as_str(), value.as_str());
    sized(&shared, key.len() + value.len(), &Pair { key, value })
}

/// Sets a key.
#[utoipa::path(post, path = "/api/kv/{*key}", operation_id = "post", tag = "keys",
    params(
        ("key" = String, Path, description = "May hold slashes; anything else percent-encoded; at most 4096 bytes without U+0000"),
        OnceHeader,
    ),
    request_body = input::SetBody,
    responses(
        (status = 200, description = "Durable on a majority", body = WrittenBody,
            headers(("Idempotent-Replayed" = bool, description = "`true` when this answers an earlier request with the same Idempotency-Key; absent otherwise"))),
        (status = 409, description = "`conflict`: The key does not hold what was expected; nothing was changed.", body = Conflict),
        WriteKey,
    ))]
pub(super) async fn post(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response, ApiError> {
    set(&shared, request).await
}

/// Sets a key; the same as POST.
#[utoipa::path(put, path = "/api/kv/{*key}", operation_id = "put", tag = "keys",
    params(
        ("key" = String, Path, description = "May hold slashes; anything else percent-encoded; at most 4096 bytes without U+0000"),
        OnceHeader,
    ),
    request_body = input::SetBody,
    responses(
        (status = 200, description = "Durable on a majority", body = WrittenBody,
            headers(("Idempotent-Replayed" = bool, description = "`true` when this answers an earlier request with the same Idempotency-Key; absent otherwise"))),
        (status = 409, description = "`conflict`: The key does not hold what was expected; nothing was changed.", body = Conflict),
        WriteKey,
    ))]
pub(super) async fn put(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response, ApiError> {
    set(&shared, request).await
}

/// Removes a key.
#[utoipa::path(delete, path = "/api/kv/{*key}", tag = "keys",
    params(
        ("key" = String, Path, description = "May hold slashes; anything else percent-encoded"),
        OnceHeader,
    ),
    responses(
        (status = 200, description = "It existed and is gone, durably on a majority", body = Removed,
            headers(("Idempotent-Replayed" = bool, description = "`true` when this answers an earlier request with the same Idempotency-Key; absent otherwise"))),
        RemoveKey,
    ))]
pub(super) async fn delete(
    State(shared): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let node = shared.node()?;
    let key = input::key(uri.path())?;
    input::nothing(uri.query())?;
    let once = idempotency_key(&headers)?;
    let write = Plain::Delete { key: key.clone() };
    let written = written(&shared, &node, write, once).await?;
    let index = written.index;
    let answered = match written.outcome {
        Outcome::Done { deleted: 0 } => Err(ApiError::no_key()),
        _ => {
            let deleted = true;
            Ok(answer::json(
                StatusCode::OK,
                &Removed {
                    key,
                    deleted,
                    index,
                },
            ))
        }
    };
    Ok(marked(answered, written.replayed))
}

async fn set(shared: &Shared, request: Request) -> Result<Response, ApiError> {
    let node = shared.node()?;
    let (parts, body) = request.into_parts();
    let key = input::key(parts.uri.path())?;
    let once = idempotency_key(&parts.headers)?;
    let Taken { bytes, share } = json_body(shared, &parts, body).await?;
    let write = input::set(key, &bytes)?;
    drop(bytes);
    let echo = Echo::of(&write);
    let written = written(shared, &node, write, once).await?;
    let answered = match written.outcome {
        Outcome::Conflict { current } => Err(ApiError::conflict(current)),
        _ => {
            let bytes = echo.with(written.index);
            Ok(match share {
                None => answer::encoded(StatusCode::OK, bytes),
                // The answer is about as long as the body was.
                Some(share) => answer::held(StatusCode::OK, bytes, share),
            })
        }
    };
    Ok(marked(answered, written.replayed))
}

/// The key under which a write shall happen once.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut fields = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (fields.next(), fields.next()) {
        (None, _) => Ok(None),
        (Some(field), None) => input::idempotency_key(field.as_bytes()).map(Some),
        (Some(_), Some(_)) => {
            let message = "the request has more than one Idempotency-Key";
            Err(ApiError::new(Code::InvalidIdempotencyKey, message))
        }
    }
}

/// Says of an answer whether it tells again what an earlier request was told.
pub(super) fn marked(answered: Result<Response, ApiError>, replayed: bool) -> Response {
    let mut response = answered.into_response();
    if replayed {
        let told = HeaderValue::from_static("true");
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, told);
    }
    response
}

/// The body of a request that must be JSON and has no query.
pub(super) async fn json_body(
    shared: &Shared,
    parts: &Parts,
    body: Body,
) -> Result<Taken, ApiError> {
    input::nothing(parts.uri.query())?;
    declared_json(&parts.headers)?;
    shared.limits().body(body).await
}

/// A browser can be made to send a body of no type, or of one of a form, to
/// this node by any web page; of JSON only with our leave.
fn declared_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let declared = headers.get(header::CONTENT_TYPE);
    let declared = declared.map(|value| value.as_bytes());
    let media_type = declared.and_then(|value| value.split(|byte| *byte == b';').next());
    let is_json = |value: &[u8]| value.trim_ascii().eq_ignore_ascii_case(b"application/json");
    match media_type.is_some_and(is_json) {
        true => Ok(()),
        false => {
            let message = "send the body as JSON, with Content-Type: application/json";
            Err(ApiError::new(Code::NotJson, message))
        }
    }
}

/// Has the node carry out a write, once if it has a key for that, and counts it.
pub(super) async fn written(
    shared: &Shared,
    node: &Node,
    write: Plain,
    once: Option<String>,
) -> Result<Written, ApiError> {
    let write = match once {
        None => write.into(),
        Some(key) => {
            let once = Idempotent::new(key, write);
            let once = once.map_err(|error| ApiError::bad_request(error.to_string()))?;
            Write::Idempotent(Box::new(once))
        }
    };
    let began = Instant::now();
    let written = timeout(NODE_TIME, node.write(write)).await;
    shared.metrics().wrote(began.elapsed());
    Ok(written.unwrap_or(Err(RequestError::Unconfirmed))?)
}

/// An answer of stored data, which may be of any size; `stored` bytes of it.
pub(super) fn sized<T: Serialize>(
    shared: &Shared,
    stored: usize,
    value: &T,
) -> Result<Response, ApiError> {
    // Before it is written out, which takes as much again.
    let share = shared.limits().answer(stored)?;
    let bytes = answer::encode(value);
    Ok(match share {
        None => answer::encoded(StatusCode::OK, bytes),
        Some(share) => answer::held(StatusCode::OK, bytes, share),
    })
}

/// The answer to a write, made before the write takes key and value away: all
/// but the index, which only the write knows.
struct Echo(Vec<u8>);

impl Echo {
    fn of(write: &Plain) -> Self {
        let (key, value) = match write {
            Plain::Set { key, value } | Plain::CompareAndSet { key, value, .. } => (key, value),
            _ => return Self(Vec::new()),
        };
        Self(answer::encode(&Pair { key, value }))
    }

    fn with(self, index: u64) -> Vec<u8> {
        let Self(mut bytes) = self;
        // The brace that closes the pair.
        bytes.pop();
        bytes.extend_from_slice(b",\"index\":");
        bytes.extend_from_slice(index.to_string().as_bytes());
        bytes.push(b'}');
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_write_is_answered_with_key_value_and_index() {
        let (key, value) = ("k\"".to_owned(), "v\n".to_owned());
        let echo = Echo::of(&Plain::Set { key, value });
        let answer = String::from_utf8(echo.with(u64::MAX)).unwrap();
        let expected = r#"{"key":"k\"","value":"v\n","index":18446744073709551615}"#;
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_body_must_be_declared_as_json() {
        let declared = |value: Option<&'static str>| {
            let value = value.map(HeaderValue::from_static);
            let headers = value.map(|value| (header::CONTENT_TYPE, value));
            declared_json(&headers.into_iter().collect())
        };
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json ;x=y",
        ] {
            assert!(declared(Some(good)).is_ok(), "{good}");
        }
        for bad in [
            None,
            Some(""),
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some("application/json5"),
            Some("text/plain; application/json"),
        ] {
            assert_eq!(declared(bad).unwrap_err().code(), Code::NotJson, "{bad:?}");
        }
    }
}
