//! `/api/kv/KEY`.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse as _, Response};
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::error::ApiError;
use super::{Phase, Shared};

/// What precedes the key in a path.
const PREFIX: &str = "/api/kv/";

/// The value of a key, from this node's own state machine.
pub(super) async fn get(State(shared): State<Shared>, uri: Uri) -> Result<Response, ApiError> {
    let key = key_of(&uri)?;
    let Phase::Serving(node) = shared.phase() else {
        return Err(ApiError::unavailable("the node is stopping"));
    };
    match node
        .get(key.clone(), crate::raft::Consistency::Linearizable)
        .await
    {
        Ok(Some(value)) => Ok(Json(json!({ "key": key, "value": value })).into_response()),
        Ok(None) => Err(ApiError::no_key()),
        Err(error) => Err(ApiError::unavailable(error.to_string())),
    }
}

/// For now.
pub(super) async fn put(
    State(shared): State<Shared>,
    uri: Uri,
    Json(body): Json<serde_json::Value>,
) -> Result<Response, ApiError> {
    let key = key_of(&uri)?;
    let Phase::Serving(node) = shared.phase() else {
        return Err(ApiError::unavailable("the node is stopping"));
    };
    let value = body["value"].as_str().unwrap_or_default().to_owned();
    match node
        .write(crate::format::entry::Request::Set {
            key: key.clone(),
            value: value.clone(),
        })
        .await
    {
        Ok(w) => Ok(Json(json!({ "key": key, "value": value, "index": w.index })).into_response()),
        Err(error) => Err(ApiError::unavailable(error.to_string())),
    }
}

/// The key may hold slashes, and anything else percent-encoded.
fn key_of(uri: &Uri) -> Result<String, ApiError> {
    let encoded = uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let key = percent_decode_str(encoded).decode_utf8();
    key.map(String::from)
        .map_err(|_| ApiError::bad_request("the key is not UTF-8"))
}
