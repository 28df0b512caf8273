//! `/admin/members`: who belongs to the cluster.

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::{ApiError, Code};
use crate::http::kv::json_body;
use crate::http::openapi::{ChangeMembers, Inner, RemoveMember};
use crate::http::{Shared, answer, input};
use crate::raft::Members;

/// The members.
#[derive(Serialize, ToSchema)]
#[schema(as = Members)]
pub(crate) struct MembersBody {
    /// Who leads; null if that is not known, and then the rest is from this node's log.
    #[schema(required)]
    leader: Option<u64>,
    members: Vec<MemberBody>,
}

/// A member, as the leader knows it.
#[derive(Serialize, ToSchema)]
#[schema(as = MemberState)]
pub(crate) struct MemberBody {
    id: u64,
    /// Where its peers reach it.
    peer: String,
    /// `voter` or `learner`
    role: &'static str,
    /// Entries that it is behind; null if that is not known.
    #[schema(required)]
    lag: Option<u64>,
    /// Milliseconds since the leader heard of it; null if it never did.
    #[schema(required)]
    silent_ms: Option<u64>,
}

impl From<Members> for MembersBody {
    fn from(members: Members) -> Self {
        let body = members.members.into_iter().map(|member| MemberBody {
            id: member.id,
            peer: member.peer,
            role: if member.voter { "voter" } else { "learner" },
            lag: member.lag,
            silent_ms: member.silent_ms,
        });
        Self {
            leader: members.leader,
            members: body.collect(),
        }
    }
}

/// Who the members are and how they are.
#[utoipa::path(get, path = "/admin/members", tag = "operation", operation_id = "members",
    responses((status = 200, description = "The members", body = MembersBody), Inner))]
pub(crate) async fn list(State(shared): State<Shared>) -> Result<Response, ApiError> {
    let members = shared.node()?.members().await?;
    Ok(answer::json(StatusCode::OK, &MembersBody::from(members)))
}

/// Adds a node, makes a learner a voter, or changes an address. The same request
/// again goes on where the last one stopped.
#[utoipa::path(post, path = "/admin/members", tag = "operation", operation_id = "set_member",
    request_body = input::MemberBody,
    responses((status = 200, description = "It is such a member", body = MembersBody), ChangeMembers))]
pub(crate) async fn set(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response, ApiError> {
    let node = shared.node()?;
    let (parts, body) = request.into_parts();
    let member = input::member(&json_body(&shared, &parts, body).await?.bytes)?;
    let members = node
        .set_member(member.id, member.peer, member.voter)
        .await?;
    Ok(answer::json(StatusCode::OK, &MembersBody::from(members)))
}

/// Removes a member. A leader hands over first.
#[utoipa::path(delete, path = "/admin/members/{id}", tag = "operation", operation_id = "remove_member",
    params(("id" = u64, Path, description = "The member's id")),
    responses((status = 200, description = "It is a member no more", body = MembersBody), RemoveMember))]
pub(crate) async fn remove(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let node = shared.node()?;
    input::nothing(uri.query())?;
    let id = id.parse().map_err(|_| {
        ApiError::new(
            Code::NoSuchMember,
            "there is no such member: an id is a number",
        )
    })?;
    let members = node.remove_member(id).await?;
    Ok(answer::json(StatusCode::OK, &MembersBody::from(members)))
}
