//! The HTTP server: `/metrics`, `/healthz`, `/readyz`.
//!
//! Never changes anything.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use super::{explain::Target, room::Room};
use crate::index::Kind;

/// OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Opens the port.
pub(super) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers for ever.
pub(super) async fn serve(listener: TcpListener, room: Arc<Room>) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(room);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the HTTP server stopped");
    }
}

async fn metrics(State(room): State<Arc<Room>>) -> impl IntoResponse {
    room.metrics.queue(room.queue.depth());
    for (kind, count) in room.read(|index| Kind::ALL.map(|kind| (kind, index.count(kind)))) {
        room.metrics.objects(kind, count);
    }
    for (state, count) in room.count_services() {
        room.metrics.services(state, count);
    }
    ([(header::CONTENT_TYPE, OPEN_METRICS)], room.metrics.text())
}

/// Ready: it knows what there is. A replica that does not lead is ready, too: it can take over.
async fn ready(State(room): State<Arc<Room>>) -> impl IntoResponse {
    if room.is_open() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let missing: Vec<_> = room
        .unlisted()
        .into_iter()
        .map(|kind| Target::of_kind(kind).resource)
        .collect();
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not listed yet: {}\n", missing.join(", ")),
    )
}
