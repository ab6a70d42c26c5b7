//! Real sockets: what well-behaved clients are told, and what others cannot do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use std::{net::SocketAddr, time::Duration};

use exposition::Answer;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(exposition::serve(listener, |path: String| async move { at(&path) }));
    address
}

fn at(path: &str) -> Option<Answer> {
    match path {
        "/metrics" => {
            let mut registry = Registry::with_prefix("vipline");
            let counter: Counter = Counter::default();
            counter.inc_by(7);
            registry.register("things", "What is counted", counter);
            Some(Answer::metrics(exposition::text(&registry).unwrap()))
        }
        "/readyz" => Some(Answer::unavailable("not listed yet: services\n")),
        "/healthz" => Some(Answer::ok("ok\n")),
        _ => None,
    }
}

async fn ask(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(10), stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n")
}

#[tokio::test]
async fn each_path_is_answered_with_its_status_and_kind_and_the_connection_ends() {
    let address = server().await;
    let answer = ask(address, &get("/metrics")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(
        answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{answer}"
    );
    assert!(
        answer.ends_with("# TYPE vipline_things counter\nvipline_things_total 7\n# EOF\n"),
        "{answer}"
    );
    let answer = ask(address, &get("/metrics?name=x")).await;
    assert!(
        answer.contains("vipline_things_total 7"),
        "a query is no other path: {answer}"
    );
    let answer = ask(address, &get("/readyz")).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("not listed yet: services\n"),
        "{answer}"
    );
    assert!(ask(address, &get("/healthz")).await.ends_with("\r\n\r\nok\n"));
    assert!(ask(address, &get("/")).await.starts_with("HTTP/1.1 404 "));
    let head = ask(address, "HEAD /healthz HTTP/1.1\r\nHost: here\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let posted = ask(
        address,
        "POST /metrics HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
    assert!(ask(address, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    let long = ask(address, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(7 << 10))).await;
    assert!(
        long.starts_with("HTTP/1.1 404 "),
        "the control: what fits is read: {long}"
    );
}

/// Twice as many as there are places say nothing: one that asks is answered when they are cut off, and not before.
#[tokio::test]
async fn clients_that_say_nothing_are_cut_off_and_the_others_served() {
    let address = server().await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let start = Instant::now();
    let answer = timeout(Duration::from_secs(25), async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(get("/healthz").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    });
    assert!(answer.await.unwrap().ends_with("ok\n"));
    assert!(
        start.elapsed() > Duration::from_secs(4),
        "they had all places: {:?}",
        start.elapsed()
    );
    let mut rest = Vec::new();
    let cut = timeout(Duration::from_secs(15), silent[0].read_to_end(&mut rest))
        .await
        .unwrap();
    assert!(
        cut.is_ok_and(|length| length == 0),
        "hung up on without a word: {rest:?}"
    );
}
