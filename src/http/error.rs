//! Errors as the API tells them: `{"error": {"code": ..., "message": ...}}`.
//!
//! Each [`Code`] stands in the table below with its status and its meaning; the
//! answers and `/openapi.json` both come from there, so that no error is sent
//! that is not described. A code never changes its meaning: programs match it,
//! people read the message.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer;
use crate::raft::{CommandError, RequestError};
use crate::telemetry::count::Count;

/// Seconds after which a client is told to try again: about as long as an
/// election or a short queue takes.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
/// How clients show a token (RFC 6750).
const BEARER: HeaderValue = HeaderValue::from_static("Bearer");

macro_rules! codes {
    ($($name:ident = $status:ident $text:literal $meaning:literal;)*) => {
        /// Why a request is not answered as it was meant, for programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $meaning] $name,)*
        }

        impl Code {
            /// All of them.
            pub(super) const ALL: &[Self] = &[$(Self::$name),*];

            /// Its status.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// Its name in an answer. Two codes share one where only the status differs.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Counts an answer of this kind.
            pub(super) fn count(self) {
                COUNTS[self as usize].inc();
            }

            /// How often it was answered.
            pub(super) fn counted(self) -> u64 {
                COUNTS[self as usize].get()
            }

            /// What it means, for the description of the API.
            pub(super) fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

codes! {
    BadRequest = BAD_REQUEST "bad_request" "The path, the query or the body is not understood.";
    InvalidKey = BAD_REQUEST "invalid_key" "The key to be written is empty or holds U+0000.";
    InvalidIdempotencyKey = BAD_REQUEST "invalid_idempotency_key" "The Idempotency-Key is none: see the description of the header.";
    DuplicateKey = BAD_REQUEST "duplicate_key" "A key stands twice in the batch.";
    Unauthorized = UNAUTHORIZED "unauthorized" "A token is needed, or the one given is not known.";
    Forbidden = FORBIDDEN "forbidden" "The token does not allow this.";
    HostNotAllowed = FORBIDDEN "host_not_allowed" "The request names a host that is not this machine's own.";
    NoSuchRoute = NOT_FOUND "no_such_route" "There is nothing at this path.";
    KeyNotFound = NOT_FOUND "key_not_found" "There is no such key.";
    NoSuchMember = NOT_FOUND "no_such_member" "There is no such member.";
    MethodNotAllowed = METHOD_NOT_ALLOWED "method_not_allowed" "The path does not take this method; Allow says which.";
    BodyTooSlow = REQUEST_TIMEOUT "body_too_slow" "The body did not arrive in time.";
    Conflict = CONFLICT "conflict" "The key does not hold what was expected; nothing was changed.";
    Refused = CONFLICT "refused" "The cluster must not change like that now; nothing was done.";
    BodyTooLarge = PAYLOAD_TOO_LARGE "body_too_large" "The body is too large.";
    KeyTooLong = PAYLOAD_TOO_LARGE "key_too_long" "A key in the batch is too long.";
    ValueTooLarge = PAYLOAD_TOO_LARGE "value_too_large" "A value is too large.";
    BatchTooLarge = PAYLOAD_TOO_LARGE "batch_too_large" "The batch holds too many keys, or too much altogether.";
    PathTooLong = URI_TOO_LONG "key_too_long" "The key in the path is too long to be written.";
    HeadTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE "head_too_large" "The request's line and headers are too large.";
    NotJson = UNSUPPORTED_MEDIA_TYPE "unsupported_media_type" "The body is not declared as application/json.";
    IdempotencyKeyReused = UNPROCESSABLE_ENTITY "idempotency_key_reused" "Another request was sent with the same Idempotency-Key; nothing was done.";
    Busy = TOO_MANY_REQUESTS "busy" "As many of these as the node carries out at a time are under way.";
    Storage = INTERNAL_SERVER_ERROR "storage_failed" "The state machine failed; the reason is in the node's log.";
    Unavailable = SERVICE_UNAVAILABLE "unavailable" "The node is starting, migrating or stopping.";
    TooManyConnections = SERVICE_UNAVAILABLE "too_many_connections" "The node has as many connections as it may.";
    NoLeader = SERVICE_UNAVAILABLE "no_leader" "Nobody leads the cluster, or the leader reaches no majority; nothing was done.";
    NotMember = SERVICE_UNAVAILABLE "not_member" "This node waits to be added to a cluster, was removed, or is barred; nothing was done. Ask another node.";
    NotYet = SERVICE_UNAVAILABLE "not_yet" "It is under way and not done yet; the same request again goes on with it.";
    Overloaded = SERVICE_UNAVAILABLE "overloaded" "The node has as much to do as its memory allows; nothing was done.";
    Timeout = GATEWAY_TIMEOUT "timeout" "The read was not confirmed in time.";
    Unconfirmed = GATEWAY_TIMEOUT "unconfirmed" "The write was not confirmed in time: it may still happen. Read before writing again, or use an Idempotency-Key.";
    CommandUnconfirmed = GATEWAY_TIMEOUT "unconfirmed" "The leader did not answer in time: it may still happen. Look at /status before asking again.";
    DiskFull = INSUFFICIENT_STORAGE "disk_full" "The disk is nearly full; nothing was done, and reads go on.";
}

/// How often each was answered, in the order of [`Code::ALL`]: by the routes, and before
/// them by who admits requests and connections.
static COUNTS: [Count; Code::ALL.len()] = [const { Count::new() }; Code::ALL.len()];

/// A request that is not answered as it was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    code: Code,
    message: Cow<'static, str>,
    /// What the key holds, after a compare-and-set that found something else.
    current: Option<Option<String>>,
}

/// An answer that is an error.
#[derive(Serialize, ToSchema)]
pub(super) struct Failure<'a> {
    error: Reason<'a>,
}

/// Why.
#[derive(Serialize, ToSchema)]
pub(super) struct Reason<'a> {
    /// For programs; it never changes its meaning.
    #[schema(example = "key_not_found")]
    code: &'a str,
    /// For people; its wording may change.
    #[schema(example = "there is no such key")]
    message: &'a str,
}

/// The answer to a compare-and-set that found something else.
#[derive(Serialize, ToSchema)]
pub(super) struct Conflict<'a> {
    error: Reason<'a>,
    /// What the key holds; null where it does not exist.
    #[schema(required)]
    current: Option<&'a str>,
}

impl ApiError {
    pub(super) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            current: None,
        }
    }

    pub(super) fn no_route() -> Self {
        Self::new(Code::NoSuchRoute, "there is nothing at this path")
    }

    pub(super) fn method() -> Self {
        let message = "this path does not take this method; the Allow header says which";
        Self::new(Code::MethodNotAllowed, message)
    }

    pub(super) fn no_key() -> Self {
        Self::new(Code::KeyNotFound, "there is no such key")
    }

    pub(super) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::BadRequest, message)
    }

    pub(super) fn host() -> Self {
        let message = "the Host header names neither this machine's loopback address nor localhost";
        Self::new(Code::HostNotAllowed, message)
    }

    pub(super) fn unauthorized() -> Self {
        let message = "this needs a token: Authorization: Bearer TOKEN";
        Self::new(Code::Unauthorized, message)
    }

    pub(super) fn forbidden(message: &'static str) -> Self {
        Self::new(Code::Forbidden, message)
    }

    pub(super) fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    pub(super) fn overloaded() -> Self {
        Self::new(Code::Overloaded, "the node is busy; try again shortly")
    }

    pub(super) fn conflict(current: Option<String>) -> Self {
        let message = "the key does not hold what was expected; nothing was changed";
        Self {
            current: Some(current),
            ..Self::new(Code::Conflict, message)
        }
    }

    /// Whether the answer says when to try again. Not 504: whether to write
    /// again is the client's to decide.
    pub(super) fn asks_to_come_back(status: StatusCode) -> bool {
        matches!(
            status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        )
    }

    /// Why, for programs.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let code = match error {
            RequestError::NoLeader => Code::NoLeader,
            RequestError::NoMember(_) => Code::NotMember,
            RequestError::DiskFull(_) => Code::DiskFull,
            RequestError::Unconfirmed => Code::Unconfirmed,
            RequestError::KeyReused => Code::IdempotencyKeyReused,
            RequestError::Timeout => Code::Timeout,
            RequestError::Stopping => Code::Unavailable,
            RequestError::Storage(_) => Code::Storage,
        };
        Self::new(code, error.to_string())
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        let code = match error {
            CommandError::Request(error) => return error.into(),
            CommandError::NoMember(_) => Code::NoSuchMember,
            CommandError::Refused(_) => Code::Refused,
            CommandError::NotYet(_) => Code::NotYet,
            CommandError::Unconfirmed => Code::CommandUnconfirmed,
        };
        Self::new(code, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.code.count();
        let (code, message) = (self.code.name(), &*self.message);
        let (error, status) = (Reason { code, message }, self.code.status());
        let mut response = match &self.current {
            None => answer::json(status, &Failure { error }),
            Some(current) => {
                let current = current.as_deref();
                answer::json(status, &Conflict { error, current })
            }
        };
        let headers = response.headers_mut();
        if Self::asks_to_come_back(status) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, BEARER);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::storage::StorageError;

    async fn told(error: ApiError) -> (u16, Option<String>, String) {
        let response = error.into_response();
        let retry = response.headers().get(header::RETRY_AFTER);
        let retry = retry.map(|value| value.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 4096).await;
        let body = String::from_utf8(body.unwrap().to_vec()).unwrap();
        (status, retry, body)
    }

    #[tokio::test]
    async fn what_the_node_refuses_has_its_status_and_says_whether_to_try_again() {
        let storage = RequestError::Storage(Arc::new(StorageError::Closed));
        for (error, status, code, again) in [
            (RequestError::NoLeader, 503, "no_leader", true),
            (
                RequestError::NoMember("removed".into()),
                503,
                "not_member",
                true,
            ),
            (
                RequestError::DiskFull("no space".into()),
                507,
                "disk_full",
                false,
            ),
            (RequestError::Unconfirmed, 504, "unconfirmed", false),
            (
                RequestError::KeyReused,
                422,
                "idempotency_key_reused",
                false,
            ),
            (RequestError::Timeout, 504, "timeout", false),
            (RequestError::Stopping, 503, "unavailable", true),
            (storage, 500, "storage_failed", false),
        ] {
            let (found, retry, body) = told(error.into()).await;
            assert_eq!(found, status, "{body}");
            assert!(
                body.starts_with(&format!(r#"{{"error":{{"code":"{code}","message":""#)),
                "{body}"
            );
            assert_eq!(retry.is_some(), again, "{body}");
        }
    }

    #[tokio::test]
    async fn a_conflict_tells_what_the_key_holds_and_null_where_there_is_none() {
        let (status, _, body) = told(ApiError::conflict(Some("\"".into()))).await;
        assert_eq!(status, 409);
        assert!(body.ends_with(r#"},"current":"\""}"#), "{body}");
        let (_, _, body) = told(ApiError::conflict(None)).await;
        assert!(body.ends_with(r#"},"current":null}"#), "{body}");
    }
}
