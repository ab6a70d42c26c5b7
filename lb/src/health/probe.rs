//! One probe, from the connection to the outcome. Never longer than its timeout.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use lb_core::health::{Check, Failure, Fault, HttpProbe, Outcome, Probe};
use nix::errno::Errno;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::tls::Tls;

/// Most bytes of an answer's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Who asks, for the logs of who answers.
const USER_AGENT: &str = concat!("vipline-health/", env!("CARGO_PKG_VERSION"));

/// Probes a backend.
pub(super) async fn probe(address: IpAddr, check: &Check, tls: &Tls) -> Outcome {
    let deadline = Instant::now() + Duration::from_millis(check.timing.timeout_ms.into());
    let (port, http) = match &check.probe {
        Probe::Tcp { port } => (*port, None),
        Probe::Http(http) => (http.port, Some(http)),
        // Not made of a socket.
        Probe::Tunnel => return Outcome::Skipped(Fault::NoWay),
    };
    let to = SocketAddr::new(address, port);
    let stream = match timeout_at(deadline, TcpStream::connect(to)).await {
        Err(_) => return Outcome::Failure(Failure::NoConnection),
        Ok(Err(error)) => return refused(&error),
        Ok(Ok(stream)) => stream,
    };
    let Some(http) = http else {
        // A reset at the end leaves nothing behind on either side: ports here would wait a minute each.
        let _ = stream.set_zero_linger();
        return Outcome::Success;
    };
    match timeout_at(deadline, ask(stream, to, http, tls)).await {
        Err(_) => Outcome::Failure(Failure::NoAnswer),
        Ok(Err(failure)) => Outcome::Failure(failure),
        Ok(Ok(())) => Outcome::Success,
    }
}

async fn ask(stream: TcpStream, to: SocketAddr, http: &HttpProbe, tls: &Tls) -> Result<(), Failure> {
    if http.tls {
        let stream = tls.connect(stream, http.host.as_deref(), to.ip()).await?;
        converse(stream, to, http).await
    } else {
        converse(stream, to, http).await
    }
}

async fn converse<S>(stream: S, to: SocketAddr, http: &HttpProbe) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    let host = http.host.as_deref().map_or_else(|| to.to_string(), str::to_owned);
    let request = Request::get(&*http.path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        // Both were read as what they must be.
        .map_err(|_| Failure::NotHttp)?;
    let mut connection = std::pin::pin!(connection);
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        judge(response, http).await
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        verdict = &mut answer => verdict,
        // The connection is done, well or not: what it had brought is at hand.
        ended = &mut connection => match (answer.await, ended) {
            (Err(Failure::Closed), Err(error)) => Err(broken(&error)),
            (verdict, _) => verdict,
        },
    }
}

async fn judge(mut response: Response<Incoming>, http: &HttpProbe) -> Result<(), Failure> {
    let status = response.status().as_u16();
    let Some(_) = &http.body else {
        return http.judge(status, &[]);
    };
    let mut body = Vec::new();
    loop {
        // What has come may be enough, and a wrong status always is.
        match http.judge(status, &body) {
            Err(Failure::Body) if body.len() < HttpProbe::MAX_BODY_BYTES => {}
            verdict => return verdict,
        }
        match response.body_mut().frame().await {
            None => return http.judge(status, &body),
            Some(Err(error)) => return Err(broken(&error)),
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                let room = HttpProbe::MAX_BODY_BYTES - body.len();
                body.extend_from_slice(data.get(..room).unwrap_or(&data));
            }
        }
    }
}

fn broken(error: &hyper::Error) -> Failure {
    if error.is_parse() || error.is_parse_too_large() || error.is_parse_status() {
        Failure::NotHttp
    } else {
        Failure::Closed
    }
}

/// Why there is no connection: the backend's doing, the network's, or this host's own.
fn refused(error: &io::Error) -> Outcome {
    let failure = match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Failure::Closed,
        ErrorKind::TimedOut => Failure::NoConnection,
        _ => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                return Outcome::Skipped(Fault::NoSocket);
            }
            Some(Errno::EADDRNOTAVAIL | Errno::EAGAIN | Errno::EADDRINUSE) => return Outcome::Skipped(Fault::NoSource),
            Some(Errno::EPERM | Errno::EACCES) => return Outcome::Skipped(Fault::NotPermitted),
            Some(_) | None => Failure::Unreachable,
        },
    };
    Outcome::Failure(failure)
}
