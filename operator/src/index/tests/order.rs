//! The same objects in any order, with late and lost-and-found news between, give the same answers as one list of each kind.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::{prelude::*, sample::Index as Pick};
use serde_json::{Value, json};

use super::*;
use crate::index::Kind;

const SERVICES: [&str; 3] = ["a", "b", "c"];
const ADDRESSES: [&str; 3] = ["198.51.100.1", "198.51.100.2", "203.0.113.1"];

/// All that an index can be asked, and what it keeps to know whom to wake.
fn answers(index: &Index) -> String {
    let now = time("2026-01-01T00:00:30Z");
    let services: Vec<_> = SERVICES
        .iter()
        .map(|name| {
            let wanted = index.wanted(&key(name));
            let backends = if let Wanted::Serve(serve) = &wanted {
                Some(index.backends(serve))
            } else {
                None
            };
            let programmed = index.table(&key(name)).map(|table| index.programmed(table));
            let announcements = index.announcements_of("public", &key(name));
            let address = index.table(&key(name)).map(|table| operator_api::VipAddress {
                announcements: announcements.clone(),
                ..table.spec.addresses[0].clone()
            });
            let aired = address.map(|address| index.aired(&address));
            (wanted, backends, programmed, announcements, aired)
        })
        .collect();
    let pools: Vec<_> = index
        .pools()
        .iter()
        .map(|pool| index.pools().status(pool.name(), index.claims(), now))
        .collect();
    let kept = (
        &index.ours,
        &index.waiting,
        &index.unpublished,
        index.eligible_nodes(),
        &index.endpoints,
    );
    let announcing: Vec<_> = (0..3)
        .map(|number| {
            let (peer, announcement) = (format!("p{number}"), format!("a{number}"));
            (
                index.nodes_of_peer(&peer),
                index.nodes_of_announcement(&announcement),
                index.peers_of_announcement(&announcement),
                index.selection_fault(&announcement),
            )
        })
        .collect();
    let orphans: Vec<_> = index.orphans().collect();
    let others = (index.next_node_set(), index.wanted_tunnel(), index.seed());
    format!(
        "{services:#?} {pools:#?} {kept:#?} {announcing:#?} {orphans:#?} {others:#?} {:?}",
        index.refresh(None, 9)
    )
}

/// One of a few versions of one of a few objects.
fn object() -> impl Strategy<Value = Object> {
    let name = || prop::sample::select(&SERVICES[..]);
    let address = || prop::sample::select(&ADDRESSES[..]);
    let uid = || prop::sample::select(&["1", "2"][..]);
    let services = (name(), 0..5_u8).prop_map(|(name, shape)| {
        let shape = match shape {
            0 => json!({}),
            1 => json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}),
            2 => json!({"type": "ClusterIP", "loadBalancerClass": null}),
            3 => json!({"type": "ClusterIP", "loadBalancerClass": null, "externalIPs": ["203.0.113.1"]}),
            _ => json!({"loadBalancerClass": "other"}),
        };
        let ingress = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
        Object::Service(service(
            json!({"metadata": {"name": name}, "spec": shape, "status": ingress}),
        ))
    });
    let slices = (0..3_u8, name(), 0..4_usize, any::<bool>()).prop_map(|(number, name, count, ready)| {
        let endpoints: Vec<Value> = (0..count)
            .map(|host| json!({"addresses": [format!("10.0.0.{host}")], "nodeName": format!("n{host}"),
                "conditions": {"ready": ready, "serving": true, "terminating": !ready}}))
            .collect();
        Object::EndpointSlice(slice(json!({
            "metadata": {"name": format!("s{number}"), "uid": format!("s{number}"), "labels": {"kubernetes.io/service-name": name}},
            "endpoints": endpoints,
        })))
    });
    let claims = (address(), prop::collection::vec(name(), 1..3), uid()).prop_map(|(address, holders, uid)| {
        let mut claim = claim(address, &holders, json!({}));
        for holder in &mut claim.spec.holders {
            holder.service.uid = format!("{uid}-{}", holder.service.name);
        }
        Object::Claim(claim)
    });
    let tables = (name(), address(), uid()).prop_map(|(name, address, uid)| {
        Object::Table(table(
            name,
            address,
            json!({"spec": {"service": {"uid": format!("{uid}-{name}")}}}),
        ))
    });
    let nodes = (0..4_u32, any::<bool>(), any::<bool>()).prop_map(|(number, excluded, leaving)| {
        let label = if excluded { json!("true") } else { Value::Null };
        let taints = if leaving { json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]) } else { json!([]) };
        Object::Node(node(&format!("n{number}"), json!({
            "metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": label}}, "spec": {"taints": taints},
        })))
    });
    let pools = (0..2_u8, 0..3_u8).prop_map(|(number, shape)| {
        let block = ["198.51.100.0/24", "203.0.113.0/24", "198.51.0.0/16"][usize::from(shape)];
        Object::Pool(pool(["public", "gold"][usize::from(number)], &[block], json!({})))
    });
    let lb_nodes = (0..2_u8, 0..40_u32).prop_map(|(number, tables)| {
        // Sessions are the same in all, and none says nothing: what was a moment ago counts.
        let network = ["198.51.100.0/24", "203.0.113.0/24", "192.0.2.0/24"][tables as usize % 3];
        let announcing = json!({"l2": {"networks": [network]}, "bgp": {"peers": [{"name": "p0", "address": "10.0.0.1", "established": true}]}});
        let labels = json!({"rack": (tables % 2).to_string()});
        let patch = json!({"metadata": {"labels": labels}, "status": {"announcing": announcing}});
        Object::LbNode(lb_node(&format!("lb{number}"), &(tables * 10).to_string(), patch))
    });
    let peers = (0..3_u8, 0..2_u32).prop_map(|(number, shape)| {
        Object::Peer(peer(
            &format!("p{number}"),
            json!({"spec": {"localAsn": 65000 + shape}}),
        ))
    });
    let announcements = (0..3_u8, 0..4_u8, any::<bool>()).prop_map(|(number, shape, told)| {
        let spec = match shape {
            0 => json!({"l2": {}}),
            1 => json!({"pools": ["public"], "bgp": {"peers": ["p0"]}}),
            2 => json!({"serviceSelector": {"matchLabels": {"tier": "gold"}}, "bgp": {}, "l2": {}}),
            _ => json!({"nodeSelector": {"matchLabels": {"rack": "1"}}, "bgp": {}}),
        };
        let status = if told {
            json!({"nodes": ["lb0"], "peers": ["p0"], "l2": shape == 0})
        } else {
            Value::Null
        };
        Object::Announcement(announcement(&format!("a{number}"), spec, json!({"status": status})))
    });
    let leases = (0..2_u8, 0..60_u8).prop_map(|(number, second)| {
        Object::Lease(lease(
            &format!("lb{number}"),
            &format!("2026-01-01T00:00:{second:02}.000000Z"),
            json!({}),
        ))
    });
    let chunks = (0..2_u32).prop_map(|chunk| Object::NodeSet(node_set(chunk, json!({"spec": {"chunks": 2}}))));
    let namespaces = any::<bool>().prop_map(|labelled| {
        let labels = if labelled { json!({"tier": "gold"}) } else { Value::Null };
        Object::Namespace(namespace("shop", json!({"metadata": {"labels": labels}})))
    });
    prop_oneof![
        services,
        slices,
        claims,
        tables,
        nodes,
        pools,
        lb_nodes,
        leases,
        peers,
        announcements,
        chunks,
        namespaces,
        Just(seed_secret())
    ]
}

fn metadata(object: &mut Object) -> &mut ObjectMeta {
    match object {
        Object::Service(object) => &mut object.metadata,
        Object::EndpointSlice(object) => &mut object.metadata,
        Object::Node(object) => &mut object.metadata,
        Object::Namespace(object) => &mut object.metadata,
        Object::Pool(object) => &mut object.metadata,
        Object::Claim(object) => &mut object.metadata,
        Object::Table(object) => &mut object.metadata,
        Object::NodeSet(object) => &mut object.metadata,
        Object::Tunnel(object) => &mut object.metadata,
        Object::LbNode(object) => &mut object.metadata,
        Object::Lease(object) => &mut object.metadata,
        Object::Peer(object) => &mut object.metadata,
        Object::Announcement(object) => &mut object.metadata,
        Object::Seed(object) => &mut object.metadata,
    }
}

/// Makes a history of writes and deletions: each has the next version, and what comes after a deletion has another uid. Returns
/// it, and what lives in the end.
fn history(writes: Vec<(Object, bool)>) -> (Vec<(Object, bool)>, Vec<Object>) {
    let mut lives: BTreeMap<(Kind, ServiceKey), (u32, Option<Object>)> = BTreeMap::new();
    let mut happened = Vec::new();
    for (version, (mut object, is_deletion)) in writes.into_iter().enumerate() {
        let (life, living) = lives.entry((object.kind(), object.key().unwrap())).or_default();
        if living.is_none() {
            if is_deletion {
                continue;
            }
            *life += 1;
        }
        let metadata = metadata(&mut object);
        let name = metadata.name.clone().unwrap();
        metadata.uid = Some(format!("{life}-{name}"));
        metadata.resource_version = Some((version + 1).to_string());
        *living = (!is_deletion).then(|| object.clone());
        happened.push((object, is_deletion));
    }
    (happened, lives.into_values().filter_map(|(_, living)| living).collect())
}

fn listed(living: &[Object]) -> Index {
    let mut index = index([]);
    for kind in Kind::ALL {
        index.reset(
            kind,
            living.iter().filter(|object| object.kind() == kind).cloned().collect(),
        );
    }
    index
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_order_of_the_same_news_gives_the_answers_of_a_list(
        (happened, living, shuffled, repeated) in prop::collection::vec((object(), prop::bool::weighted(0.25)), 1..60)
            .prop_map(history)
            .prop_flat_map(|(happened, living)| {
                let events = happened.len();
                (Just(happened.clone()), Just(living), Just(happened).prop_shuffle(), prop::collection::vec(any::<Pick>(), 0..=events))
            }),
    ) {
        let expected = answers(&listed(&living));

        let mut in_order = index([]);
        let mut out_of_order = index([]);
        for (events, index) in [(&happened, &mut in_order), (&shuffled, &mut out_of_order)] {
            for (object, is_deletion) in events {
                if *is_deletion {
                    index.delete(object.clone());
                } else {
                    index.apply(object.clone());
                }
            }
        }
        prop_assert_eq!(&answers(&in_order), &expected, "in order");
        prop_assert_eq!(&answers(&out_of_order), &expected, "out of order");

        for pick in repeated {
            let (object, is_deletion) = &happened[pick.index(happened.len())];
            let dirtied = if *is_deletion { out_of_order.delete(object.clone()) } else { out_of_order.apply(object.clone()) };
            prop_assert!(dirtied.is_empty(), "old news wakes nobody: {dirtied:?}");
        }
        prop_assert_eq!(&answers(&out_of_order), &expected, "told twice");

        for kind in Kind::ALL {
            out_of_order.reset(kind, living.iter().filter(|object| object.kind() == kind).cloned().collect());
        }
        prop_assert_eq!(&answers(&out_of_order), &expected, "listed again");
    }
}
