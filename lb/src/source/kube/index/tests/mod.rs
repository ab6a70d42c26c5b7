mod health;
mod lists;
mod schedulers;
mod transits;

use std::{net::IpAddr, sync::Arc, time::Duration};

use lb_core::{
    config::Capacity,
    desired::{Protocol, VipKey},
};
use operator_api::{
    AddressFamily, Backends, ForwardingMode, LocalNode, NodeEntry, NodeSetSpec, Scheduler, ServiceRef,
    TunnelConfigSpec, Use, VipAddress, VipPort, VipTable, VipTableSpec,
};
use serde_json::json;

use super::{Index, Own, TableError};
use crate::source::kube::{
    guard::SETTLE,
    object::{Object, Received},
};

const NOW: Duration = Duration::from_secs(1000);

fn object<S>(name: &str, created: i64, revision: u64, spec: S) -> Object<S> {
    Object {
        name: name.into(),
        created,
        revision,
        spec: Ok(spec),
    }
}

/// Deletes a table by name, and lets the moment pass that a deletion takes.
fn delete(index: &mut Index, name: &str, revision: u64) {
    index.delete_table(name, revision, NOW);
    index.carry_out_deletions(NOW + SETTLE);
}

fn spec(addresses: &[&str], ports: &[u16]) -> VipTableSpec {
    VipTableSpec {
        service: ServiceRef {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: "1".to_owned(),
        },
        addresses: addresses.iter().map(|address| vip_address(address)).collect(),
        ports: ports.iter().map(|port| vip_port(*port)).collect(),
        mode: ForwardingMode::default(),
        scheduler: Scheduler::default(),
        affinity: None,
        source_ranges: None,
        backends: Backends::NodeSet {
            name: "workers".to_owned(),
            unserved: Vec::new(),
        },
        health_check: None,
    }
}

fn vip_address(address: &str) -> VipAddress {
    VipAddress {
        address: address.to_owned(),
        pool: "pool".to_owned(),
        used_as: Use::LoadBalancer,
        announcements: None,
    }
}

fn vip_port(port: u16) -> VipPort {
    VipPort {
        protocol: operator_api::Protocol::Tcp,
        port,
        node_port: None,
        name: None,
    }
}

fn local(addresses: &[&str], nodes: &[(&str, u16, u16)]) -> VipTableSpec {
    let node = |(name, ipv4, ipv6): &(&str, u16, u16)| LocalNode {
        name: (*name).to_owned(),
        ipv4: *ipv4,
        ipv6: *ipv6,
    };
    VipTableSpec {
        backends: Backends::Local {
            set: "workers".to_owned(),
            table_slots: 256,
            nodes: nodes.iter().map(node).collect(),
            transit: None,
        },
        ..spec(addresses, &[80])
    }
}

fn chunk(chunk: u32, chunks: u32, epoch: i64, nodes: &[(&str, Option<&str>, Option<&str>)]) -> Object<NodeSetSpec> {
    let node = |(name, ipv4, ipv6): &(&str, Option<&str>, Option<&str>)| NodeEntry {
        name: (*name).to_owned(),
        ipv4: ipv4.map(ToOwned::to_owned),
        ipv6: ipv6.map(ToOwned::to_owned),
        zone: None,
    };
    let spec = NodeSetSpec {
        set: "workers".to_owned(),
        chunk,
        chunks,
        epoch,
        table_slots: 1024,
        seed_fingerprint: "0123456789abcdef".to_owned(),
        nodes: nodes.iter().map(node).collect(),
        transit: None,
        leaving: Vec::new(),
    };
    object(&format!("workers-{chunk}"), 0, 10, spec)
}

/// Of node n1 with both families, n2 with IPv4, n3 with IPv6.
fn workers() -> Object<NodeSetSpec> {
    let nodes = [
        ("n1", Some("10.0.0.1"), Some("2001:db8:1::1")),
        ("n2", Some("10.0.0.2"), None),
        ("n3", None, Some("2001:db8:1::3")),
    ];
    chunk(0, 1, 1, &nodes)
}

fn own() -> Own {
    Own {
        node: "lb-1".into(),
        capacity: Capacity::KUBE,
        sources: Vec::new(),
        keeps_records: true,
    }
}

fn index() -> Index {
    let mut index = Index::new(own());
    index.apply_node_set(workers());
    index
}

fn key(address: &str, port: u16) -> VipKey {
    VipKey {
        address: address.parse().unwrap(),
        protocol: Protocol::Tcp,
        port,
    }
}

/// Members of a VIP's set with their weights: `n1/ipv4*2 n2/ipv4*1`.
fn members(index: &Index, address: &str, port: u16) -> String {
    let snapshot = index.snapshot();
    let Some(vip) = snapshot.vips.get(&key(address, port)) else {
        return "none".to_owned();
    };
    let members = vip.set.members.iter();
    for member in &vip.set.members {
        assert!(
            snapshot.backends.contains_key(&member.backend),
            "{member:?} has no address"
        );
    }
    let words: Vec<String> = members
        .map(|member| format!("{}*{}", member.backend, member.weight))
        .collect();
    words.join(" ")
}

fn why(index: &Index, table: &str) -> Option<String> {
    index.failing().get(table).map(ToString::to_string)
}

#[test]
fn a_cluster_table_goes_to_all_nodes_by_the_address_of_its_family_or_else_the_other() {
    let mut index = index();
    index.apply_table(object(
        "shop.web",
        1,
        20,
        spec(&["203.0.113.1", "2001:db8:f::1"], &[80, 443]),
    ));
    assert_eq!(members(&index, "203.0.113.1", 443), "n1/ipv4*1 n2/ipv4*1 n3/ipv6*1");
    assert_eq!(members(&index, "2001:db8:f::1", 80), "n1/ipv6*1 n2/ipv4*1 n3/ipv6*1");
    let snapshot = index.snapshot();
    assert_eq!(snapshot.vips.len(), 4);
    let set = |address| &snapshot.vips[&key(address, 80)].set;
    assert_eq!(set("203.0.113.1").table_slots, Some(1024));
    assert!(Arc::ptr_eq(
        set("203.0.113.1"),
        &snapshot.vips[&key("203.0.113.1", 443)].set
    ));
    let addresses: Vec<IpAddr> = snapshot.backends.values().map(|backend| backend.address).collect();
    let expected = ["10.0.0.1", "2001:db8:1::1", "10.0.0.2", "2001:db8:1::3"];
    assert_eq!(addresses, expected.map(|address| address.parse::<IpAddr>().unwrap()));
    assert_eq!((snapshot.revisions.tables, snapshot.revisions.node_sets), (20, 10));
}

#[test]
fn a_local_table_has_the_weights_of_each_family_and_skips_nodes_that_are_not_in_the_set() {
    let mut index = index();
    let table = local(
        &["203.0.113.1", "2001:db8:f::1"],
        &[("n1", 3, 1), ("n2", 1, 0), ("n3", 0, 7), ("gone", 9, 9)],
    );
    index.apply_table(object("shop.web", 1, 20, table));
    assert_eq!(members(&index, "203.0.113.1", 80), "n1/ipv4*3 n2/ipv4*1");
    assert_eq!(members(&index, "2001:db8:f::1", 80), "n1/ipv6*1 n3/ipv6*7");
    assert_eq!(why(&index, "shop.web"), None);
    let snapshot = index.snapshot();
    assert_eq!(snapshot.vips[&key("203.0.113.1", 80)].set.table_slots, Some(256));

    index.apply_table(object("shop.web", 1, 21, local(&["203.0.113.1"], &[])));
    assert_eq!(
        members(&index, "203.0.113.1", 80),
        "",
        "served by nobody, and said so to clients"
    );
    assert_eq!(index.snapshot().backends.len(), 0, "what nobody names takes no room");
}

#[test]
fn a_family_without_endpoints_has_no_backends_and_the_other_keeps_all_nodes() {
    let mut index = index();
    let unserved = |unserved: &[AddressFamily]| VipTableSpec {
        backends: Backends::NodeSet {
            name: "workers".to_owned(),
            unserved: unserved.to_vec(),
        },
        ..spec(&["203.0.113.1", "2001:db8:f::1"], &[80])
    };
    index.apply_table(object("shop.web", 1, 20, unserved(&[])));
    let all = [members(&index, "203.0.113.1", 80), members(&index, "2001:db8:f::1", 80)];
    assert!(all.iter().all(|members| !members.is_empty()));
    index.apply_table(object("shop.web", 1, 21, unserved(&[AddressFamily::IPv4])));
    assert_eq!(members(&index, "203.0.113.1", 80), "");
    assert_eq!(members(&index, "2001:db8:f::1", 80), all[1]);
    index.apply_table(object("shop.web", 1, 22, unserved(&[])));
    assert_eq!(
        members(&index, "203.0.113.1", 80),
        all[0],
        "endpoints are back, and so is every slot"
    );
}

#[test]
fn a_node_set_is_used_when_all_its_chunks_are_there_and_stays_until_they_are_again() {
    let mut index = Index::new(own());
    index.apply_table(object("shop.web", 1, 20, spec(&["203.0.113.1"], &[80])));
    assert_eq!(
        members(&index, "203.0.113.1", 80),
        "none",
        "nothing before the first complete one"
    );
    assert!(why(&index, "shop.web").unwrap().contains("not complete yet"));
    index.apply_node_set(chunk(0, 2, 1, &[("a", Some("10.0.0.1"), None)]));
    assert_eq!(members(&index, "203.0.113.1", 80), "none");
    assert_eq!(index.waiting().count(), 1);
    index.apply_node_set(chunk(1, 2, 1, &[("b", Some("10.0.0.2"), None)]));
    assert_eq!(members(&index, "203.0.113.1", 80), "a/ipv4*1 b/ipv4*1");
    assert_eq!((why(&index, "shop.web"), index.waiting().count()), (None, 0));

    // Half of a change, a chunk that cannot be read, and no chunk at all.
    index.apply_node_set(chunk(1, 2, 2, &[("c", Some("10.0.0.3"), None)]));
    assert_eq!(members(&index, "203.0.113.1", 80), "a/ipv4*1 b/ipv4*1");
    let bad = Object {
        spec: Err("what is that".into()),
        ..chunk(1, 2, 1, &[])
    };
    index.apply_node_set(bad);
    index.reset_node_sets(Vec::new());
    index.delete_node_set("workers-1", 99);
    assert_eq!(members(&index, "203.0.113.1", 80), "a/ipv4*1 b/ipv4*1");
    assert_eq!(index.waiting().count(), 1);

    index.apply_node_set(chunk(0, 2, 2, &[("a", Some("10.0.0.9"), None)]));
    index.apply_node_set(chunk(1, 2, 2, &[("c", Some("10.0.0.3"), None)]));
    assert_eq!(members(&index, "203.0.113.1", 80), "a/ipv4*1 c/ipv4*1");
    let snapshot = index.snapshot();
    let addresses: Vec<String> = snapshot
        .backends
        .values()
        .map(|backend| backend.address.to_string())
        .collect();
    assert_eq!(
        addresses,
        ["10.0.0.9", "10.0.0.3"],
        "a kept its name and changed its address"
    );
}

#[test]
fn node_sets_that_make_no_sense_are_not_used() {
    let good = || chunk(0, 1, 1, &[("a", Some("10.0.0.1"), None)]);
    let with = |change: fn(&mut NodeSetSpec)| {
        let mut object = good();
        object.spec.as_mut().map(change).unwrap();
        object
    };
    for bad in [
        with(|spec| spec.table_slots = 300),
        with(|spec| spec.table_slots = 0),
        with(|spec| spec.chunks = 0),
        with(|spec| spec.chunks = 300),
        with(|spec| spec.chunk = 7),
    ] {
        let mut index = Index::new(own());
        index.apply_node_set(bad.clone());
        assert_eq!(index.waiting().count(), 1, "{bad:?}");
        assert_eq!(index.fingerprint(), None, "{bad:?}");
    }
    // A node with a bad address, or none, is left out.
    let mut index = Index::new(own());
    let nodes = [
        ("a", Some("10.0.0.1"), None),
        ("b", Some("2001:db8::1"), Some("::1")),
        ("c", None, None),
        ("d", Some("x"), Some("fe80::1")),
    ];
    index.apply_node_set(chunk(0, 1, 1, &nodes));
    index.apply_table(object("t", 1, 2, spec(&["203.0.113.1"], &[80])));
    assert_eq!(members(&index, "203.0.113.1", 80), "a/ipv4*1");
}

#[test]
fn a_bad_table_fails_alone_and_what_it_was_stays() {
    let bad: Vec<(&str, VipTableSpec, &str)> = vec![
        ("address", spec(&["203.0.113.300"], &[80]), "not an IP address"),
        ("multicast", spec(&["224.0.0.1"], &[80]), "multicast"),
        ("port", spec(&["203.0.113.1"], &[0]), "port 0"),
        ("no_port", spec(&["203.0.113.1"], &[]), "no port"),
        ("no_address", spec(&[], &[80]), "no address"),
        ("node", spec(&["10.0.0.2"], &[80]), "address of a node"),
        (
            "mode",
            VipTableSpec {
                mode: ForwardingMode::DsrGue,
                ..spec(&["203.0.113.1"], &[80])
            },
            "DsrGue",
        ),
        (
            "ranges",
            VipTableSpec {
                source_ranges: Some(vec!["10.0.0.0/40".to_owned()]),
                ..spec(&["203.0.113.1"], &[80])
            },
            "not a network",
        ),
        (
            "no_ranges",
            VipTableSpec {
                source_ranges: Some(Vec::new()),
                ..spec(&["203.0.113.1"], &[80])
            },
            "nobody",
        ),
        (
            "set",
            VipTableSpec {
                backends: Backends::NodeSet {
                    name: "others".to_owned(),
                    unserved: Vec::new(),
                },
                ..spec(&["203.0.113.1"], &[80])
            },
            "not there",
        ),
        (
            "slots",
            VipTableSpec {
                backends: Backends::Local {
                    set: "workers".to_owned(),
                    table_slots: 1000,
                    nodes: Vec::new(),
                    transit: None,
                },
                ..spec(&["203.0.113.1"], &[80])
            },
            "power of two",
        ),
    ];
    for (name, bad, reason) in bad {
        let mut index = index();
        index.apply_table(object("other", 1, 20, spec(&["203.0.113.9"], &[80])));
        index.apply_table(object("it", 2, 21, bad.clone()));
        assert!(
            why(&index, "it").unwrap().contains(reason),
            "{name}: {:?}",
            why(&index, "it")
        );
        assert_eq!(index.counts().0, 1, "{name}");
        // It was good before.
        delete(&mut index, "it", 22);
        assert_eq!(why(&index, "it"), None, "{name}");
        index.apply_table(object("it", 2, 23, spec(&["203.0.113.2"], &[81])));
        index.programmed(index.sequence());
        index.apply_table(object("it", 2, 24, bad));
        assert!(why(&index, "it").unwrap().contains(reason), "{name}");
        assert_ne!(members(&index, "203.0.113.2", 81), "none", "{name}");
        assert_ne!(members(&index, "203.0.113.9", 80), "none", "{name}");
        assert_eq!(
            index.revisions().tables,
            24,
            "{name}: a failing table is one that was looked at"
        );
        index.apply_table(object("it", 2, 25, spec(&["203.0.113.3"], &[80])));
        assert_eq!(
            (why(&index, "it"), members(&index, "203.0.113.2", 81)),
            (None, "none".to_owned()),
            "{name}"
        );
    }
}

#[test]
fn what_is_not_of_this_version_is_read_as_far_as_it_goes() {
    let raw = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "VipTable",
        "metadata": {"name": "shop.web", "resourceVersion": "77", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"scheduler": "FromTheFuture", "addresses": 7},
    });
    let raw: Received<VipTable> = serde_json::from_value(raw).unwrap();
    let mut index = index();
    index.apply_table(Object::read(raw));
    assert!(why(&index, "shop.web").unwrap().contains("cannot be read"));
    assert_eq!(index.revisions().tables, 77);
    // Without any of it.
    let raw: Received<VipTable> = serde_json::from_value(json!({"metadata": {}})).unwrap();
    index.apply_table(Object::read(raw));
    assert_eq!(index.failing().len(), 2);
}

#[test]
fn a_vip_belongs_to_the_oldest_table_and_passes_on_when_that_goes() {
    let old = || object("b", 1, 20, spec(&["203.0.113.1"], &[80]));
    let young = || object("a", 2, 21, spec(&["203.0.113.1", "203.0.113.2"], &[80]));
    for tables in [[old(), young()], [young(), old()]] {
        let mut index = index();
        for table in tables {
            index.apply_table(table);
            index.programmed(index.sequence());
        }
        assert!(
            why(&index, "a").unwrap().contains("belongs to table b"),
            "{:?}",
            why(&index, "a")
        );
        assert_eq!(why(&index, "b"), None);
        assert_ne!(members(&index, "203.0.113.1", 80), "none");
        delete(&mut index, "b", 22);
        assert_eq!(why(&index, "a"), None);
        assert_eq!(index.counts().0, 2);
        delete(&mut index, "a", 23);
        assert_eq!(index.counts(), (0, 0, 0));
    }
    // Of the same age, the name decides.
    let mut index = index();
    index.apply_table(object("y", 1, 20, spec(&["203.0.113.1"], &[80])));
    index.apply_table(object("x", 1, 21, spec(&["203.0.113.1"], &[80])));
    assert!(why(&index, "y").unwrap().contains("table x"));
    assert_eq!(index.counts().0, 1);
}

#[test]
fn an_address_moves_from_one_table_to_another_by_a_change_of_both() {
    let mut index = index();
    index.apply_table(object("a", 1, 20, spec(&["203.0.113.1"], &[80])));
    index.apply_table(object("b", 2, 21, spec(&["203.0.113.2"], &[80])));
    index.programmed(index.sequence());
    index.apply_table(object("b", 2, 22, spec(&["203.0.113.1"], &[80])));
    assert!(why(&index, "b").is_some());
    assert_ne!(
        members(&index, "203.0.113.2", 80),
        "none",
        "its last good version stays"
    );
    index.apply_table(object("a", 1, 23, local(&["203.0.113.3"], &[("n1", 1, 1)])));
    assert_eq!(why(&index, "b"), None);
    assert_eq!(members(&index, "203.0.113.1", 80), "n1/ipv4*1 n2/ipv4*1 n3/ipv6*1");
    assert_eq!(members(&index, "203.0.113.2", 80), "none");
    assert_eq!(members(&index, "203.0.113.3", 80), "n1/ipv4*1");
}

#[test]
fn what_does_not_fit_waits_until_there_is_room() {
    let capacity = Capacity {
        vips: 2,
        backends: 3,
        ranges: 4,
        ..Capacity::KUBE
    };
    let mut index = Index::new(Own { capacity, ..own() });
    index.apply_node_set(workers());
    index.apply_table(object("a", 1, 20, local(&["203.0.113.1"], &[("n1", 1, 1)])));
    index.apply_table(object(
        "b",
        2,
        21,
        local(&["203.0.113.2", "203.0.113.3"], &[("n1", 1, 1)]),
    ));
    assert!(why(&index, "b").unwrap().contains("capacity.vips"));
    index.apply_table(object("c", 3, 22, local(&["203.0.113.4"], &[("n1", 1, 1)])));
    assert_eq!((why(&index, "c"), index.counts().0), (None, 2));
    delete(&mut index, "a", 23);
    assert!(why(&index, "b").is_some());
    delete(&mut index, "c", 24);
    assert_eq!((why(&index, "b"), index.counts().0), (None, 2));
    delete(&mut index, "b", 25);

    index.apply_table(object("six", 4, 26, spec(&["203.0.113.1", "2001:db8:f::1"], &[80])));
    assert!(
        why(&index, "six").unwrap().contains("capacity.backends"),
        "four backends"
    );
    assert_eq!(index.counts(), (0, 0, 1), "nothing of it is left behind");
    index.apply_table(object("four", 5, 27, spec(&["203.0.113.5"], &[80])));
    assert_eq!(index.counts(), (1, 3, 2));
    let many = (0..5).map(|n| format!("198.51.{}.0/24", n * 2)).collect();
    let ranges = VipTableSpec {
        source_ranges: Some(many),
        ..local(&["203.0.113.2"], &[])
    };
    index.apply_table(object("ranges", 6, 28, ranges));
    assert!(why(&index, "ranges").unwrap().contains("capacity.ranges"));
}

#[test]
fn a_table_that_the_planner_refuses_goes_back_to_what_is_in_the_maps() {
    let mut index = index();
    index.apply_table(object("a", 1, 20, spec(&["203.0.113.1"], &[80])));
    index.programmed(index.sequence());
    index.apply_table(object("a", 1, 21, spec(&["203.0.113.1"], &[80, 81])));
    index.apply_table(object("b", 2, 22, spec(&["203.0.113.2"], &[80])));
    assert!(index.refuse(key("203.0.113.1", 81), "no room in the match table"));
    assert_eq!(index.counts().0, 2);
    assert!(index.refuse(key("203.0.113.2", 80), "nor here"));
    assert_eq!(
        index.snapshot().vips.keys().collect::<Vec<_>>(),
        [&key("203.0.113.1", 80)]
    );
    assert!(!index.refuse(key("203.0.113.7", 80), "unheard of"));
    let reasons = |index: &Index| [why(index, "a"), why(index, "b")].map(|why| why.is_some());
    assert_eq!(reasons(&index), [true, true]);
    // A later version is another matter.
    index.apply_table(object("a", 1, 23, spec(&["203.0.113.1"], &[82])));
    assert_eq!(reasons(&index), [false, true]);
}

#[test]
fn source_ranges_and_own_sources_are_heeded() {
    let mut index = Index::new(Own {
        sources: vec!["192.0.2.0/24".parse().unwrap()],
        ..own()
    });
    index.apply_node_set(workers());
    let ranged = VipTableSpec {
        source_ranges: Some(vec![
            " 198.51.100.7/24".to_owned(),
            "::/0".to_owned(),
            "198.51.100.0/24".to_owned(),
        ]),
        ..spec(&["203.0.113.1"], &[80])
    };
    index.apply_table(object("a", 1, 20, ranged));
    let snapshot = index.snapshot();
    let ranges = snapshot.vips[&key("203.0.113.1", 80)].allowed_sources.as_ref().unwrap();
    let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["198.51.100.0/24", "::/0"]);
    index.apply_table(object("b", 1, 21, spec(&["192.0.2.7"], &[80])));
    assert!(why(&index, "b").unwrap().contains("outer source"));
}

#[test]
fn a_node_of_the_set_decapsulates_what_the_tunnel_says_and_a_bad_or_deleted_one_changes_nothing() {
    let tunnel = |source: &str| TunnelConfigSpec {
        sources: vec![source.to_owned()],
        vip_prefixes: vec!["203.0.113.0/24".to_owned()],
    };
    let mut index = index();
    index.apply_tunnel(tunnel("192.0.2.1/32")).unwrap();
    assert_eq!(index.snapshot().tunnel, None, "lb-1 is no worker");
    let mut index = Index::new(Own {
        node: "n2".into(),
        ..own()
    });
    index.apply_node_set(workers());
    assert_eq!(index.snapshot().tunnel, None, "nothing said yet");
    index.apply_tunnel(tunnel("192.0.2.1/32")).unwrap();
    let before = index.snapshot().tunnel.unwrap();
    assert_eq!(before.sources, ["192.0.2.1/32".parse().unwrap()]);
    let sequence = index.sequence();
    assert!(matches!(
        index.apply_tunnel(tunnel("nonsense")),
        Err(TableError::NotANetwork { .. })
    ));
    assert_eq!((index.snapshot().tunnel, index.sequence()), (Some(before), sequence));
}
