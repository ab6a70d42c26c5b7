//! Sessions as their users know them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use lb_core::bgp::{
    Attributes, Community, Event, Families, LargeCommunity, SessionError, State, StopReason, TransportError,
};
use netgauze_bgp_pkt::{BgpMessage, capabilities::BgpCapability};

use super::wire::{Side, Wire, config};

const A_WHILE: Duration = Duration::from_secs(20);

fn table(nets: &[&str], attributes: &Attributes) -> BTreeMap<IpNet, Arc<Attributes>> {
    nets.iter()
        .map(|net| (net.parse().unwrap(), Arc::new(attributes.clone())))
        .collect()
}

fn announce(wire: &mut Wire, nets: &[&str], attributes: &Attributes) {
    let actions = wire.a.announce(&table(nets, attributes), wire.now);
    wire.carry(Side::A, actions);
}

fn start(wire: &mut Wire) {
    wire.step(Side::A, Event::Start);
    wire.step(Side::B, Event::Start);
    wire.settle(A_WHILE);
}

fn known(wire: &Wire) -> Vec<String> {
    wire.established()
        .unwrap()
        .routes
        .keys()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn two_sides_that_connect_at_once_keep_one_connection() {
    let mut wire = Wire::new(config(65000, 65001), config(65001, 65000), false);
    announce(&mut wire, &["192.0.2.1/32"], &Attributes::default());
    start(&mut wire);
    assert_eq!(known(&wire), ["192.0.2.1/32"]);
    assert_eq!(wire.connections(), 1);
    assert_eq!(wire.a.view().counters.flaps, 0);
}

#[test]
fn an_ebgp_peer_gets_our_path_and_communities_and_no_preference() {
    let mut wire = Wire::new(config(4_200_000_000, 65001), config(65001, 4_200_000_000), false);
    let attributes = Attributes {
        local_pref: Some(7),
        med: Some(50),
        prepend: 2,
        communities: [Community(65000 << 16 | 100)].into(),
        large_communities: [LargeCommunity([65000, 1, 2])].into(),
    };
    announce(&mut wire, &["192.0.2.1/32", "2001:db8:1::1/128"], &attributes);
    start(&mut wire);
    let model = wire.established().unwrap();
    let route = &model.routes[&"192.0.2.1/32".parse::<IpNet>().unwrap()];
    assert_eq!(route.path, [4_200_000_000; 3]);
    assert_eq!((route.med, route.local_pref), (Some(50), None));
    assert_eq!(route.communities, [65000 << 16 | 100]);
    assert_eq!(route.large_communities, [[65000, 1, 2]]);
    assert_eq!(route.next_hop, Some("10.0.0.1".parse().unwrap()));
    let route = &model.routes[&"2001:db8:1::1/128".parse::<IpNet>().unwrap()];
    assert_eq!(route.next_hop, Some("2001:db8::1".parse().unwrap()));
    assert_eq!(model.ends, 2);
}

#[test]
fn an_ibgp_peer_gets_a_preference_and_an_empty_path() {
    let mut wire = Wire::new(config(65000, 65000), config(65000, 65000), false);
    announce(&mut wire, &["192.0.2.1/32"], &Attributes::default().draining());
    start(&mut wire);
    let route = wire.established().unwrap().routes.values().next().unwrap().clone();
    assert_eq!((route.path.len(), route.local_pref), (0, Some(0)));
    assert_eq!(route.communities, [0xffff_0000]);
}

#[test]
fn ipv4_goes_over_ipv6_with_an_ipv6_next_hop() {
    let mut wire = Wire::new(config(65000, 65001), config(65001, 65000), true);
    announce(&mut wire, &["192.0.2.1/32"], &Attributes::default());
    start(&mut wire);
    let route = wire.established().unwrap().routes.values().next().unwrap().clone();
    assert_eq!(route.next_hop, Some("2001:db8::1".parse().unwrap()));
    announce(&mut wire, &[], &Attributes::default());
    assert!(known(&wire).is_empty());
}

#[test]
fn a_family_that_one_side_lacks_is_withheld_and_counted() {
    let mut b = config(65001, 65000);
    b.families = Families { v4: true, v6: false };
    let mut wire = Wire::new(config(65000, 65001), b, false);
    announce(
        &mut wire,
        &["192.0.2.1/32", "2001:db8:1::1/128"],
        &Attributes::default(),
    );
    start(&mut wire);
    assert_eq!(known(&wire), ["192.0.2.1/32"]);
    let view = wire.a.view();
    assert_eq!((view.announced, view.withheld), (1, 1));
}

#[test]
fn no_common_family_is_no_session() {
    let (mut a, mut b) = (config(65000, 65001), config(65001, 65000));
    a.families = Families { v4: true, v6: false };
    b.families = Families { v4: false, v6: true };
    let mut wire = Wire::new(a, b, false);
    start(&mut wire);
    assert!(wire.established().is_none());
    let (_, error) = wire.a.view().last_error.unwrap();
    assert!(matches!(error.kind(), "no_common_family" | "notification"), "{error}");
}

#[test]
fn another_as_is_refused_and_both_are_told() {
    let mut wire = Wire::new(config(65000, 65009), config(65001, 65000), false);
    start(&mut wire);
    let errors = [wire.a.view(), wire.b.view()].map(|view| view.last_error.unwrap().1);
    assert_eq!(
        errors[0],
        SessionError::WrongAsn {
            expected: 65009,
            found: 65001
        }
    );
    assert_eq!(
        errors[1].to_string(),
        "the peer ended the session: OPEN Message Error/Bad Peer AS"
    );
    assert!(errors[1].advice().contains("remote-as"));
}

#[test]
fn a_peer_that_is_gone_is_noticed_by_the_hold_time_and_found_again() {
    let mut wire = Wire::new(config(65000, 65001), config(65001, 65000), false);
    start(&mut wire);
    // Nothing arrives any more.
    for _ in 0..10 {
        wire.pass(Duration::from_secs(1));
    }
    let (_, error) = wire.a.view().last_error.unwrap();
    assert_eq!(error, SessionError::HoldTimer);
    wire.settle(A_WHILE);
    assert!(wire.established().is_some());
    assert_eq!(wire.a.view().counters.flaps, 1);
}

#[test]
fn a_refused_connection_is_tried_again() {
    let mut wire = Wire::new(config(65000, 65001), config(65001, 65000), false);
    wire.step(Side::A, Event::Start);
    wire.connect(false);
    assert_eq!(wire.a.view().state, State::Active);
    assert_eq!(wire.a.view().last_error.unwrap().1, TransportError::Refused.into());
    let pause = wire.a.deadline().unwrap() - wire.now;
    assert!((1.5..=2.0).contains(&pause.as_secs_f64()), "{pause:?}");
    let down_since = wire.now;
    wire.pass(pause);
    let view = wire.a.view();
    assert_eq!(
        (view.state, view.since),
        (State::Connect, down_since),
        "down all the while"
    );
    wire.step(Side::B, Event::Start);
    wire.settle(A_WHILE);
    assert!(wire.established().is_some());
}

#[test]
fn a_passive_side_waits() {
    let mut a = config(65000, 65001);
    a.passive = true;
    let mut wire = Wire::new(a, config(65001, 65000), false);
    wire.step(Side::A, Event::Start);
    wire.pass(A_WHILE);
    assert_eq!((wire.a.view().state, wire.a.deadline()), (State::Active, None));
    start(&mut wire);
    assert!(wire.established().is_some());
}

#[test]
fn a_shutdown_is_told_in_words() {
    let mut wire = Wire::new(config(65000, 65001), config(65001, 65000), false);
    start(&mut wire);
    wire.step(Side::A, Event::Stop(StopReason::Shutdown("maintenance".into())));
    wire.settle(Duration::ZERO);
    assert_eq!(wire.a.view().state, State::Idle);
    let (_, error) = wire.b.view().last_error.unwrap();
    assert_eq!(
        error.to_string(),
        "the peer ended the session: Cease/Administrative Shutdown: \"maintenance\""
    );
}

#[test]
fn a_restart_says_nothing_and_comes_back_with_its_forwarding_kept() {
    let mut a = config(65000, 65001);
    a.restart_time_s = Some(120);
    let mut wire = Wire::new(a.clone(), config(65001, 65000), false);
    start(&mut wire);
    wire.step(Side::A, Event::Stop(StopReason::Restart));
    wire.settle(Duration::ZERO);
    assert_eq!(wire.b.view().last_error.unwrap().1, SessionError::Closed);

    wire.a = lb_core::bgp::Session::new(a, [192, 0, 2, 1].into(), 3, true);
    start(&mut wire);
    let model = wire.established().unwrap();
    let Some(BgpMessage::Open(open)) = model.messages.first() else {
        panic!("an OPEN comes first")
    };
    let restart = open.capabilities().into_iter().find_map(|capability| match capability {
        BgpCapability::GracefulRestartCapability(restart) => Some(restart.clone()),
        _ => None,
    });
    let restart = restart.unwrap();
    assert!(restart.restart() && restart.time() == 120);
    assert!(
        restart.address_families().len() == 2
            && restart
                .address_families()
                .iter()
                .all(|family| family.forwarding_state())
    );
}

#[test]
fn bfd_ends_a_session_at_once_and_there_is_none_until_it_finds_the_peer_again() {
    let mut wire = Wire::new(config(65000, 65001), config(65001, 65000), false);
    start(&mut wire);
    wire.step(Side::A, Event::LivenessLost);
    assert_eq!(wire.a.view().last_error.unwrap().1, SessionError::Liveness);
    // The other side tries again and again meanwhile.
    wire.settle(A_WHILE);
    assert!(wire.established().is_none() && wire.a.view().is_held);
    wire.step(Side::A, Event::LivenessBack);
    wire.settle(A_WHILE);
    assert!(wire.established().is_some() && !wire.a.view().is_held);
}

#[test]
fn a_route_refresh_tells_everything_again() {
    let mut wire = Wire::new(config(65000, 65001), config(65001, 65000), false);
    announce(
        &mut wire,
        &["192.0.2.1/32", "2001:db8:1::1/128"],
        &Attributes::default(),
    );
    start(&mut wire);
    let before = wire.established().unwrap().updates;
    let refresh = [&[0xff; 16][..], &[0, 23, 5, 0, 1, 0, 1]].concat();
    wire.inject(0, &refresh);
    let model = wire.established().unwrap();
    assert_eq!(model.updates, before + 1);
    let marks = model
        .messages
        .iter()
        .filter(|message| matches!(message, BgpMessage::RouteRefresh(_)));
    assert_eq!(marks.count(), 2);
    assert_eq!(wire.a.view().counters.refreshes, 1);
}

#[test]
fn routes_of_the_peer_are_counted_and_ignored() {
    let mut wire = Wire::new(config(65000, 65001), config(65001, 65000), false);
    let routes = table(&["203.0.113.0/24", "2001:db8:ffff::/48"], &Attributes::default());
    let actions = wire.b.announce(&routes, wire.now);
    wire.carry(Side::B, actions);
    start(&mut wire);
    let counters = wire.a.view().counters;
    assert_eq!((counters.routes_ignored, counters.malformed), (2, 0));
}

#[test]
fn a_malformed_update_that_can_be_passed_over_keeps_the_session() {
    let mut wire = Wire::new(config(65000, 65001), config(65001, 65000), false);
    start(&mut wire);
    // An ORIGIN that does not exist.
    let update = [&[0xff; 16][..], &[0, 31, 2, 0, 0, 0, 4, 0x40, 1, 1, 9, 24, 203, 0, 113]].concat();
    wire.inject(0, &update);
    assert!(wire.established().is_some());
    assert_eq!(wire.a.view().counters.malformed, 1);
    // A network of 33 bits.
    let update = [&[0xff; 16][..], &[0, 29, 2, 0, 0, 0, 0, 33, 1, 2, 3, 4, 5]].concat();
    wire.inject(0, &update);
    assert!(wire.established().is_none());
    assert_eq!(wire.a.view().last_error.unwrap().1.kind(), "protocol");
}
