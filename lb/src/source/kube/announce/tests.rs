//! From what is watched to what is asked of an LB node.

use lb_core::config::Password;
use serde_json::{Value, json};

use super::*;

fn object<S: super::super::object::Says>(name: &str, spec: Value, status: Value) -> Object<S> {
    let said = json!({"metadata": {"name": name}, "spec": spec, "status": status});
    let received: super::super::object::Received<operator_api::BgpPeer> = serde_json::from_value(said).unwrap();
    Object::read(received)
}

fn announcement(watched: &mut Announcing, name: &str, spec: Value, nodes: &[&str], peers: &[&str]) -> bool {
    watched.put_announcement(object(name, spec, json!({"nodes": nodes, "peers": peers})))
}

fn peer(watched: &mut Announcing, name: &str, more: Value, nodes: &[&str]) -> bool {
    let mut spec = json!({"address": "192.0.2.1", "asn": 65001, "localAsn": 65000});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    watched.put_peer(object(name, spec, json!({"nodes": nodes})))
}

fn node(watched: &mut Announcing, name: &str, announcing: Value) -> bool {
    watched.put_node(object(
        name,
        json!({"tunnelSources": []}),
        json!({"announcing": announcing}),
    ))
}

fn known(watched: &mut Announcing) {
    let names = |objects: Vec<&Arc<str>>| objects.into_iter().cloned().collect::<BTreeSet<_>>();
    let (a, p, n) = (
        names(watched.announcements.keys().collect()),
        names(watched.peers.keys().collect()),
        names(watched.nodes.keys().collect()),
    );
    watched.keep(Part::Announcements, &a);
    watched.keep(Part::Peers, &p);
    watched.keep(Part::Nodes, &n);
}

fn names(of: &[(&str, Option<&[&str]>)]) -> AddressNames {
    let names = |names: &[&str]| Names::new(names.iter().map(|name| Arc::from(*name)).collect());
    of.iter()
        .map(|(address, of)| (address.parse().unwrap(), of.map(names)))
        .collect()
}

fn places(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_peer_of_this_node_is_told_by_the_announcements_that_name_it_and_this_node() {
    let mut watched = Announcing::default();
    assert!(peer(
        &mut watched,
        "tor",
        json!({"passwordKey": "tor", "bfd": {}, "gracefulRestart": {}}),
        &["lb-1"]
    ));
    peer(&mut watched, "other", json!({"address": "192.0.2.2"}), &["lb-2"]);
    let core = json!({"bgp": {"communities": ["65000:7"], "localPref": 200, "prepend": 2, "aggregationLengthV4": 24}});
    assert!(announcement(
        &mut watched,
        "core",
        core.clone(),
        &["lb-1", "lb-2"],
        &["tor", "other"]
    ));
    assert!(
        !announcement(&mut watched, "core", core, &["lb-1", "lb-2"], &["tor", "other"]),
        "no news"
    );
    announcement(&mut watched, "edge", json!({"bgp": {}}), &["lb-2"], &["tor"]);
    announcement(&mut watched, "segment", json!({"l2": {}}), &["lb-1"], &[]);
    assert!(!watched.said("lb-1").is_known);
    known(&mut watched);
    let said = watched.said("lb-1");
    assert!(said.is_known && said.faults.is_empty(), "{said:?}");
    let bgp = said.bgp.unwrap();
    assert_eq!((bgp.local_asn, bgp.listen_port, bgp.peers.len()), (65000, None, 1));
    let tor = &bgp.peers[0];
    assert_eq!(
        (&*tor.name, tor.port, &tor.password),
        ("tor", 179, &Some(Password::Missing))
    );
    assert!(tor.bfd.is_some() && tor.session.restart_time_s == Some(120));
    let Announces::Named(told) = &tor.announces else {
        panic!("{tor:?}")
    };
    let names: Vec<&str> = told.keys().map(|name| &**name).collect();
    assert_eq!(names, ["core"], "edge is not this node's");
    let core = &told["core"];
    assert_eq!((core.length_v4, core.length_v6, core.attributes.prepend), (24, 128, 2));
    assert_eq!(
        core.attributes.local_pref, None,
        "a preference is for peers of the same AS"
    );

    assert!(watched.set_passwords([("tor".to_owned(), Arc::from(&b"secret"[..]))].into()));
    let bgp = watched.said("lb-1").bgp.unwrap();
    assert_eq!(bgp.peers[0].password, Some(Password::Given(Arc::from(&b"secret"[..]))));
    assert!(!format!("{bgp:?}").contains("secret"));
    assert!(watched.delete(Part::Peers, "tor") && watched.said("lb-1").bgp.is_none());
}

#[test]
fn what_cannot_be_used_is_left_out_alone_and_named() {
    let mut watched = Announcing::default();
    peer(&mut watched, "a", json!({}), &["lb-1"]);
    peer(
        &mut watched,
        "b",
        json!({"localAsn": 65009, "address": "192.0.2.2"}),
        &["lb-1"],
    );
    peer(&mut watched, "c", json!({}), &["lb-1"]);
    peer(&mut watched, "d", json!({"address": "fe80::1"}), &["lb-1"]);
    peer(
        &mut watched,
        "e",
        json!({"address": "192.0.2.5", "holdTimeSeconds": 1}),
        &["lb-1"],
    );
    peer(
        &mut watched,
        "f",
        json!({"address": "192.0.2.6", "passive": true}),
        &["lb-1"],
    );
    announcement(
        &mut watched,
        "bad",
        json!({"bgp": {"communities": ["1:70000"]}}),
        &["lb-1"],
        &["a"],
    );
    announcement(&mut watched, "good", json!({"bgp": {}}), &["lb-1"], &["a", "f"]);
    known(&mut watched);
    let said = watched.said("lb-1");
    let bgp = said.bgp.unwrap();
    let names: Vec<&str> = bgp.peers.iter().map(|peer| &*peer.name).collect();
    assert_eq!((names, bgp.listen_port), (vec!["a", "f"], Some(179)));
    let words = said.faults.join("\n");
    for word in [
        "Announcement bad: `1:70000` is not a community",
        "BgpPeer b: localAsn 65009 is not that of the first peer by name, 65000",
        "BgpPeer c: 192.0.2.1 is that of peer a",
        "BgpPeer d: address: `fe80::1` is not a unicast address",
        "BgpPeer e: holdTimeSeconds: 1 is not in 3..=65535",
    ] {
        assert!(words.contains(word), "{word} in\n{words}");
    }
    assert_eq!(said.faults.len(), 5, "{words}");
}

#[test]
fn an_address_goes_the_ways_of_its_announcements_and_by_default_to_its_segment() {
    let mut watched = Announcing::default();
    announcement(
        &mut watched,
        "bgp",
        json!({"bgp": {"whenNoBackend": "Withdraw"}}),
        &["lb-1"],
        &["tor"],
    );
    announcement(
        &mut watched,
        "l2",
        json!({"l2": {"probe": false}}),
        &["lb-1", "lb-2"],
        &[],
    );
    announcement(&mut watched, "theirs", json!({"l2": {}, "bgp": {}}), &["lb-2"], &[]);
    node(&mut watched, "lb-1", json!({}));
    node(
        &mut watched,
        "lb-2",
        json!({"places": ["192.0.2.12/24"], "bgp": {"established": 1}}),
    );
    node(
        &mut watched,
        "lb-3",
        json!({"places": ["198.51.100.3/24", "2001:db8::3/64"]}),
    );
    let names = names(&[
        ("192.0.2.100", None),
        ("192.0.2.101", Some(&["bgp"])),
        ("192.0.2.102", Some(&["l2"])),
        ("192.0.2.103", Some(&["bgp", "l2", "gone"])),
        ("192.0.2.104", Some(&["theirs"])),
        ("192.0.2.105", Some(&[])),
        ("203.0.113.1", None),
    ]);
    let me = Member::from("lb-1");
    let here = places(&["192.0.2.11/24", "2001:db8::1/64"]);
    assert_eq!(
        watched.said("lb-1").told(&me, &names, &here).told.segments,
        Some(BTreeMap::new()),
        "nothing before all is known: others may have it"
    );
    known(&mut watched);
    let shared = watched.said("lb-1").told(&me, &names, &here);
    let members = shared
        .members
        .iter()
        .map(|(name, (at, from))| format!("{name} {at} {from}"));
    let members: Vec<String> = members.collect();
    assert_eq!(members, ["lb-2 192.0.2.12 192.0.2.11", "lb-3 2001:db8::3 2001:db8::1"]);
    assert!(shared.probes, "the default asks");
    let segments = shared.told.segments.as_ref().unwrap();
    let who = |address: &str| -> Option<Vec<&str>> {
        let members = segments.get(&address.parse::<IpAddr>().unwrap())?;
        Some(members.iter().map(|member| &**member).collect())
    };
    assert_eq!(
        who("192.0.2.100"),
        Some(vec!["lb-1", "lb-2"]),
        "lb-3 is on another segment"
    );
    assert_eq!(who("192.0.2.102"), Some(vec!["lb-1", "lb-2"]));
    assert_eq!(who("192.0.2.103"), Some(vec!["lb-1", "lb-2"]));
    for address in ["192.0.2.101", "192.0.2.104", "192.0.2.105", "203.0.113.1"] {
        assert_eq!(who(address), None, "{address}");
    }
    let routers = shared.told.routers.as_ref().unwrap();
    let told: Vec<String> = routers
        .iter()
        .map(|(address, how)| format!("{address} {}", how.when_none.name()))
        .collect();
    assert_eq!(told, ["192.0.2.101 withdraw", "192.0.2.103 withdraw"]);
    let other = &shared.told.others["lb-2"];
    assert!(other.is_listened_to && other.unserved == Some(BTreeSet::new()));
}

#[test]
fn what_another_lb_node_cannot_list_whole_is_not_known() {
    let mut watched = Announcing::default();
    assert!(node(
        &mut watched,
        "lb-2",
        json!({"unserved": ["203.0.113.1"], "unservedCount": 1, "bgp": {"established": 2}})
    ));
    let other = |watched: &Announcing| watched.said("lb-1").others["lb-2"].clone();
    assert_eq!(other(&watched).unserved, Some([IpAddr::from([203, 0, 113, 1])].into()));
    node(
        &mut watched,
        "lb-2",
        json!({"unserved": ["203.0.113.1"], "unservedCount": 9}),
    );
    assert_eq!(other(&watched), Other::default());
    // One that drains is nobody's other way; one of an earlier version says nothing.
    let draining = json!({"bgp": {"established": 2}, "draining": {"since": "2026-12-01T00:00:00Z"}});
    node(&mut watched, "lb-2", draining);
    assert!(!other(&watched).is_listened_to);
    watched.put_node(object("lb-2", json!({"tunnelSources": []}), Value::Null));
    assert_eq!(other(&watched), Other::default());
}

#[test]
fn the_cache_gives_back_what_was_known() {
    let mut watched = Announcing::default();
    peer(&mut watched, "tor", json!({"passwordKey": "tor"}), &["lb-1"]);
    announcement(&mut watched, "core", json!({"bgp": {}}), &["lb-1"], &["tor"]);
    node(&mut watched, "lb-2", json!({"places": ["192.0.2.12/24"]}));
    watched.set_passwords([("tor".to_owned(), Arc::from(&b"secret"[..]))].into());
    known(&mut watched);
    let text = serde_json::to_string(&watched.kept()).unwrap();
    let recalled = Announcing::recall(serde_json::from_str(&text).unwrap());
    assert_eq!(recalled.said("lb-1"), watched.said("lb-1"));
    assert!(!Announcing::recall(Kept::default()).said("lb-1").is_known);
}

#[test]
fn a_name_that_is_new_takes_nothing_back_before_its_announcement_is_known() {
    let mut watched = Announcing::default();
    announcement(&mut watched, "core", json!({"bgp": {}}), &["lb-1"], &["tor"]);
    known(&mut watched);
    let said = watched.said("lb-1");
    let before = names(&[
        ("192.0.2.1", None),
        ("192.0.2.2", Some(&["core"])),
        ("192.0.2.3", Some(&["ended"])),
    ]);
    let new = names(&[
        ("192.0.2.1", Some(&["coming"])),
        ("192.0.2.2", Some(&["coming", "core"])),
        ("192.0.2.3", Some(&["core", "ended"])),
        ("192.0.2.4", Some(&["coming"])),
    ]);
    let settled = said.settled(new.clone(), &before);
    let ips = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!(settled[&ips[0]], None, "by default still");
    assert_eq!(settled[&ips[1]], before[&ips[1]]);
    assert_eq!(settled[&ips[2]], new[&ips[2]], "one that has ended is not waited for");
    assert_eq!(settled[&ips[3]], new[&ips[3]], "it had nothing before");
    // It comes.
    announcement(&mut watched, "coming", json!({"bgp": {}}), &["lb-1"], &["tor"]);
    assert_eq!(watched.said("lb-1").settled(new.clone(), &settled), new);
}

#[test]
fn two_lb_nodes_say_the_same_of_where_they_hear_each_other() {
    let mut watched = Announcing::default();
    let places_of = [
        ("lb-1", ["10.1.0.9/24", "192.0.2.11/24", "192.0.2.71/24"]),
        ("lb-2", ["10.2.0.9/24", "192.0.2.12/24", "192.0.2.72/24"]),
    ];
    for (name, places) in places_of {
        node(&mut watched, name, json!({"places": places}));
    }
    known(&mut watched);
    let [one, other] = [0, 1].map(|index| {
        let (name, of) = places_of[index];
        let shared = watched
            .said(name)
            .told(&name.into(), &AddressNames::new(), &places(&of));
        shared.members.into_values().next().unwrap()
    });
    assert_eq!((one.0, one.1), (other.1, other.0), "theirs is the other's own");
    assert_eq!(one.0, IpAddr::from([192, 0, 2, 12]));
}
