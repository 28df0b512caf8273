//! `/api/kv`: many keys, a page at a time or in one batch.

use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::error::ApiError;
use super::kv::{Pair, idempotency_key, json_body, marked, sized, written};
use super::limits::{NODE_TIME, Taken};
use super::openapi::{Freshness, OnceHeader, ReadPage, WriteBatch};
use super::{Shared, answer, input};
use crate::format::entry::{Outcome, Plain};
use crate::raft::RequestError;

/// Pairs in the byte order of their keys.
#[derive(Serialize, ToSchema)]
pub(super) struct Page<'a> {
    pairs: Vec<Pair<'a>>,
    /// What to give as `after` for the next page; null when this is the last.
    #[schema(required)]
    next: Option<&'a str>,
}

/// What a batch did.
#[derive(Serialize, ToSchema)]
pub(super) struct BatchDone {
    /// Its index in the log.
    index: u64,
    /// Keys that were set.
    set: usize,
    /// Keys that existed and are gone.
    deleted: u64,
}

/// A page of keys and values.
#[utoipa::path(get, path = "/api/kv", tag = "keys",
    params(
        ("prefix" = Option<String>, Query, description = "What the keys begin with"),
        ("after" = Option<String>, Query, description = "The key after which the page begins; it need not exist"),
        ("limit" = Option<u16>, Query, description = "The most pairs, 100 unless told; a page ends sooner at 1 MiB", minimum = 1, maximum = 1000),
        Freshness,
    ),
    responses((status = 200, description = "The page, in one consistent view", body = Page), ReadPage))]
pub(super) async fn list(State(shared): State<Shared>, uri: Uri) -> Result<Response, ApiError> {
    let node = shared.node()?;
    let (range, consistency) = input::range(uri.query())?;
    let read = timeout(NODE_TIME, node.scan(range, consistency)).await;
    let page = read.unwrap_or(Err(RequestError::Timeout))?;
    let pairs = page.pairs.iter();
    let pairs: Vec<_> = pairs.map(|(key, value)| Pair { key, value }).collect();
    let bytes = pairs.iter().map(|pair| pair.key.len() + pair.value.len());
    let bytes = bytes.sum();
    let last = pairs.last().map(|pair| pair.key);
    let next = last.filter(|_| page.more);
    sized(&shared, bytes, &Page { pairs, next })
}

/// Sets and deletes keys, all or none.
#[utoipa::path(post, path = "/api/kv", tag = "keys",
    params(OnceHeader),
    request_body = input::BatchBody,
    responses(
        (status = 200, description = "Durable on a majority", body = BatchDone,
            headers(("Idempotent-Replayed" = bool, description = "`true` when this answers an earlier request with the same Idempotency-Key; absent otherwise"))),
        WriteBatch,
    ))]
pub(super) async fn batch(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response, ApiError> {
    let node = shared.node()?;
    let (parts, body) = request.into_parts();
    let once = idempotency_key(&parts.headers)?;
    let Taken { bytes, share } = json_body(&shared, &parts, body).await?;
    let write = input::batch(&bytes)?;
    drop(bytes);
    let set = match &write {
        Plain::Batch { set, .. } => set.len(),
        _ => 0,
    };
    let written = written(&shared, &node, write, once).await?;
    drop(share);
    let deleted = match written.outcome {
        Outcome::Done { deleted } => deleted,
        // Nothing is expected of a key.
        _ => 0,
    };
    let index = written.index;
    let done = BatchDone {
        index,
        set,
        deleted,
    };
    let answered = Ok(answer::json(StatusCode::OK, &done));
    Ok(marked(answered, written.replayed))
}
