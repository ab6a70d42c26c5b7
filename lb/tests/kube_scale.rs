//! What an event costs an LB node with ten thousand Services: `cargo test --release -p lb --test kube_scale -- --ignored
//! --nocapture`. A measurement, never a gate.

#![expect(clippy::print_stdout, reason = "it measures and prints")]
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on says where")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lb::source::kube::{
    index::{Index, Own},
    object::Object,
};
use lb_core::{
    config::{Capacity, Protection},
    desired::{Desired, NextHop, NextHops},
    health::Overlay,
    match_table::masks_for,
    plan::{Planner, Write},
    slow::Book,
};
use operator_api::{NodeSetSpec, VipTableSpec};
use serde_json::{Value, json};
use xdp_prog::abi::Config;

const SERVICES: usize = 10_000;
const NODES: usize = 100;
const EVENTS: usize = 300;

fn object<S: serde::de::DeserializeOwned>(name: String, revision: u64, spec: Value) -> Object<S> {
    Object {
        name: name.into(),
        created: 1,
        revision,
        spec: Ok(serde_json::from_value(spec).unwrap()),
    }
}

/// A Service with three VIPs; every other has policy Local on five nodes, whose weights depend on `turn`.
fn table(number: usize, turn: usize) -> Object<VipTableSpec> {
    let address = format!("10.{}.{}.{}", 100 + (number >> 16), (number >> 8) & 255, number & 255);
    let node = |n: usize| json!({"name": format!("node-{:04}", (number * 7 + n) % NODES), "ipv4": 1 + (turn + n) % 3});
    let mut nodes: Vec<Value> = (0..5).map(node).collect();
    nodes.sort_by_key(|node| node["name"].to_string());
    let backends = if number.is_multiple_of(2) {
        json!({"nodeSet": {"name": "workers"}})
    } else {
        json!({"local": {"set": "workers", "tableSlots": 512, "nodes": nodes}})
    };
    let ports = [80, 443, 8080].map(|port| json!({"protocol": "TCP", "port": port}));
    let spec = json!({
        "service": {"namespace": "shop", "name": format!("web-{number}"), "uid": "0"},
        "addresses": [{"address": address, "pool": "pool", "use": "LoadBalancer"}],
        "ports": ports,
        "backends": backends,
    });
    object(
        format!("shop.web-{number}"),
        (number + 1 + turn * SERVICES) as u64,
        spec,
    )
}

fn workers(nodes: usize) -> Object<NodeSetSpec> {
    let node = |n: usize| json!({"name": format!("node-{n:04}"), "ipv4": format!("192.168.{}.{}", n >> 8, n & 255)});
    let spec = json!({
        "set": "workers", "chunk": 0, "chunks": 1, "epoch": 1, "tableSlots": 8192, "seedFingerprint": "0123456789abcdef",
        "nodes": (0..nodes).map(node).collect::<Vec<_>>(),
    });
    object("workers-0".to_owned(), 1, spec)
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn report(mut self, what: &str) {
        self.0.sort();
        let at = |share: f64| self.0[((self.0.len() - 1) as f64 * share) as usize];
        println!(
            "{what:32} p50 {:>9.2?}  p99 {:>9.2?}  of {}",
            at(0.5),
            at(0.99),
            self.0.len()
        );
    }
}

fn timed<T>(times: &mut Times, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let value = work();
    times.0.push(begin.elapsed());
    value
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
#[ignore = "a measurement"]
fn an_event_among_ten_thousand_services() {
    let own = Own {
        node: Arc::from("lb-1"),
        capacity: Capacity::KUBE,
        sources: Vec::new(),
    };
    let (match_mask_v4, match_mask_v6) = masks_for(own.capacity.vips);
    let config = Config {
        match_mask_v4,
        match_mask_v6,
        ..Config::EMPTY
    };
    let mut planner = Planner::new(&own.capacity, &config, 250);
    let mut index = Index::new(own);
    let list: Vec<_> = (0..SERVICES).map(|number| table(number, 0)).collect();
    println!("{} MiB before", resident_mib());
    let begin = Instant::now();
    index.apply_node_set(workers(NODES));
    index.reset_tables(list, Duration::ZERO);
    println!(
        "list of {SERVICES} Services: {:.2?}, {:?}",
        begin.elapsed(),
        index.counts()
    );
    assert!(index.failing().is_empty(), "{:?}", index.failing().first_key_value());

    let desired = |index: &Index| {
        let snapshot = index.snapshot();
        Desired {
            vips: snapshot.vips,
            backends: snapshot.backends,
            ..Desired::default()
        }
    };
    let first = desired(&index);
    let hops: NextHops = first.backends.keys().map(|id| (id.clone(), NextHop::Local)).collect();
    let begin = Instant::now();
    let plan = planner.plan(&first, &hops).unwrap();
    println!("first plan: {:.2?}, {} writes", begin.elapsed(), plan.writes.len());
    drop(plan);
    println!("{} MiB after", resident_mib());

    let [mut applied, mut cloned, mut planned, mut booked] = [(); 4].map(|()| Times::default());
    for event in 0..EVENTS {
        let change = table((event * 37 * 2 + 1) % SERVICES, 1 + event % 2);
        timed(&mut applied, || index.apply_table(change));
        let desired = timed(&mut cloned, || desired(&index));
        let plan = timed(&mut planned, || planner.plan(&desired, &hops).unwrap());
        assert!(
            plan.writes.iter().any(|write| matches!(write, Write::Store { .. })),
            "event {event} changes something"
        );
        timed(&mut booked, || {
            Book::new(&desired, &hops, &Overlay::default(), Protection::default(), &[])
        });
        index.programmed(index.sequence());
    }
    applied.report("index");
    cloned.report("snapshot");
    planned.report("plan");
    booked.report("the slow path's book");

    let begin = Instant::now();
    let mut fewer = workers(NODES - 1);
    fewer.revision = 2;
    index.apply_node_set(fewer);
    println!("a node leaves, index: {:.2?}", begin.elapsed());
    let desired = desired(&index);
    let begin = Instant::now();
    let plan = planner.plan(&desired, &hops).unwrap();
    println!(
        "a node leaves, plan: {:.2?}, {} writes",
        begin.elapsed(),
        plan.writes.len()
    );
    println!("{} MiB at the end", resident_mib());
}
