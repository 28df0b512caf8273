//! `/openapi.json`, from the descriptions that stand with the routes and from
//! the table of errors.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn, Paths};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{self, ContentBuilder, Ref, RefOr, Required, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, OpenApi, ToSchema};

use super::error::{ApiError, Code, Failure};
use super::limits::MAX_LAG_MS;
use super::{Shared, answer};
use crate::format::idempotency;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Aspen",
        description = "A Raft key-value node.\n\n\
            A connection over the node's limit gets 503 `too_many_connections` and is closed. \
            Every answer to a request that is well-formed HTTP is described here; one that is not \
            gets 400 or 431 without a body and the connection is closed. A method that a path does not \
            take gets 405 with `Allow`, a path that is none 404, both with an error as everywhere.\n\n\
            A write is answered once it is durable on a majority of the members. Reads are \
            linearizable unless `consistency` says otherwise.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(Failure)),
    tags(
        (name = "keys", description = "Keys and values"),
        (name = "health", description = "For load balancers and supervisors"),
        (name = "operation", description = "For operators"),
    ),
)]
struct Description;

/// What routes are added to.
pub(super) fn base() -> openapi::OpenApi {
    let mut base = Description::openapi();
    base.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let components = base.components.get_or_insert_default();
    components.add_security_scheme("token", bearer);
    // A node without a token asks for none.
    let token = SecurityRequirement::new("token", [""; 0]);
    base.security = Some(vec![SecurityRequirement::default(), token]);
    base
}

/// The routes' path templates are the router's, which marks the rest of a path
/// with an asterisk; OpenAPI has no word for that.
pub(super) fn finish(mut description: openapi::OpenApi) -> Bytes {
    let paths = std::mem::take(&mut description.paths);
    let mut plain = Paths::new();
    for (path, item) in paths.paths {
        plain.paths.insert(template(&path), item);
    }
    description.paths = plain;
    Bytes::from(answer::encode(&description))
}

/// A path as OpenAPI writes it.
pub(super) fn template(path: &str) -> String {
    path.replace("{*", "{")
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "operation", responses(
    (status = 200, description = "This description", body = Object),
    Inner,
))]
pub(super) async fn document(State(shared): State<Shared>) -> Result<Response, ApiError> {
    shared.node()?;
    Ok(answer::encoded(StatusCode::OK, shared.description()))
}

/// The header that makes a write happen once.
pub(super) struct OnceHeader;

impl IntoParams for OnceHeader {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(2 * idempotency::MAX_KEY_BYTES + 2))
            .pattern(Some(
                r#"^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-+\-.-:<-\[\]-~]{1,255})$"#,
            ));
        let about = format!(
            "The client's name for this request: however often it is sent, it happens once, and \
             every answer is the first one's, marked by `Idempotent-Replayed: true`. A string as in \
             RFC 8941, in quotes or without, of at most {} bytes; the last {} such requests are \
             remembered.",
            idempotency::MAX_KEY_BYTES,
            idempotency::MAX_RECORDS,
        );
        let header = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(about))
            .schema(Some(schema))
            .build();
        vec![header]
    }
}

/// How fresh a read is.
pub(super) struct Freshness;

impl IntoParams for Freshness {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let query = |name: &str, about: String, schema: ObjectBuilder| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(Some(about))
                .schema(Some(schema))
                .build()
        };
        let consistency = "`linearizable`, the default: confirmed by a majority for this read. `lease`: the \
             same, confirmed by what a majority has told the leader in the last third of an election timeout, \
             which relies on clocks that run at similar rates. `stale`: what this node has applied.";
        let max_lag = "With `consistency=stale`: milliseconds before the request from which on a \
             write may be missing. A node that does not know that it holds all the older ones asks the leader.";
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^(linearizable|lease|stale)$"));
        let number = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(0))
            .maximum(Some(MAX_LAG_MS as f64));
        vec![
            query("consistency", consistency.to_owned(), text),
            query("max_lag", max_lag.to_owned(), number),
        ]
    }
}

/// Sets of errors, as the routes name them.
macro_rules! failures {
    ($($(#[$doc:meta])* $name:ident = $($code:ident)*;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
                described(&[$(Code::$code),*])
            }
        }
    )*};
}

failures! {
    /// Of routes that are open to all.
    Outer = HostNotAllowed;
    /// Of the same, where they take a query.
    OuterQuery = HostNotAllowed BadRequest;
    /// Of a route that is answered in every phase.
    Always = HostNotAllowed TooManyConnections BadRequest;
    /// Of a route that is answered in every phase and is not open to all.
    Watched = HostNotAllowed TooManyConnections Unauthorized Forbidden Overloaded;
    /// Of routes that need a serving node.
    Inner = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded;
    /// Of a read of one key.
    ReadKey = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded
        BadRequest KeyNotFound NoLeader NotMember Timeout Storage;
    /// Of a page.
    ReadPage = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded
        BadRequest NoLeader NotMember Timeout Storage;
    /// Of a write of one key, but for the conflict, which tells more.
    WriteKey = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded
        BadRequest InvalidKey InvalidIdempotencyKey BodyTooSlow BodyTooLarge ValueTooLarge PathTooLong
        NotJson IdempotencyKeyReused NoLeader NotMember Unconfirmed DiskFull Storage;
    /// Of a removal.
    RemoveKey = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded
        BadRequest InvalidIdempotencyKey KeyNotFound IdempotencyKeyReused NoLeader NotMember Unconfirmed
        DiskFull Storage;
    /// Of a batch.
    WriteBatch = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded
        BadRequest InvalidKey InvalidIdempotencyKey DuplicateKey BodyTooSlow BodyTooLarge KeyTooLong
        ValueTooLarge BatchTooLarge NotJson IdempotencyKeyReused NoLeader NotMember Unconfirmed DiskFull Storage;
    /// Of what works on the files.
    Files = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded
        Busy NoLeader NotMember Timeout DiskFull Storage;
    /// Of a removal of a member.
    RemoveMember = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded
        BadRequest NoSuchMember Refused NotYet NoLeader NotMember CommandUnconfirmed;
    /// Of an addition or a change of one.
    ChangeMembers = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded
        BadRequest BodyTooSlow BodyTooLarge NotJson Refused NotYet NoLeader NotMember CommandUnconfirmed;
    /// Of a transfer of leadership.
    Lead = HostNotAllowed TooManyConnections Unauthorized Forbidden Unavailable Overloaded
        BadRequest BodyTooSlow BodyTooLarge NotJson NoSuchMember Refused NotYet NoLeader NotMember
        CommandUnconfirmed;
}

/// The answers that codes stand for, one for each status.
fn described(codes: &[Code]) -> BTreeMap<String, RefOr<openapi::Response>> {
    let mut by_status = BTreeMap::<StatusCode, Vec<String>>::new();
    for code in codes {
        let line = format!("`{}`: {}", code.name(), code.meaning());
        by_status.entry(code.status()).or_default().push(line);
    }
    let described = by_status.into_iter().map(|(status, lines)| {
        let schema = Ref::from_schema_name(Failure::name());
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let mut response = ResponseBuilder::new()
            .description(lines.join("\n\n"))
            .content("application/json", content);
        if ApiError::asks_to_come_back(status) {
            let seconds = ObjectBuilder::new().schema_type(Type::Integer).build();
            let header = HeaderBuilder::new().schema(Some(seconds));
            let header = header.description(Some("Seconds after which to try again"));
            response = response.header("Retry-After", header.build());
        }
        (status.as_str().to_owned(), response.build().into())
    });
    described.collect()
}
