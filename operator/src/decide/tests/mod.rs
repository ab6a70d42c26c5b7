//! Whole lives of Services, against an API server in memory.

mod announced;
mod announcing;
mod births;
mod changes;
mod checks;
mod deaths;
mod faults;
mod installations;
mod refusals;
mod server;
mod world;

use serde_json::{Value, json};

/// A Service of our class with one port.
fn balanced() -> Value {
    json!({
        "type": "LoadBalancer", "loadBalancerClass": world::CLASS, "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "ports": [{"name": "web", "port": 80, "protocol": "TCP", "nodePort": 30080}],
    })
}

/// The same with other fields.
fn with(changes: Value) -> Value {
    let mut spec = balanced();
    for (name, value) in changes.as_object().unwrap() {
        spec[name] = value.clone();
    }
    spec
}

/// The kind of each write, in a word.
fn words(actions: &[super::Action]) -> Vec<&'static str> {
    use super::Action;
    let word = |action: &Action| match action {
        Action::ApplyServiceMeta { .. } => "mark",
        Action::ReplaceServiceMeta { .. } => "unmark",
        Action::ApplyServiceStatus { .. } => "status",
        Action::ReplaceServiceStatus { .. } => "clear",
        Action::CreateClaim(_) => "claim",
        Action::ReplaceClaim(_) => "reclaim",
        Action::DeleteClaim { .. } => "release",
        Action::ApplyTable(_) => "table",
        Action::DeleteTable { .. } => "untable",
        Action::ApplyNodeSet(_) => "nodes",
        Action::DeleteNodeSet { .. } => "no nodes",
        Action::ApplyTunnel(_) => "tunnel",
        Action::CreateSeed => "seed",
        Action::ApplyPoolStatus { .. } => "pool",
        Action::ApplyPeerStatus { .. } => "peer",
        Action::ApplyAnnouncementStatus { .. } => "announcement",
    };
    actions.iter().map(word).collect()
}
