//! 10,000 Services and 100 nodes: memory and time of the program itself. Ignored: a measurement, not a test.
//!
//! `cargo build --release -p vipline-operator`, then
//! `OPERATOR=target/release/vipline-operator cargo test -p vipline-operator --test run -- --ignored --nocapture scale`

#![expect(clippy::print_stdout, reason = "a measurement prints what it measured")]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use apiserver::ApiServer;
use serde_json::json;

use crate::stage::Stage;

const SERVICES: usize = 10_000;
const NODES: usize = 100;

/// The program, as a process of its own.
struct Program {
    child: Child,
    port: u16,
    started: Instant,
}

impl Program {
    fn start(server: &ApiServer, directory: &std::path::Path) -> Self {
        let kubeconfig = directory.join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        // A free port, most likely still free in a moment.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // A release build, while the double need not be one.
        let program = std::env::var("OPERATOR").unwrap_or(env!("CARGO_BIN_EXE_vipline-operator").to_owned());
        let child = Command::new(program)
            .arg("run")
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["--leader-elect", "false", "--listen", &format!("127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            port,
            started: Instant::now(),
        }
    }

    fn ask(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.ask("/metrics").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
    }

    fn until(&self, what: &str, mut reached: impl FnMut() -> bool) {
        while !reached() {
            assert!(
                self.started.elapsed() < Duration::from_secs(400),
                "not in 400 s: {what}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("{what}: {:.2} s", self.started.elapsed().as_secs_f64());
    }

    /// Of `VmRSS` or `VmHWM`, in MB.
    fn memory(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        let kilobytes: f64 = line
            .trim_start_matches(':')
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        kilobytes / 1024.0
    }

    fn processor_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = [fields[11], fields[12]]
            .iter()
            .map(|field| field.parse::<f64>().unwrap())
            .sum();
        ticks / 100.0
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn seed(server: &ApiServer) {
    for number in 0..NODES {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("w{number:04}")},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.{}.{}", number / 250, number % 250 + 1)}]},
        });
        server.create(node).unwrap();
    }
    let pool = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "main"},
        "spec": {"addresses": ["10.200.0.0/16"]},
    });
    server.create(pool).unwrap();
    for number in 0..SERVICES {
        let name = format!("web-{number:05}");
        let policy = if number % 4 == 0 { "Local" } else { "Cluster" };
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name, "team": "web"}},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": operator_api::LOAD_BALANCER_CLASS,
                "externalTrafficPolicy": policy, "allocateLoadBalancerNodePorts": false, "selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080},
                    {"name": "https", "port": 443, "protocol": "TCP", "targetPort": 8443}]},
        });
        server.create(service).unwrap();
        let endpoints: Vec<_> = (0..4)
            .map(|pod| {
                json!({
                    "addresses": [format!("10.{}.{}.{}", 64 + pod, number / 250, number % 250 + 1)],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": format!("w{:04}", (number + pod * 7) % NODES),
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("{name}-{pod}"), "uid": "x"},
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-x"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080, "protocol": "TCP"}],
        });
        server.create(slice).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn scale() {
    let directory = tempfile::tempdir().unwrap();
    let stage = Stage::empty().await;
    let start = Instant::now();
    seed(&stage.server);
    println!(
        "{SERVICES} Services, {NODES} nodes made in {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let stage = tokio::task::spawn_blocking(move || {
        println!("first creation");
        let program = Program::start(&stage.server, directory.path());
        let served = || program.metric("vipline_operator_services{state=\"served\"}") >= SERVICES as f64;
        program.until("listed", || {
            program.ask("/readyz").is_some_and(|it| it.starts_with("HTTP/1.1 200"))
        });
        program.until("all served", || {
            std::thread::sleep(Duration::from_millis(500));
            served()
        });
        println!(
            "writes: {} ({:.2} a Service)",
            stage.writes(),
            stage.writes() as f64 / SERVICES as f64
        );
        println!(
            "memory: {:.0} MB, most {:.0} MB; processor {:.1} s",
            program.memory("VmRSS"),
            program.memory("VmHWM"),
            program.processor_seconds()
        );
        println!("{}", dropped(&program));
        drop(program);

        println!("restart");
        let before = stage.writes();
        let program = Program::start(&stage.server, directory.path());
        program.until("listed", || {
            program.ask("/readyz").is_some_and(|it| it.starts_with("HTTP/1.1 200"))
        });
        program.until("looked at", || {
            program.metric("vipline_operator_reconciles_total{subject=\"service\",result=\"done\"}") >= SERVICES as f64
        });
        println!("processor {:.1} s", program.processor_seconds());
        std::thread::sleep(Duration::from_secs(10));
        println!("writes: {}", stage.writes() - before);
        println!(
            "memory: {:.0} MB, most {:.0} MB; processor {:.1} s",
            program.memory("VmRSS"),
            program.memory("VmHWM"),
            program.processor_seconds()
        );
        stage
    })
    .await
    .unwrap();
    drop(stage);
}

fn dropped(program: &Program) -> String {
    let sent = program.metric("vipline_operator_events_total");
    let dropped = program.metric("vipline_operator_events_dropped_total");
    format!("events: {sent} sent, {dropped} dropped")
}
