//! What both programs show over HTTP: metrics for Prometheus, and probes.
//!
//! Never changes anything, never knows what is counted, and never lets a client cost more than its bounds: those that ask slowly, or
//! take slowly, are cut off, and the others wait for a place meanwhile.

#![forbid(unsafe_code)]

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
/// Most clients at a time; each costs a task, a request's head (at most [`MAX_HEAD`]), and the answer while it is sent.
const MAX_CLIENTS: usize = 8;
/// Longest head of a request, in bytes. (The least that hyper takes.)
const MAX_HEAD: usize = 8 * 1024;
/// Longest time a client may take to say what it wants.
const HEARING: Duration = Duration::from_secs(5);
/// Longest time from its connection to the end of the answer: one answer a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    status: StatusCode,
    kind: &'static str,
    body: Bytes,
}

impl Answer {
    /// 200, with a text for people.
    pub fn ok(text: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            kind: PLAIN,
            body: text.into(),
        }
    }

    /// 200, with metrics in the text format of OpenMetrics.
    pub fn metrics(text: impl Into<Bytes>) -> Self {
        Self {
            kind: OPEN_METRICS,
            ..Self::ok(text)
        }
    }

    /// 503: not now.
    pub fn unavailable(why: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..Self::ok(why)
        }
    }

    fn other(status: StatusCode, text: &'static str) -> Self {
        Self {
            status,
            ..Self::ok(text)
        }
    }
}

/// All metrics of a registry, in the text format of OpenMetrics.
///
/// # Errors
///
/// When a metric cannot be written.
pub fn text(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

/// Answers `GET` requests for ever: `answer` is asked for what stands at a path, and says `None` where nothing does.
pub async fn serve<F>(listener: TcpListener, answer: impl Fn(String) -> F + Clone + Send + Sync + 'static)
where
    F: Future<Output = Option<Answer>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer.clone();
                tokio::spawn(async move {
                    // A client that is too slow, or gone, goes without.
                    drop(timeout(PATIENCE, talk(stream, answer)).await);
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "HTTP: accept failed");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn talk<F>(stream: TcpStream, answer: impl Fn(String) -> F) -> hyper::Result<()>
where
    F: Future<Output = Option<Answer>>,
{
    let service = service_fn(|request: Request<Incoming>| {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let found = reads.then(|| answer(request.uri().path().to_owned()));
        async move { Ok::<_, Infallible>(response(said(found).await)) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEARING)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// What is said to who reads, or, where nobody does, to who wants something else.
async fn said(found: Option<impl Future<Output = Option<Answer>>>) -> Answer {
    match found {
        Some(found) => found
            .await
            .unwrap_or_else(|| Answer::other(StatusCode::NOT_FOUND, "there is nothing here: try /metrics\n")),
        None => Answer::other(StatusCode::METHOD_NOT_ALLOWED, "GET is all that is answered\n"),
    }
}

fn response(said: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(said.body));
    *response.status_mut() = said.status;
    let kind = header::HeaderValue::from_static(said.kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
