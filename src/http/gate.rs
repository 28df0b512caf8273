//! What each request passes inside the router, in one layer: it is counted in,
//! turned away when there are too many, and its answer is counted.
//!
//! Who may ask at all was decided before, by the server.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::MethodRouter;

use super::Shared;
use super::error::ApiError;
use super::metrics::{self, Series};

/// The gate of one route.
struct Gate {
    shared: Shared,
    series: Series,
    /// Whether it is answered however many requests there are: those who watch
    /// the node must see it best when it is busy.
    always: bool,
}

/// Puts a gate before all methods of a route, and before the refusal of others.
pub(super) fn before(
    methods: MethodRouter<Shared>,
    shared: &Shared,
    template: &str,
    always: bool,
) -> MethodRouter<Shared> {
    let gate = Arc::new(Gate {
        shared: shared.clone(),
        series: shared.metrics().route(template),
        always,
    });
    methods.layer(middleware::from_fn_with_state(gate, pass))
}

async fn pass(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = metrics::index(request.method());
    // Dropped when the client goes away too.
    let (_in_flight, too_many) = gate.shared.limits().enter();
    let response = match too_many && !gate.always {
        false => next.run(request).await,
        true => ApiError::overloaded().into_response(),
    };
    gate.series
        .answered(method, response.status(), began.elapsed());
    response
}
