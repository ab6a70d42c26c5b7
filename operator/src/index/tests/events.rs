//! Which events wake whom.

use serde_json::{Value, json};

use super::*;
use crate::index::{Kind, Orphan};

fn version(number: u32) -> Value {
    json!({"metadata": {"resourceVersion": number.to_string()}})
}

fn local() -> Object {
    Object::Service(service(json!({"spec": {"externalTrafficPolicy": "Local"}})))
}

fn pools(names: &[&str]) -> Vec<Subject> {
    names.iter().map(|name| Subject::Pool((*name).to_owned())).collect()
}

#[test]
fn a_service_of_ours_wakes_itself_and_one_of_others_wakes_nobody() {
    let mut index = index([]);
    assert_eq!(index.apply(Object::Service(service(json!({})))), dirty([web()]));
    let left =
        json!({"metadata": {"resourceVersion": "101"}, "spec": {"type": "ClusterIP", "loadBalancerClass": null}});
    assert_eq!(
        index.apply(Object::Service(service(left))),
        dirty([web()]),
        "it is to be looked at once more"
    );
    let still =
        json!({"metadata": {"resourceVersion": "102"}, "spec": {"type": "ClusterIP", "loadBalancerClass": null}});
    assert_eq!(index.apply(Object::Service(service(still))), dirty([]));
}

#[test]
fn what_is_not_newer_changes_nothing() {
    let mut index = index([Object::Service(service(
        json!({"metadata": {"resourceVersion": "1000"}}),
    ))]);
    let older =
        json!({"metadata": {"resourceVersion": "999"}, "spec": {"type": "ClusterIP", "loadBalancerClass": null}});
    for stale in [
        service(older),
        service(json!({"metadata": {"resourceVersion": "1000"}})),
    ] {
        assert_eq!(index.apply(Object::Service(stale)), dirty([]));
    }
    assert!(matches!(index.wanted(&key("web")), Wanted::Serve(_)));
    let earlier_life = json!({"metadata": {"resourceVersion": "500", "uid": "an earlier life"}});
    assert_eq!(index.apply(Object::Service(service(earlier_life))), dirty([]));
    assert_eq!(
        index.service(&key("web")).unwrap().metadata.uid.as_deref(),
        Some("uid-web")
    );
}

#[test]
fn a_late_answer_does_not_bring_back_what_was_deleted() {
    let mut index = index([Object::Service(service(version(10)))]);
    assert_eq!(index.delete(Object::Service(service(version(12)))), dirty([web()]));
    assert_eq!(index.apply(Object::Service(service(version(11)))), dirty([]));
    assert_eq!(index.services().count(), 0);
    let next_life = json!({"metadata": {"uid": "uid-next", "resourceVersion": "13"}});
    assert_eq!(index.apply(Object::Service(service(next_life))), dirty([web()]));
    assert_eq!(
        index.delete(Object::Service(service(version(12)))),
        dirty([]),
        "told twice"
    );
    assert_eq!(index.services().count(), 1);
}

#[test]
fn a_list_counts_even_if_its_versions_went_back() {
    let mut index = index([]);
    for kind in Kind::ALL {
        index.reset(kind, vec![]);
    }
    index.apply(Object::Service(service(version(1_000))));
    let restored = json!({"metadata": {"resourceVersion": "10"}, "spec": {"externalTrafficPolicy": "Local"}});
    assert_eq!(
        index.reset(Kind::Service, vec![Object::Service(service(restored))]),
        dirty([web()])
    );
    assert!(matches!(index.wanted(&key("web")), Wanted::Serve(serve) if serve.local));
    assert_eq!(index.reset(Kind::Service, vec![]), dirty([web()]));
    assert_eq!(index.services().count(), 0);
}

#[test]
fn what_was_listed_is_looked_at_when_the_last_kind_is() {
    let mut index = index([]);
    for kind in Kind::ALL {
        let list = if kind == Kind::Service {
            vec![Object::Service(service(version(1)))]
        } else {
            vec![]
        };
        let woken = index.reset(kind, list);
        assert_eq!(woken.contains(&web()), index.is_complete(), "{kind:?}");
        assert_eq!(index.ours().count(), usize::from(index.is_complete()), "{kind:?}");
    }
    assert_eq!(index.waiting(), 1);
    // What a list does not have any more is gone at once.
    let mut index = self::index([Object::Service(service(version(1)))]);
    assert_eq!(index.waiting(), 1);
    assert_eq!(index.reset(Kind::Service, vec![]), dirty([web()]));
    assert_eq!((index.ours().count(), index.waiting()), (0, 0));
}

#[test]
fn it_is_complete_when_each_kind_was_listed() {
    let mut index = index([]);
    for kind in Kind::ALL {
        assert!(!index.is_complete());
        index.reset(kind, vec![]);
    }
    assert!(index.is_complete());
}

#[test]
fn managed_fields_and_kubectls_copy_are_not_kept() {
    let noisy = json!({"metadata": {
        "managedFields": [{"manager": "kubectl"}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes"},
    }});
    let index = index([Object::Service(service(noisy))]);
    let metadata = &index.service(&key("web")).unwrap().metadata;
    assert_eq!(metadata.managed_fields, None);
    assert_eq!(
        metadata.annotations.as_ref().unwrap().keys().collect::<Vec<_>>(),
        ["kept"]
    );
}

#[test]
fn a_slice_wakes_only_a_local_service_whose_weights_it_changes() {
    let with = |number: u32, endpoints: Value| {
        let mut patch = version(number);
        patch["endpoints"] = endpoints;
        Object::EndpointSlice(slice(patch))
    };
    let one = || json!([endpoint("10.0.0.1", "a")]);
    let same_count = || json!([endpoint("10.0.0.2", "a")]);
    let two = || json!([endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b")]);
    let mut index = index([local()]);
    assert_eq!(index.apply(with(101, one())), dirty([web()]));
    assert_eq!(index.apply(with(102, one())), dirty([]));
    assert_eq!(index.apply(with(103, same_count())), dirty([]));
    assert_eq!(index.apply(with(104, two())), dirty([web()]));
    assert_eq!(index.delete(with(105, two())), dirty([web()]));

    let mut cluster = super::index([Object::Service(service(json!({})))]);
    let unserved = |index: &Index| {
        let Wanted::Serve(serve) = index.wanted(&key("web")) else {
            panic!("not served")
        };
        match index.backends(&serve).0 {
            operator_api::Backends::NodeSet { unserved, .. } => unserved,
            operator_api::Backends::Local { .. } => panic!("policy Cluster"),
        }
    };
    assert_eq!(
        unserved(&cluster),
        [operator_api::AddressFamily::IPv4],
        "clients are to be refused"
    );
    assert_eq!(
        cluster.apply(with(101, one())),
        dirty([web()]),
        "the first endpoint counts with policy Cluster, too"
    );
    assert_eq!(unserved(&cluster), []);
    assert_eq!(cluster.apply(with(102, two())), dirty([]), "more do not");
    assert_eq!(cluster.apply(with(103, one())), dirty([]), "nor fewer");
    assert_eq!(cluster.apply(with(104, json!([]))), dirty([web()]), "the last does");
    assert_eq!(unserved(&cluster), [operator_api::AddressFamily::IPv4]);
    cluster.apply(with(105, one()));
    let switched = json!({"metadata": {"resourceVersion": "200"}, "spec": {"externalTrafficPolicy": "Local"}});
    cluster.apply(Object::Service(service(switched)));
    let Wanted::Serve(serve) = cluster.wanted(&key("web")) else {
        panic!("not served")
    };
    let (backends, _) = cluster.backends(&serve);
    assert!(
        matches!(backends, operator_api::Backends::Local { nodes, .. } if nodes.len() == 1),
        "but they are known"
    );
}

#[test]
fn a_slice_that_goes_to_another_service_wakes_both() {
    let other = || {
        service(json!({"metadata": {"name": "other", "uid": "uid-other"}, "spec": {"externalTrafficPolicy": "Local"}}))
    };
    let mut index = index([local(), Object::Service(other())]);
    index.apply(Object::EndpointSlice(slice(
        json!({"endpoints": [endpoint("10.0.0.1", "a")]}),
    )));
    let moved = json!({
        "metadata": {"resourceVersion": "101", "labels": {"kubernetes.io/service-name": "other"}},
        "endpoints": [endpoint("10.0.0.1", "a")],
    });
    assert_eq!(
        index.apply(Object::EndpointSlice(slice(moved))),
        dirty([Subject::Service(key("other")), web()])
    );
}

#[test]
fn a_node_wakes_the_node_sets_and_no_service() {
    let mut index = index([local(), Object::Table(table("web", "198.51.100.1", json!({})))]);
    assert_eq!(
        index.apply(Object::Node(node("node1", json!({})))),
        dirty([Subject::NodeSets])
    );
    assert_eq!(
        index.delete(Object::Node(node("node1", json!({})))),
        dirty([Subject::NodeSets])
    );
    let without_address = || Object::Node(node("node2", json!({"status": null})));
    assert_eq!(index.apply(without_address()), dirty([]));
    assert_eq!(index.delete(without_address()), dirty([]));
}

#[test]
fn a_claim_wakes_its_holders_and_its_pool_and_the_tunnel_only_outside_of_pools() {
    let mut index = index([
        Object::Service(service(json!({}))),
        Object::Pool(pool("public", &["198.51.100.0/24"], json!({}))),
    ]);
    let mut expected = dirty(pools(&["public"]));
    expected.insert(web());
    assert_eq!(
        index.apply(Object::Claim(claim("198.51.100.1", &["web"], json!({})))),
        expected
    );
    expected.insert(Subject::Tunnel);
    assert_eq!(
        index.apply(Object::Claim(claim("203.0.113.1", &["web"], json!({})))),
        expected
    );
}

#[test]
fn a_claim_that_frees_something_wakes_those_that_could_use_it() {
    let waiting = |name: &str, patch: Value| {
        let base = json!({"metadata": {"name": name, "uid": format!("uid-{name}")}});
        Object::Service(service(patched(base, patch)))
    };
    let annotated =
        |name: &str, value: &str| json!({"metadata": {"annotations": {format!("vipline.dev/{name}"): value}}});
    let mut index = index([
        Object::Service(service(json!({}))),
        Object::Pool(pool("public", &["198.51.100.0/30"], json!({}))),
        Object::Claim(claim("198.51.100.1", &["web"], json!({}))),
        waiting("any", json!({})),
        waiting("named", annotated("load-balancer-ips", "198.51.100.1")),
        waiting("other-name", annotated("load-balancer-ips", "198.51.100.2")),
        waiting("other-pool", annotated("address-pool", "gold")),
        waiting("v6", json!({"spec": {"ipFamilies": ["IPv6"]}})),
    ]);
    assert_eq!(index.waiting(), 5);
    let woken = index.delete(Object::Claim(claim("198.51.100.1", &["web"], json!({}))));
    let mut expected = dirty(pools(&["public"]));
    // `other-name` lacks an address of the family, too: whether the pools' rules let it have this one is not asked here.
    expected.extend(["any", "named", "other-name", "web"].map(|name| Subject::Service(key(name))));
    assert_eq!(woken, expected);
    let taken = index.apply(Object::Claim(claim("198.51.100.2", &["any"], json!({}))));
    assert_eq!(
        taken,
        dirty([Subject::Service(key("any"))].into_iter().chain(pools(&["public"]))),
        "what is taken frees nothing"
    );
    assert_eq!(index.waiting(), 5);
}

#[test]
fn a_pool_wakes_who_waits_and_who_is_covered_but_its_status_only_itself() {
    let mut index = index([
        Object::Service(service(json!({}))),
        Object::Service(service(json!({"metadata": {"name": "waits", "uid": "uid-waits"}}))),
        Object::Service(service(
            json!({"metadata": {"name": "elsewhere", "uid": "uid-elsewhere"}}),
        )),
        Object::Claim(claim("198.51.100.1", &["web"], json!({}))),
        Object::Claim(claim("203.0.113.1", &["elsewhere"], json!({"spec": {"pool": "gold"}}))),
        Object::Pool(pool("gold", &["203.0.113.0/24"], json!({}))),
    ]);
    let mut expected = dirty(pools(&["gold", "public"]));
    expected.extend([Subject::Tunnel, Subject::Service(key("waits")), web()]);
    assert_eq!(
        index.apply(Object::Pool(pool("public", &["198.51.100.0/24"], json!({})))),
        expected
    );
    let status = json!({"metadata": {"resourceVersion": "101"}, "status": {"used": 1}});
    assert_eq!(
        index.apply(Object::Pool(pool("public", &["198.51.100.0/24"], status))),
        dirty(pools(&["public"]))
    );
    let mut gone = expected;
    gone.remove(&Subject::Pool("public".to_owned()));
    assert_eq!(
        index.delete(Object::Pool(pool("public", &["198.51.100.0/24"], version(102)))),
        gone
    );
}

#[test]
fn labels_of_a_namespace_wake_its_services_of_ours() {
    let elsewhere = json!({"metadata": {"namespace": "shop-2"}});
    let foreign = json!({"metadata": {"name": "foreign"}, "spec": {"loadBalancerClass": "other"}});
    let mut index = index([
        Object::Service(service(json!({}))),
        Object::Service(service(elsewhere)),
        Object::Service(service(foreign)),
    ]);
    assert_eq!(index.apply(Object::Namespace(namespace("shop", json!({})))), dirty([]));
    let labelled = json!({"metadata": {"resourceVersion": "101", "labels": {"tier": "gold"}}});
    assert_eq!(
        index.apply(Object::Namespace(namespace("shop", labelled.clone()))),
        dirty([web()])
    );
    let Wanted::Serve(serve) = index.wanted(&key("web")) else {
        panic!("not served")
    };
    assert_eq!(serve.request.namespace_labels["tier"], "gold");
    assert_eq!(
        index.delete(Object::Namespace(namespace("shop", labelled))),
        dirty([web()])
    );
}

#[test]
fn an_lb_node_wakes_those_that_wait_for_it_and_nobody_else() {
    let published = json!({
        "metadata": {"name": "old", "uid": "uid-old"}, "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.2"}]}},
    });
    let mut index = index([
        Object::Service(service(json!({}))),
        Object::Service(service(published)),
        Object::Table(table("web", "198.51.100.1", json!({}))),
        Object::Table(table("old", "198.51.100.2", json!({}))),
    ]);
    let report = |number: u32, tables: &str| {
        let mut patch = version(number);
        patch["status"] = json!({"programmed": {"tables": tables}});
        Object::LbNode(lb_node("lb1", "", patch))
    };
    assert_eq!(
        index.apply(report(1, "100")),
        dirty([Subject::Tunnel]),
        "a new one is a new source"
    );
    assert_eq!(index.apply(report(2, "199")), dirty([]));
    assert_eq!(index.apply(report(3, "200")), dirty([web()]));
    assert_eq!(index.apply(report(4, "201")), dirty([]));
    let mut failing = version(5);
    failing["status"] =
        json!({"programmed": {"tables": "202", "failingCount": 1, "failing": [{"name": "shop.web", "why": "full"}]}});
    assert_eq!(index.apply(Object::LbNode(lb_node("lb1", "", failing))), dirty([web()]));
    assert_eq!(
        index.delete(report(6, "201")),
        dirty([Subject::Tunnel]),
        "published or not, nobody loses its status"
    );
}

#[test]
fn a_lease_wakes_only_when_its_lb_node_was_gone() {
    let mut index = index([
        Object::Service(service(json!({}))),
        Object::Table(table("web", "198.51.100.1", json!({}))),
        Object::LbNode(lb_node("lb1", "200", json!({}))),
    ]);
    // The LB node's clock is not ours.
    let mut renewed = |number: u32, at: &str| {
        index.tick(time(at));
        let theirs = format!("2025-06-01T00:00:{number:02}.000000Z");
        index.apply(Object::Lease(lease("lb1", &theirs, version(number))))
    };
    assert_eq!(renewed(1, "2026-01-01T00:00:00Z"), dirty([]), "it may be dead");
    assert_eq!(renewed(2, "2026-01-01T00:00:10Z"), dirty([web()]));
    assert_eq!(renewed(3, "2026-01-01T00:00:20Z"), dirty([]));
    assert_eq!(renewed(4, "2026-01-01T00:00:59Z"), dirty([]), "at the last moment");
    assert_eq!(renewed(5, "2026-01-01T00:02:00Z"), dirty([web()]));
    let leader = json!({"metadata": {"name": "vipline-operator"}});
    assert_eq!(
        index.apply(Object::Lease(lease("lb1", "2026-01-01T00:09:00.000000Z", leader))),
        dirty([])
    );
}

#[test]
fn a_service_with_external_ips_only_waits_until_its_condition_says_programmed() {
    let conditioned = |number: u32, status: &str| {
        let condition = json!({"type": "vipline.dev/Programmed", "status": status, "reason": "x", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut patch = version(number);
        patch["spec"] = json!({"type": "ClusterIP", "loadBalancerClass": null, "externalIPs": ["198.51.100.1"]});
        patch["status"] = json!({"conditions": [condition]});
        Object::Service(service(patch))
    };
    let address = json!([{"address": "198.51.100.1", "pool": "public", "use": "ExternalIP"}]);
    let table = table("web", "198.51.100.1", json!({"spec": {"addresses": address}}));
    let mut index = index([conditioned(1, "False"), Object::Table(table.clone())]);
    assert!(!index.is_published(&table));
    assert!(
        index
            .apply(Object::LbNode(lb_node("lb1", "200", json!({}))))
            .contains(&web())
    );
    index.apply(conditioned(2, "True"));
    assert!(index.is_published(&table));
    assert!(
        !index
            .apply(Object::LbNode(lb_node("lb2", "200", json!({}))))
            .contains(&web())
    );
}

#[test]
fn a_table_wakes_its_service_and_one_of_nobody_is_an_orphan() {
    let mut index = index([Object::Service(service(json!({})))]);
    assert_eq!(
        index.apply(Object::Table(table("web", "198.51.100.1", json!({})))),
        dirty([web()])
    );
    assert_eq!(
        index.apply(Object::Table(table("gone", "198.51.100.2", json!({})))),
        dirty([Subject::Orphans])
    );
    let stray = table("x", "198.51.100.3", json!({"metadata": {"name": "nodots"}}));
    assert_eq!(index.apply(Object::Table(stray)), dirty([Subject::Orphans]));
    let orphans: Vec<_> = index.orphans().collect();
    let names = |orphan: &Orphan<'_>| match orphan {
        Orphan::Table(table) => table.metadata.name.clone().unwrap(),
        Orphan::Holder(..) => panic!("no claim"),
    };
    assert_eq!(orphans.iter().map(names).collect::<Vec<_>>(), ["nodots", "shop.gone"]);
    let elsewhere = table(
        "web",
        "198.51.100.1",
        json!({"metadata": {"namespace": "shop", "resourceVersion": "900"}}),
    );
    assert_eq!(
        index.apply(Object::Table(elsewhere)),
        dirty([]),
        "a tenant's table is none"
    );
    assert_eq!(index.ignored(), 1);
}

#[test]
fn a_service_that_goes_with_its_claims_left_leaves_orphans() {
    let mut index = index([
        Object::Service(service(json!({}))),
        Object::Table(table("web", "198.51.100.1", json!({}))),
        Object::Claim(claim("198.51.100.1", &["web"], json!({}))),
    ]);
    assert_eq!(index.orphans().count(), 0);
    assert_eq!(
        index.delete(Object::Service(service(json!({})))),
        dirty([Subject::Orphans, web()])
    );
    assert_eq!(index.orphans().count(), 2);
    let next_life = json!({"metadata": {"uid": "uid-next", "resourceVersion": "300"}});
    index.apply(Object::Service(service(next_life)));
    let orphans: Vec<_> = index.orphans().collect();
    assert!(
        matches!(orphans.as_slice(), [Orphan::Holder(_, holder)] if holder.service.uid == "uid-web"),
        "{orphans:?}"
    );
}

#[test]
fn a_service_that_was_made_anew_before_its_end_was_seen_leaves_holders() {
    let mut index = index([
        Object::Service(service(json!({}))),
        Object::Claim(claim("198.51.100.1", &["web"], json!({}))),
    ]);
    let next_life = json!({"metadata": {"uid": "uid-next", "resourceVersion": "300"}});
    assert_eq!(
        index.apply(Object::Service(service(next_life))),
        dirty([Subject::Orphans, web()])
    );
}

#[test]
fn absurd_claims_and_nameless_objects_are_counted_and_left_out() {
    let mut index = index([]);
    let mut no_address = claim("198.51.100.1", &["web"], json!({}));
    no_address.metadata.name = Some("no-address".to_owned());
    assert_eq!(index.apply(Object::Claim(no_address.clone())), dirty([]));
    assert_eq!(index.delete(Object::Claim(no_address)), dirty([]));
    let mut nameless = node("node1", json!({}));
    nameless.metadata.name = None;
    assert_eq!(index.apply(Object::Node(nameless)), dirty([]));
    assert_eq!(index.ignored(), 2);
}

#[test]
fn the_seed_and_a_lost_pin_wake_the_seed() {
    let mut index = index([]);
    assert_eq!(index.apply(seed_secret()), dirty([Subject::Seed, Subject::NodeSets]));
    assert_eq!(index.delete(seed_secret()), dirty([Subject::Seed, Subject::NodeSets]));
    assert_eq!(
        index.apply(Object::NodeSet(node_set(0, json!({})))),
        dirty([Subject::Seed, Subject::NodeSets])
    );
    assert_eq!(
        index.apply(Object::NodeSet(node_set(0, version(101)))),
        dirty([Subject::NodeSets])
    );
    assert_eq!(
        index.delete(Object::NodeSet(node_set(0, version(102)))),
        dirty([Subject::Seed, Subject::NodeSets])
    );
}
