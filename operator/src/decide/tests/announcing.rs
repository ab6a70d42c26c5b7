//! Who announces, from pools, Announcements, peers and LB nodes to tables, statuses and conditions.

use operator_api::CONDITION_ANNOUNCED;
use serde_json::{Value, json};

use super::{
    balanced, with, words,
    world::{World, key},
};

/// What an LB node says that has a network with the pool.
pub(super) fn l2() -> Value {
    json!({"l2": {"origin": "Cluster", "networks": ["203.0.113.2/24"]}})
}

/// What one says with sessions to these peers, and no network of the pool's.
pub(super) fn bgp(peers: &[&str]) -> Value {
    let up = |name: &&str| json!({"name": name, "address": "10.0.0.1", "state": "established", "established": true});
    let count = peers.len();
    json!({
        "bgp": {"origin": "Cluster", "localAsn": 65000, "peers": peers.iter().map(up).collect::<Vec<_>>(), "peerCount": count,
                "established": count},
        "l2": {"origin": "Cluster", "networks": ["10.0.0.2/24"]},
    })
}

pub(super) fn peer() -> Value {
    json!({"address": "10.0.0.1", "asn": 65001, "localAsn": 65000})
}

impl World {
    pub(super) fn announcements(&self, name: &str) -> Vec<Option<Vec<String>>> {
        let addresses = &self.table(name).unwrap().spec.addresses;
        addresses.iter().map(|address| address.announcements.clone()).collect()
    }

    pub(super) fn announced(&self, name: &str) -> String {
        self.condition(name, CONDITION_ANNOUNCED)
    }

    /// `name: reason` of the condition of an Announcement.
    fn valid_announcement(&self, name: &str) -> String {
        let status = self.server.announcements[name].status.as_ref().unwrap();
        format!("{}: {}", status.conditions[0].reason, status.conditions[0].message)
    }

    fn valid_peer(&self, name: &str) -> String {
        let status = self.server.peers[name].status.as_ref().unwrap();
        format!("{}: {}", status.conditions[0].reason, status.conditions[0].message)
    }

    fn nodes_of(&self, announcement: &str) -> Vec<String> {
        self.server.announcements[announcement]
            .status
            .as_ref()
            .unwrap()
            .nodes
            .clone()
    }

    fn nodes_of_peer(&self, peer: &str) -> Vec<String> {
        self.server.peers[peer].status.as_ref().unwrap().nodes.clone()
    }

    pub(super) fn serve(&mut self, name: &str, labels: Value) {
        self.server.service(name, json!({}), balanced());
        let labels = serde_json::from_value(labels).unwrap();
        self.server.change(name, |service| service.metadata.labels = labels);
        self.settle();
    }
}

pub(super) fn names(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn a_pool_without_an_announcement_is_announced_by_l2_and_a_first_try_takes_one_object_and_four_writes() {
    let mut world = World::ready();
    world.server.says("lb-1", l2());
    world.settle();
    world.server.service("web", json!({}), balanced());
    assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
    assert_eq!(world.announcements("web"), [None]);
    assert_eq!(world.announced("web"), "True/L2: by L2 (default)");
    assert_eq!(
        world.told(),
        [
            "EnsuringLoadBalancer",
            "IPAllocated",
            "Announced",
            "EnsuredLoadBalancer"
        ]
    );
}

#[test]
fn where_no_lb_node_has_a_network_with_it_that_is_said_and_which_they_have() {
    let mut world = World::ready();
    world.server.says("lb-1", bgp(&[]));
    world.settle();
    world.serve("web", json!({}));
    assert_eq!(
        world.announced("web"),
        "False/NotConnected: no LB node has a network with 203.0.113.10 (they have 10.0.0.0/24)"
    );
    assert!(world.told().contains(&"NotAnnounced"));
}

#[test]
fn an_announcement_of_a_pool_ends_its_default_and_counts_once_lb_nodes_can_read_its_status() {
    let mut world = World::ready();
    world.server.says("lb-1", bgp(&["tor1"]));
    world.serve("web", json!({}));
    world.server.peer("tor1", json!({}), peer());
    world
        .server
        .announcement("core", json!({"pools": ["public"], "bgp": {}}));
    world.operator.catch_up(&world.server, usize::MAX);
    let service = crate::Subject::Service(key("web"));
    assert!(!world.work(&service), "nobody would find whom it is for");
    assert_eq!(words(&world.settle()), ["table", "status"]);
    assert_eq!(world.announcements("web"), [names(&["core"])]);
    assert_eq!(world.announced("web"), "True/BGP: by BGP (Announcement core)");
    let status = world.server.announcements["core"].status.clone().unwrap();
    assert_eq!((status.nodes, status.node_count), (vec!["lb-1".to_owned()], 1));
    assert_eq!((status.peers, status.l2), (vec!["tor1".to_owned()], false));
    assert_eq!(world.valid_announcement("core"), "Accepted: ");
    let status = world.server.peers["tor1"].status.clone().unwrap();
    assert_eq!(
        (status.state.as_str(), status.established, status.of),
        ("1/1 established", 1, 1)
    );

    // And when it goes, the default is back.
    world.server.delete_announcement("core");
    assert_eq!(words(&world.settle()), ["table", "status"]);
    assert_eq!(world.announcements("web"), [None]);
}

#[test]
fn one_that_names_the_pool_and_not_the_service_leaves_it_unannounced_until_labels_are_edited() {
    let mut world = World::ready();
    world.server.says("lb-1", l2());
    world.server.announcement(
        "gold",
        json!({"pools": ["public"], "serviceSelector": {"matchLabels": {"tier": "gold"}}, "l2": {}}),
    );
    world.settle();
    world.serve("web", json!({"tier": "lead"}));
    world.serve("shop", json!({"tier": "gold"}));
    assert_eq!(world.announcements("web"), [names(&[])]);
    assert_eq!(
        world.announced("web"),
        "False/NoAnnouncement: Announcements name its pool, and none selects this Service"
    );
    assert_eq!(world.announced("shop"), "True/L2: by L2 (Announcement gold)");
    world.told();

    let labels = |tier: &str| Some([("tier".to_owned(), tier.to_owned())].into());
    world
        .server
        .change("web", |service| service.metadata.labels = labels("gold"));
    assert_eq!(words(&world.settle()), ["table", "status"]);
    assert_eq!(world.announcements("web"), [names(&["gold"])]);
    assert_eq!(world.told(), ["Announced"]);
    // An edit of the selector costs a table where it selects otherwise, and none elsewhere.
    world
        .server
        .change("shop", |service| service.metadata.labels = labels("silver"));
    world.settle();
    world.server.announcement(
        "gold",
        json!({"pools": ["public"], "serviceSelector": {"matchLabels": {"tier": "silver"}}, "l2": {}}),
    );
    let written = world.settle();
    assert_eq!(words(&written), ["table", "status", "table", "status"], "{written:#?}");
    assert_eq!(world.announcements("web"), [names(&[])]);
    assert_eq!(world.announcements("shop"), [names(&["gold"])]);
}

#[test]
fn an_edit_of_peers_attributes_and_lb_nodes_costs_no_table_and_no_service() {
    let mut world = World::ready();
    world.server.lb_node("lb-2");
    world.server.says("lb-1", bgp(&["tor1"]));
    world.server.says("lb-2", bgp(&["tor1"]));
    world.server.peer("tor1", json!({}), peer());
    world.server.announcement("core", json!({"bgp": {}}));
    world.settle();
    world.serve("web", json!({}));
    assert_eq!(world.announced("web"), "True/BGP: by BGP (Announcement core)");
    world.server.announcement(
        "core",
        json!({"bgp": {"peers": ["tor1"], "communities": ["65000:1"], "med": 5},
               "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "lb-2"}}}),
    );
    assert_eq!(words(&world.settle()), Vec::<&str>::new());
    assert_eq!(world.nodes_of("core"), ["lb-2"]);
    // Nor does an LB node that goes, while another announces.
    let before = world.actions.len();
    world.server.later_without(200, &["lb-1"]);
    world.operator.catch_up(&world.server, usize::MAX);
    for subject in [
        crate::Subject::Peer("tor1".into()),
        crate::Subject::Announcement("core".into()),
    ] {
        world.work(&subject);
    }
    assert_eq!(world.nodes_of_peer("tor1"), ["lb-2"]);
    assert_eq!(words(&world.actions[before..]), ["peer"]);
}

#[test]
fn two_announcements_for_a_pool_are_both_in_the_table_and_in_what_is_said() {
    let mut world = World::ready();
    let mut says = bgp(&["tor1"]);
    says["l2"]["networks"] = json!(["203.0.113.2/24"]);
    world.server.says("lb-1", says);
    world.server.peer("tor1", json!({}), peer());
    world.server.announcement("edge", json!({"bgp": {}, "l2": {}}));
    world.server.announcement("core", json!({"bgp": {"peers": ["tor1"]}}));
    world.settle();
    world.serve("web", json!({}));
    assert_eq!(world.announcements("web"), [names(&["core", "edge"])]);
    assert_eq!(
        world.announced("web"),
        "True/BGPAndL2: by BGP (Announcements core, edge) and L2 (Announcement edge)"
    );
}

#[test]
fn a_dual_stack_service_is_announced_address_by_address_of_their_pools() {
    let mut world = World::ready();
    world
        .server
        .pool("public", json!({"addresses": ["203.0.113.10-203.0.113.19"]}));
    world
        .server
        .pool("six", json!({"addresses": ["2001:db8::10-2001:db8::19"]}));
    let mut says = bgp(&["tor1"]);
    says["l2"]["networks"] = json!(["203.0.113.2/24"]);
    world.server.says("lb-1", says);
    world.server.peer("tor1", json!({}), peer());
    world.server.announcement("core", json!({"pools": ["six"], "bgp": {}}));
    world.settle();
    let spec = with(json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}));
    world.server.service("web", json!({}), spec);
    world.settle();
    assert_eq!(world.announcements("web"), [None, names(&["core"])]);
    assert_eq!(
        world.announced("web"),
        "True/BGPAndL2: 203.0.113.10 by L2 (default); 2001:db8::10 by BGP (Announcement core)"
    );
    // One that is not makes it false, and only that one is named.
    world.server.says("lb-1", l2());
    world.settle();
    world.server.later(11);
    world.settle();
    assert_eq!(
        world.announced("web"),
        "False/NoPeer: no session is established of Announcement core"
    );
}

#[test]
fn services_that_share_an_address_are_each_announced_as_their_own_labels_have_it() {
    let mut world = World::ready();
    world.server.says("lb-1", l2());
    world.server.announcement(
        "gold",
        json!({"serviceSelector": {"matchLabels": {"tier": "gold"}}, "l2": {}}),
    );
    world.settle();
    let key_of = json!({"vipline.dev/allow-shared-ip": "k"});
    world.server.service("one", key_of.clone(), balanced());
    let other = with(json!({"ports": [{"name": "tls", "port": 443, "protocol": "TCP"}]}));
    world.server.service("two", key_of, other);
    world.server.change("one", |service| {
        service.metadata.labels = Some([("tier".to_owned(), "gold".to_owned())].into());
    });
    world.settle();
    assert_eq!(world.ingress("one"), world.ingress("two"));
    assert_eq!(world.announcements("one"), [names(&["gold"])]);
    assert_eq!(world.announcements("two"), [names(&[])]);
}

#[test]
fn lb_nodes_are_selected_by_labels_of_their_object_of_their_node_and_by_their_name() {
    let mut world = World::ready();
    world.server.lb_node("lb-2");
    world
        .server
        .labelled_node("lb-1", "10.9.0.11", json!({"rack": "17", "row": "1"}));
    world.server.label_lb_node("lb-2", json!({"rack": "18"}));
    let of = |key: &str, value: &str| json!({"nodeSelector": {"matchLabels": {key: value}}, "l2": {}});
    world.server.announcement("by-node", of("rack", "17"));
    world.server.announcement("by-object", of("rack", "18"));
    world
        .server
        .announcement("by-name", of("kubernetes.io/hostname", "lb-1"));
    world.server.announcement("by-nothing", of("rack", "19"));
    world.settle();
    assert_eq!(world.nodes_of("by-node"), ["lb-1"]);
    assert_eq!(world.nodes_of("by-object"), ["lb-2"]);
    assert_eq!(world.nodes_of("by-name"), ["lb-1"]);
    assert_eq!(world.nodes_of("by-nothing"), Vec::<String>::new());
    assert!(world.valid_announcement("by-nothing").starts_with("NoLbNode: "));
    // A label of the object wins over the node's.
    world.server.label_lb_node("lb-1", json!({"rack": "19"}));
    world.settle();
    assert_eq!(world.nodes_of("by-node"), Vec::<String>::new());
    assert_eq!(world.nodes_of("by-nothing"), ["lb-1"]);
}

#[test]
fn an_lb_node_leaves_the_lists_a_minute_after_its_lease_and_comes_back_at_once() {
    let mut world = World::ready();
    world.server.lb_node("lb-2");
    world.server.announcement("core", json!({"l2": {}}));
    world.server.peer("tor1", json!({}), peer());
    world.settle();
    assert_eq!(world.nodes_of("core"), ["lb-1", "lb-2"]);
    let work = |world: &mut World| {
        world.operator.catch_up(&world.server, usize::MAX);
        world.work(&crate::Subject::Announcement("core".into()));
        world.work(&crate::Subject::Peer("tor1".into()));
    };
    for (seconds, left) in [(39, 2), (59, 2), (5, 1)] {
        world.server.later_without(seconds, &["lb-2"]);
        work(&mut world);
        assert_eq!(world.nodes_of("core").len(), left, "after {seconds} more");
        assert_eq!(world.nodes_of_peer("tor1").len(), left);
    }
    world.server.later(0);
    work(&mut world);
    assert_eq!(world.nodes_of("core"), ["lb-1", "lb-2"]);
    // All of them gone is nobody's decision: the last list stays.
    world.server.later_without(3_600, &["lb-1", "lb-2"]);
    work(&mut world);
    assert_eq!(world.nodes_of("core"), ["lb-1", "lb-2"]);
    assert_eq!(world.nodes_of_peer("tor1"), ["lb-1", "lb-2"]);
}

#[test]
fn an_lb_node_that_is_drained_leaves_announcements_when_it_says_so_itself_unless_it_is_the_last() {
    let mut world = World::ready();
    world.server.lb_node("lb-2");
    world.server.announcement("core", json!({"l2": {}}));
    world.server.peer("tor1", json!({}), peer());
    world.settle();
    world.serve("web", json!({}));
    world.server.label_lb_node("lb-2", json!({"vipline.dev/drain": ""}));
    world.settle();
    assert_eq!(
        world.nodes_of("core"),
        ["lb-1", "lb-2"],
        "it gives away by itself first"
    );
    let mut says = l2();
    says["draining"] = json!({"since": "2030-01-01T00:00:00Z"});
    world.server.says("lb-2", says.clone());
    world.settle();
    assert_eq!(world.nodes_of("core"), ["lb-1"]);
    assert_eq!(
        world.nodes_of_peer("tor1"),
        ["lb-1", "lb-2"],
        "its sessions say that it gives away"
    );
    // A stop without a label is no reason: it comes back.
    world.server.says("lb-1", says);
    world
        .server
        .label_lb_node("lb-2", json!({"vipline.dev/drain": "false"}));
    world.settle();
    assert_eq!(world.nodes_of("core"), ["lb-1", "lb-2"]);
    world.server.label_lb_node("lb-1", json!({"vipline.dev/drain": "yes"}));
    world.server.label_lb_node("lb-2", json!({"vipline.dev/drain": "yes"}));
    world.settle();
    assert_eq!(world.nodes_of("core"), ["lb-1", "lb-2"], "none would be left");
    assert_eq!(
        world.announced("web"),
        "False/Draining: the LB nodes that it is for are drained"
    );
}

#[test]
fn peers_that_an_lb_node_cannot_have_together_are_refused_by_name() {
    let mut world = World::ready();
    world.server.peer("a", json!({}), peer());
    let mut other = peer();
    other["address"] = json!("10.0.0.9");
    other["localAsn"] = json!(64999);
    world.server.peer("b", json!({}), other);
    world.server.peer("c", json!({}), peer());
    let mut restarts = peer();
    restarts["address"] = json!("10.0.0.8");
    restarts["gracefulRestart"] = json!({});
    world.server.peer("d", json!({}), restarts);
    world.settle();
    assert_eq!(world.nodes_of_peer("a"), ["lb-1"]);
    assert_eq!(world.valid_peer("a"), "Accepted: ");
    assert_eq!(
        world.valid_peer("b"),
        "LocalAsnDiffers: localAsn differs from that of peer a; not on lb-1"
    );
    assert_eq!(
        world.valid_peer("c"),
        "AddressTaken: peer a has the same address; not on lb-1"
    );
    assert_eq!(
        world.valid_peer("d"),
        "GracefulRestartDiffers: gracefulRestart differs from that of peer a; not on lb-1"
    );
    for refused in ["b", "c", "d"] {
        assert_eq!(world.nodes_of_peer(refused), Vec::<String>::new(), "{refused}");
        assert_eq!(world.server.peers[refused].status.as_ref().unwrap().state, "no LB node");
    }
    // The first may have another one.
    let mut moved = peer();
    moved["localAsn"] = json!(64999);
    moved["address"] = json!("10.0.0.7");
    world.server.peer("a", json!({}), moved);
    world.settle();
    assert_eq!(world.nodes_of_peer("b"), ["lb-1"]);
}

#[test]
fn an_announcement_says_which_of_what_it_names_is_not_there() {
    let mut world = World::ready();
    world.server.peer("tor1", json!({"rack": "17"}), peer());
    world
        .server
        .announcement("pool", json!({"pools": ["nobodys"], "l2": {}}));
    world.server.announcement("peer", json!({"bgp": {"peers": ["tor9"]}}));
    world.server.announcement(
        "none",
        json!({"bgp": {"peerSelector": {"matchLabels": {"rack": "18"}}}}),
    );
    world.server.announcement(
        "deaf",
        json!({"bgp": {"peerSelector": {"matchLabels": {"rack": "17"}}, "localPref": 200}}),
    );
    world.settle();
    assert_eq!(
        world.valid_announcement("pool"),
        "PoolMissing: there is no AddressPool nobodys"
    );
    assert_eq!(
        world.valid_announcement("peer"),
        "PeerMissing: there is no BgpPeer tor9"
    );
    assert_eq!(
        world.valid_announcement("none"),
        "NoPeer: there is no BgpPeer that it tells"
    );
    assert_eq!(
        world.valid_announcement("deaf"),
        "Accepted: localPref is said to none of its peers: none is of the LB nodes' AS"
    );
    assert_eq!(
        world.server.announcements["deaf"].status.as_ref().unwrap().peers,
        ["tor1"]
    );
    world.server.pool("nobodys", json!({"addresses": ["198.51.100.0/28"]}));
    world.settle();
    assert_eq!(world.valid_announcement("pool"), "Accepted: ");
}
