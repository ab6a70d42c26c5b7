//! What people are told of what LB nodes say that they announce.

use serde_json::json;

use super::{
    announcing::{bgp, l2, names, peer},
    words,
    world::{Operator, World, key},
};

#[test]
fn an_address_that_another_host_has_is_told_by_condition_and_event_and_so_is_its_end() {
    let mut world = World::ready();
    world.server.lb_node("lb-2");
    world.server.says("lb-1", l2());
    world.server.says("lb-2", l2());
    world.settle();
    world.serve("web", json!({}));
    world.told();
    let mut taken = l2();
    taken["exceptions"] = json!([{"address": "203.0.113.10", "way": "L2", "reason": "AddressInUse", "why": "in use by 02:00:00:00:00:ab"}]);
    taken["exceptionCount"] = json!(1);
    world.server.says("lb-1", taken);
    world.settle();
    assert_eq!(
        world.announced("web"),
        "False/AddressInUse: in use by 02:00:00:00:00:ab"
    );
    assert_eq!(world.ingress("web"), ["203.0.113.10"], "clients keep it");
    let note = world.notes.last().unwrap();
    assert!(note.warning);
    assert_eq!(
        (note.reason, note.message.as_str()),
        ("AddressInUse", "Not announced: in use by 02:00:00:00:00:ab")
    );
    world.told();
    world.server.says("lb-1", l2());
    world.settle();
    assert_eq!(world.announced("web"), "True/L2: by L2 (default)");
    assert_eq!(world.told(), ["Announced"]);
}

#[test]
fn what_is_asked_for_at_first_is_no_news_of_an_address_that_was_announced() {
    let mut world = World::ready();
    let mut asks = l2();
    asks["exceptions"] = json!([{"address": "203.0.113.10", "way": "L2", "reason": "Waits"}]);
    world.server.says("lb-1", asks.clone());
    world.settle();
    world.serve("web", json!({}));
    assert!(
        world.announced("web").starts_with("Unknown/Pending: "),
        "{}",
        world.announced("web")
    );
    world.server.says("lb-1", l2());
    world.settle();
    assert_eq!(world.announced("web"), "True/L2: by L2 (default)");
    world.server.says("lb-1", asks);
    assert_eq!(words(&world.settle()), Vec::<&str>::new());
}

#[test]
fn a_session_that_flaps_costs_no_write_and_one_that_stays_away_is_said() {
    let mut world = World::ready();
    world.server.says("lb-1", bgp(&["tor1"]));
    world.server.peer("tor1", json!({}), peer());
    world.server.announcement("core", json!({"bgp": {}}));
    world.settle();
    world.serve("web", json!({}));
    world.server.says("lb-1", bgp(&[]));
    world.server.program();
    world.operator.catch_up(&world.server, usize::MAX);
    let service = crate::Subject::Service(key("web"));
    assert!(!world.work(&service), "for a while it may come back");
    world.server.later(11);
    assert!(world.work(&service));
    assert_eq!(
        world.announced("web"),
        "False/NoPeer: no session is established of Announcement core"
    );
    world.settle();
    assert_eq!(
        world.server.peers["tor1"].status.as_ref().unwrap().state,
        "0/1 established"
    );
}

#[test]
fn where_a_withdrawn_address_has_a_backend_on_another_lb_node_it_is_announced() {
    let mut world = World::ready();
    world.server.lb_node("lb-2");
    let mut without = bgp(&["tor1"]);
    without["exceptions"] =
        json!([{"address": "203.0.113.10", "way": "BGP", "reason": "NoBackend", "why": "no backend takes new flows"}]);
    world.server.says("lb-1", without.clone());
    world.server.says("lb-2", bgp(&["tor1"]));
    world.server.peer("tor1", json!({}), peer());
    world.server.announcement("core", json!({"bgp": {}}));
    world.settle();
    world.serve("web", json!({}));
    assert_eq!(world.announced("web"), "True/BGP: by BGP (Announcement core)");
    world.server.says("lb-2", without);
    world.settle();
    assert_eq!(world.announced("web"), "False/NoBackend: no backend takes new flows");
}

#[test]
fn of_peers_that_an_lb_node_has_no_room_to_name_its_count_is_believed() {
    let mut world = World::ready();
    let mut says = bgp(&["a"]);
    says["bgp"]["peerCount"] = json!(17);
    world.server.says("lb-1", says.clone());
    let mut other = peer();
    other["address"] = json!("10.0.0.2");
    world.server.peer("z", json!({}), other);
    world.server.announcement("core", json!({"bgp": {"peers": ["z"]}}));
    world.settle();
    world.serve("web", json!({}));
    assert!(
        world.announced("web").starts_with("False/NoPeer: "),
        "one is, and that is a"
    );
    says["bgp"]["established"] = json!(2);
    world.server.says("lb-1", says);
    world.settle();
    assert_eq!(world.announced("web"), "True/BGP: by BGP (Announcement core)");
}

#[test]
fn lb_nodes_with_files_of_their_own_announce_whatever_announcements_say() {
    let mut world = World::ready();
    world.server.says(
        "lb-1",
        json!({"bgp": {"origin": "File", "established": 1, "peerCount": 1}, "l2": {"origin": "File", "networks": ["198.51.100.0/24"]}}),
    );
    world.server.peer("tor1", json!({}), peer());
    world.server.announcement(
        "gold",
        json!({"serviceSelector": {"matchLabels": {"tier": "gold"}}, "bgp": {}}),
    );
    world.settle();
    world.serve("web", json!({}));
    assert_eq!(world.announcements("web"), [names(&[])]);
    assert_eq!(world.announced("web"), "True/BGP: by BGP (LB nodes' files)");
    assert_eq!(
        world.server.peers["tor1"].status.as_ref().unwrap().of,
        0,
        "none takes it from here"
    );
}

#[test]
fn lb_nodes_of_an_earlier_version_say_nothing_and_nobody_guesses() {
    let mut world = World::ready();
    world.serve("web", json!({}));
    assert!(world.announced("web").starts_with("Unknown/NotReported: "));
    world.server.lb_node("lb-2");
    world.server.says("lb-2", l2());
    world.settle();
    assert_eq!(
        world.announced("web"),
        "True/L2: by L2 (default)",
        "one that says is enough"
    );
}

#[test]
fn an_lb_node_that_starts_anew_and_says_nothing_yet_costs_no_write_and_one_that_goes_on_so_is_told_of() {
    let mut world = World::ready();
    world.server.says("lb-1", bgp(&["tor1"]));
    world.server.peer("tor1", json!({}), peer());
    world.server.announcement("core", json!({"bgp": {}}));
    world.settle();
    world.serve("web", json!({}));
    let before = world.actions.len();
    world.server.announcing.clear();
    world.settle();
    world.server.says(
        "lb-1",
        json!({"bgp": {"origin": "Cluster", "localAsn": 65000, "peerCount": 1}}),
    );
    world.settle();
    world.server.says("lb-1", bgp(&["tor1"]));
    world.settle();
    let statuses = world.actions[before..].iter();
    let of_services = statuses.filter(|action| matches!(action, crate::decide::Action::ApplyServiceStatus { .. }));
    assert_eq!(of_services.count(), 0, "{:#?}", &world.actions[before..]);
    world.server.announcing.clear();
    world.settle();
    world.server.later(11);
    world.settle();
    assert!(world.announced("web").starts_with("Unknown/NotReported: "));
}

#[test]
fn at_rest_nothing_is_written_and_an_lb_nodes_counters_wake_nobody() {
    let mut world = World::ready();
    world.server.says("lb-1", bgp(&["tor1"]));
    world.server.peer("tor1", json!({}), peer());
    world.server.announcement("core", json!({"bgp": {}}));
    world.settle();
    world.serve("web", json!({}));
    let before = world.actions.len();
    let mut counts = bgp(&["tor1"]);
    counts["bgp"]["peers"][0]["announced"] = json!(9_000);
    counts["unserved"] = json!(["203.0.113.11"]);
    world.server.says("lb-1", counts);
    world.server.program();
    let node = world.server.lb_nodes["lb-1"].clone();
    let woken = world.operator.index.apply(crate::index::Object::LbNode(node));
    assert_eq!(woken, std::collections::BTreeSet::new());
    world.settle();
    assert_eq!(world.actions.len(), before);
    // A restart writes nothing, either.
    world.operator = Operator::start(&world.server, world.settings.clone());
    world.settle();
    assert_eq!(world.actions.len(), before);
}
