//! What is shown over HTTP: `/metrics`, `/healthz`, `/readyz`.
//!
//! Never changes anything.

use std::{net::SocketAddr, sync::Arc};

use exposition::Answer;
use tokio::net::TcpListener;

use super::{explain::Target, room::Room};
use crate::index::Kind;

/// Opens the port.
pub(super) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers for ever.
pub(super) async fn serve(listener: TcpListener, room: Arc<Room>) {
    let answer = move |path: String| {
        let room = Arc::clone(&room);
        async move {
            match &*path {
                "/metrics" => Some(metrics(&room)),
                "/healthz" => Some(Answer::ok("ok\n")),
                "/readyz" => Some(ready(&room)),
                _ => None,
            }
        }
    };
    exposition::serve(listener, answer).await;
}

fn metrics(room: &Room) -> Answer {
    room.metrics.queue(room.queue.depth());
    for (kind, count) in room.read(|index| Kind::ALL.map(|kind| (kind, index.count(kind)))) {
        room.metrics.objects(kind, count);
    }
    for (state, count) in room.count_services() {
        room.metrics.services(state, count);
    }
    match room.metrics.text() {
        Ok(text) => Answer::metrics(text),
        Err(error) => {
            tracing::error!(%error, "metrics were not encoded");
            Answer::unavailable("metrics were not encoded\n")
        }
    }
}

/// Ready: it knows what there is. A replica that does not lead is ready, too: it can take over.
fn ready(room: &Room) -> Answer {
    if room.is_open() {
        return Answer::ok("ok\n");
    }
    let missing: Vec<_> = room
        .unlisted()
        .into_iter()
        .map(|kind| Target::of_kind(kind).resource)
        .collect();
    Answer::unavailable(format!("not listed yet: {}\n", missing.join(", ")))
}
