//! What workers accept, and what flows are hashed with.

use operator_api::TunnelConfigSpec;
use serde_json::json;

use super::*;
use crate::index::{Seed, TunnelFault, fingerprint};

#[test]
fn the_tunnel_takes_all_lb_nodes_sources_and_all_addresses_of_pools_and_claims() {
    let index = index([
        Object::LbNode(lb_node(
            "b",
            "",
            json!({"spec": {"tunnelSources": ["10.9.0.2", "10.9.0.77/24", "nonsense"]}}),
        )),
        Object::LbNode(lb_node(
            "a",
            "",
            json!({"spec": {"tunnelSources": ["10.9.0.2/32", "fd00:9::/64"]}}),
        )),
        Object::Pool(pool(
            "public",
            &["198.51.100.0/25", "198.51.100.128-198.51.100.255"],
            json!({}),
        )),
        Object::Claim(claim("203.0.113.9", &["web"], json!({}))),
        Object::Claim(claim("198.51.100.9", &["web"], json!({}))),
    ]);
    let spec = index.wanted_tunnel().unwrap();
    assert_eq!(spec.sources, ["10.9.0.0/24", "10.9.0.2/32", "fd00:9::/64"]);
    assert_eq!(spec.vip_prefixes, ["198.51.100.0/24", "203.0.113.9/32"]);
}

#[test]
fn without_any_lb_node_the_published_sources_stay() {
    let published = TunnelConfigSpec {
        sources: vec!["10.9.0.1/32".to_owned()],
        vip_prefixes: vec![],
    };
    let mut tunnel = operator_api::TunnelConfig::new("default", published);
    tunnel.metadata.namespace = Some(NAMESPACE.to_owned());
    let mut index = index([Object::Tunnel(tunnel), Object::LbNode(lb_node("a", "", json!({})))]);
    index.delete(Object::LbNode(lb_node("a", "", json!({}))));
    assert_eq!(index.wanted_tunnel().unwrap().sources, ["10.9.0.1/32"]);
}

#[test]
fn a_tunnel_that_would_be_too_large_is_a_fault() {
    let sources: Vec<String> = (0..1_025)
        .map(|number| format!("10.9.{}.{}/32", number / 250, number % 250))
        .collect();
    let index = index([Object::LbNode(lb_node(
        "a",
        "",
        json!({"spec": {"tunnelSources": sources}}),
    ))]);
    assert_eq!(index.wanted_tunnel(), Err(TunnelFault::TooManySources(1_025)));
}

#[test]
fn a_fingerprint_is_that_of_sixty_four_hex_digits_as_text() {
    let seed = "0".repeat(64);
    // printf 0…0 | sha256sum
    assert_eq!(fingerprint(seed.as_bytes()).as_deref(), Some("60e05bd1b195af2f"));
    for bad in ["", &"0".repeat(63), &"g".repeat(64), &format!("{}\n", "0".repeat(64))] {
        assert_eq!(fingerprint(bad.as_bytes()), None, "{bad:?}");
    }
}

#[test]
fn a_seed_is_made_once_and_never_in_place_of_a_pinned_one() {
    let ours = fingerprint("a".repeat(64).as_bytes()).unwrap();
    let pin = |fingerprint: &str| Object::NodeSet(node_set(0, json!({"spec": {"seedFingerprint": fingerprint}})));
    assert_eq!(index([]).seed(), Seed::Missing);
    assert_eq!(
        index([seed_secret()]).seed(),
        Seed::Present {
            fingerprint: ours.clone()
        }
    );
    assert_eq!(
        index([seed_secret(), pin(&ours)]).seed(),
        Seed::Present {
            fingerprint: ours.clone()
        }
    );
    let pinned = "0123456789abcdef".to_owned();
    assert_eq!(index([pin(&pinned)]).seed(), Seed::Lost { pinned: pinned.clone() });
    assert_eq!(
        index([seed_secret(), pin(&pinned)]).seed(),
        Seed::Differs {
            pinned: pinned.clone(),
            found: ours
        }
    );
    let malformed = || seed_with("too short");
    assert_eq!(index([malformed()]).seed(), Seed::Malformed { pinned: None });
    assert_eq!(
        index([malformed(), pin(&pinned)]).seed(),
        Seed::Malformed { pinned: Some(pinned) }
    );
}

#[test]
fn other_secrets_and_seeds_of_other_namespaces_are_none() {
    for patch in [
        json!({"metadata": {"name": "other"}}),
        json!({"metadata": {"namespace": "shop"}}),
    ] {
        let Object::Seed(secret) = seed_secret() else { panic!() };
        let secret = patched(serde_json::to_value(secret).unwrap(), patch);
        assert_eq!(index([Object::Seed(secret)]).seed(), Seed::Missing);
    }
}

#[test]
fn node_sets_wait_for_a_seed_and_go_on_with_a_pinned_one() {
    let worker = || Object::Node(node("node1", json!({})));
    assert_eq!(index([worker()]).next_node_set(), None);
    let lost = index([worker(), Object::NodeSet(node_set(0, json!({})))]);
    assert_eq!(lost.next_node_set().unwrap().spec.seed_fingerprint, "0123456789abcdef");
}
