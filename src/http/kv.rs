//! `/api/kv/KEY`.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse as _, Response};
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::error::ApiError;
use super::{Phase, Shared};
use crate::telemetry::Chain;

/// What precedes the key in a path.
const PREFIX: &str = "/api/kv/";

/// The value of a key, from this node's own state machine.
pub(super) async fn get(State(shared): State<Shared>, uri: Uri) -> Result<Response, ApiError> {
    let key = key_of(&uri)?;
    let Phase::Serving(state_machine) = shared.phase() else {
        return Err(ApiError::unavailable("the node is stopping"));
    };
    // SQLite and redb block; the event loop must not.
    let read = tokio::task::spawn_blocking(move || {
        let value = state_machine
            .get(std::slice::from_ref(&key))
            .map(|mut v| v.remove(0));
        value.map(|value| value.map(|value| (key, value)))
    });
    match read.await {
        Ok(Ok(Some((key, value)))) => {
            Ok(Json(json!({ "key": key, "value": value })).into_response())
        }
        Ok(Ok(None)) => Err(ApiError::no_key()),
        Ok(Err(error)) => {
            tracing::error!("A key cannot be read: {}", Chain(&error));
            Err(ApiError::storage())
        }
        Err(_) => Err(ApiError::unavailable("the node is stopping")),
    }
}

/// The key may hold slashes, and anything else percent-encoded.
fn key_of(uri: &Uri) -> Result<String, ApiError> {
    let encoded = uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let key = percent_decode_str(encoded).decode_utf8();
    key.map(String::from)
        .map_err(|_| ApiError::bad_request("the key is not UTF-8"))
}
