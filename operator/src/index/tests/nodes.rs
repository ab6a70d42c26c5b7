//! Which nodes are backends, and which of their changes are news.

use serde_json::{Value, json};

use super::*;

const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

fn is_eligible(patch: Value) -> bool {
    index([Object::Node(node("node1", patch))]).eligible_nodes() == 1
}

/// Whether a change of `node1` is news, and whether it is a backend afterwards.
fn change(before: Value, after: Value) -> (bool, bool) {
    let mut index = index([Object::Node(node("node1", before))]);
    let mut after = node("node1", after);
    after.metadata.resource_version = Some("101".to_owned());
    let dirtied = index.apply(Object::Node(after));
    assert!(
        dirtied.is_empty() || dirtied == dirty([Subject::NodeSets]),
        "{dirtied:?}"
    );
    (!dirtied.is_empty(), index.eligible_nodes() == 1)
}

fn label(value: &str) -> Value {
    json!({"metadata": {"labels": {EXCLUDE: value}}})
}

fn taint(key: &str) -> Value {
    json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}})
}

fn condition(kind: &str, status: &str) -> Value {
    json!({"status": {"conditions": [{"type": kind, "status": status}]}})
}

const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

#[test]
fn the_exclusion_label_excludes_unless_it_says_false() {
    for value in ["", "true", "True", "1", "yes", "no", "nonsense", " false"] {
        assert!(!is_eligible(label(value)), "{value:?}");
    }
    for value in ["false", "False", "FALSE", "f", "F", "0"] {
        assert!(is_eligible(label(value)), "{value:?}");
    }
}

#[test]
fn nodes_that_are_deleted_leaving_or_only_balance_load_are_no_backends() {
    assert!(!is_eligible(
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    ));
    assert!(!is_eligible(taint(LEAVING)));
    assert!(!is_eligible(taint("vipline.dev/lb-node")));
    assert!(is_eligible(taint("node.kubernetes.io/unschedulable")));
    assert!(is_eligible(
        json!({"spec": {"unschedulable": true}, "metadata": {"labels": {"vipline.dev/lb-node": "true"}}})
    ));
    assert!(is_eligible(condition("Ready", "False")));
    assert!(is_eligible(json!({"status": {"conditions": null}})));
}

#[test]
fn a_node_is_known_by_its_first_internal_address_of_each_family() {
    let entry = |addresses: Value| {
        let node = node("node1", json!({"status": {"addresses": addresses}}));
        let index = index([Object::Node(node), seed_secret()]);
        let nodes = index.next_node_set().unwrap().spec.nodes;
        nodes.first().map(|node| (node.ipv4.clone(), node.ipv6.clone()))
    };
    let internal = |address: &str| json!({"type": "InternalIP", "address": address});
    let some = |address: &str| Some(address.to_owned());
    let mixed = json!([
        {"type": "ExternalIP", "address": "198.51.100.7"}, {"type": "Hostname", "address": "node1"},
        internal("nonsense"), internal("127.0.0.1"), internal("fe80::1"),
        internal("2001:DB8:0::1"), internal("10.1.0.2"), internal("10.1.0.3"), internal("2001:db8::2"),
    ]);
    assert_eq!(entry(mixed), Some((some("10.1.0.2"), some("2001:db8::1"))));
    assert_eq!(entry(json!([internal("fd00::5")])), Some((None, some("fd00::5"))));
    for absurd in [
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "169.254.1.1",
        "::",
        "::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "",
    ] {
        assert_eq!(entry(json!([internal(absurd)])), None, "{absurd}");
    }
    assert_eq!(entry(json!([])), None);
}

#[test]
fn a_heartbeat_is_no_news() {
    let beat = json!({"status": {
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:10Z"}],
        "images": [{"names": ["image"], "sizeBytes": 1}],
    }});
    assert_eq!(change(json!({}), beat), (false, true));
}

#[test]
fn an_address_or_zone_that_changes_is_news() {
    let address = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.1.0.77"}]}});
    assert_eq!(change(json!({}), address), (true, true));
    let zone = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "a"}}});
    assert_eq!(change(json!({}), zone), (true, true));
}

/// `Test_shouldSyncUpdatedNode_individualPredicates` of cloud-provider's service controller.
#[test]
fn cloud_provider_individual_predicates() {
    let other = json!({"metadata": {"labels": {"other": ""}}});
    let pressure = |status| json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "DiskPressure", "status": status}]}});
    let cases = [
        ("nothing changed", json!({}), json!({}), false),
        ("excluded F->T", json!({}), label(""), true),
        ("excluded changed T->F", label(""), json!({}), true),
        ("excluded changed T->T", label(""), label(""), false),
        ("other taint F->T", json!({}), taint("other"), false),
        ("other taint T->F", taint("other"), json!({}), false),
        ("other label changed F->T", json!({}), other.clone(), false),
        ("other label changed T->F", other, json!({}), false),
        (
            "readiness changed F->F",
            condition("Ready", "False"),
            condition("Ready", "False"),
            false,
        ),
        (
            "readiness changed F->unset",
            condition("Ready", "False"),
            condition("Else", "False"),
            false,
        ),
        (
            "readiness changed unset->F",
            condition("Else", "False"),
            condition("Ready", "False"),
            false,
        ),
        (
            "readiness changed unset->unset",
            condition("Else", "False"),
            condition("Else", "False"),
            false,
        ),
        (
            "ready F, other condition changed F->T",
            pressure("False"),
            pressure("True"),
            false,
        ),
        (
            "ready F, other condition changed T->F",
            pressure("True"),
            pressure("False"),
            false,
        ),
        (
            "ready T, other condition changed F->T",
            condition("Other", "False"),
            condition("Other", "True"),
            false,
        ),
        (
            "ready T, other condition changed T->F",
            condition("Other", "True"),
            condition("Other", "False"),
            false,
        ),
        // Upstream waits for the next sync; the set of ours costs one write, and flows of a node that lives stay.
        (
            "deletionTimestamp F -> T",
            json!({}),
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            true,
        ),
        // No cloud: machines are known by address, not by provider ID.
        (
            "providerID set F -> T",
            json!({"spec": {"providerID": null}}),
            json!({}),
            false,
        ),
        (
            "providerID set T-> F",
            json!({}),
            json!({"spec": {"providerID": null}}),
            false,
        ),
        (
            "providerID change",
            json!({}),
            json!({"spec": {"providerID": "metal://2"}}),
            false,
        ),
    ];
    for (case, before, after, news) in cases {
        assert_eq!(change(before, after).0, news, "{case}");
    }
}

/// `Test_shouldSyncUpdatedNode_compoundedPredicates`, without those that turn on the provider ID.
#[test]
fn cloud_provider_compounded_predicates() {
    let both = |one: &Value, other: Value| patched::<Value>(one.clone(), other);
    let (leaving, excluded, unready) = (taint(LEAVING), label(""), condition("Ready", "False"));
    let cases = [
        (
            "tainted T, excluded F->T",
            leaving.clone(),
            both(&leaving, label("")),
            true,
        ),
        (
            "tainted T, excluded T->F",
            both(&leaving, label("")),
            leaving.clone(),
            true,
        ),
        (
            "tainted T, ready F->T",
            both(&leaving, unready.clone()),
            leaving.clone(),
            false,
        ),
        (
            "tainted T, ready T->F",
            leaving.clone(),
            both(&leaving, unready.clone()),
            false,
        ),
        (
            "excluded T, tainted F->T",
            excluded.clone(),
            both(&excluded, taint(LEAVING)),
            false,
        ),
        (
            "excluded T, tainted T->F",
            both(&excluded, taint(LEAVING)),
            excluded.clone(),
            false,
        ),
        (
            "excluded T, ready F->T",
            both(&excluded, unready.clone()),
            excluded.clone(),
            false,
        ),
        (
            "excluded T, ready T->F",
            excluded.clone(),
            both(&excluded, unready.clone()),
            false,
        ),
        (
            "ready F, tainted F->T",
            unready.clone(),
            both(&unready, taint(LEAVING)),
            false,
        ),
        // Upstream finds out at its next resync; a node that stays after all comes back at once.
        (
            "ready F, tainted T->F",
            both(&unready, taint(LEAVING)),
            unready.clone(),
            true,
        ),
        (
            "ready F, excluded F->T",
            unready.clone(),
            both(&unready, label("")),
            true,
        ),
        ("ready F, excluded T->F", both(&unready, label("")), unready, true),
    ];
    for (case, before, after, news) in cases {
        assert_eq!(change(before, after).0, news, "{case}");
    }
}

/// `TestNodeChangesForStableNodeSetEnabled`: who is in the set when it is next looked at.
#[test]
fn cloud_provider_stable_node_set() {
    let cases = [
        ("1 node goes NotReady", condition("Ready", "False"), true),
        ("1 node gets Tainted", taint(LEAVING), false),
        ("1 node goes Ready", condition("Ready", "True"), true),
        ("1 node get excluded", label(""), false),
        (
            "1 node marked for deletion",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            false,
        ),
        ("1 spurious node update", taint("Other"), true),
    ];
    for (case, patch, stays) in cases {
        let objects = [node("node1", json!({})), node("node2", patch), node("node3", json!({}))];
        let index = index(objects.map(Object::Node).into_iter().chain([seed_secret()]));
        let chunk = index.next_node_set().unwrap();
        let names: Vec<&str> = chunk.spec.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names.contains(&"node2"), stays, "{case}");
        assert_eq!(names.len(), 2 + usize::from(stays), "{case}");
    }
}
