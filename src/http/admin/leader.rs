//! `/admin/leader`: who leads.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::http::kv::json_body;
use crate::http::openapi::Lead;
use crate::http::{Shared, answer, input};

/// Who leads now.
#[derive(Serialize, ToSchema)]
#[schema(as = Leader)]
pub(crate) struct LeaderBody {
    leader: u64,
    term: u64,
}

/// Has another node lead, and answers once it does. Writes wait meanwhile, and
/// none is lost.
#[utoipa::path(post, path = "/admin/leader", tag = "operation", operation_id = "transfer",
    request_body = input::LeadBody,
    responses((status = 200, description = "It leads", body = LeaderBody), Lead))]
pub(crate) async fn transfer(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response, ApiError> {
    let node = shared.node()?;
    let (parts, body) = request.into_parts();
    let to = input::lead(&json_body(&shared, &parts, body).await?.bytes)?;
    let led = node.transfer_leadership(to).await?;
    let (leader, term) = (led.leader, led.term);
    Ok(answer::json(StatusCode::OK, &LeaderBody { leader, term }))
}
