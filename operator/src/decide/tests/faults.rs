//! Operators that are killed, and two at once that lag behind.

use proptest::prelude::*;
use serde_json::json;

use super::{
    balanced, with,
    world::{Operator, Server, World, about_services, key},
};
use crate::{
    Subject,
    decide::{Next, next},
};

/// What people do, one thing after another; in between everything settles.
type Life = Vec<fn(&mut Server)>;

fn lives() -> Vec<(&'static str, Life)> {
    fn birth(server: &mut Server) {
        server.service("web", json!({}), balanced());
    }
    fn dual(server: &mut Server) {
        let both = with(json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "PreferDualStack"}));
        server.service("web", json!({}), both);
    }
    fn other_address(server: &mut Server) {
        server.service(
            "web",
            json!({"vipline.dev/load-balancer-ips": "203.0.113.15"}),
            balanced(),
        );
    }
    fn other_port(server: &mut Server) {
        server.service(
            "web",
            json!({}),
            with(json!({"ports": [{"port": 443, "protocol": "TCP"}]})),
        );
    }
    fn cluster_ip(server: &mut Server) {
        server.service(
            "web",
            json!({}),
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}),
        );
    }
    fn external(server: &mut Server) {
        server.pool(
            "external",
            json!({"addresses": ["198.51.100.0/28"], "externalIPs": true, "autoAssign": false}),
        );
        let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "externalIPs": ["198.51.100.5"],
                          "ports": [{"port": 80, "protocol": "TCP"}]});
        server.service("web", json!({}), spec);
    }
    fn other_class(server: &mut Server) {
        server.service(
            "web",
            json!({}),
            with(json!({"loadBalancerClass": "example.com/other"})),
        );
    }
    fn headless(server: &mut Server) {
        let spec =
            json!({"type": "ClusterIP", "clusterIP": "None", "externalIPs": ["198.51.100.5"], "ports": [{"port": 80}]});
        server.service("web", json!({}), spec);
    }
    fn refused(server: &mut Server) {
        server.service("web", json!({"vipline.dev/forwarding-mode": "DsrGue"}), balanced());
    }
    fn shared(server: &mut Server) {
        let key = json!({"vipline.dev/allow-shared-ip": "together"});
        server.service("web", key.clone(), balanced());
        server.service("udp", key, with(json!({"ports": [{"port": 80, "protocol": "UDP"}]})));
    }
    fn shrink(server: &mut Server) {
        server.pool("public", json!({"addresses": ["203.0.113.12-203.0.113.19"]}));
    }
    fn death(server: &mut Server) {
        server.delete_service("web");
    }
    fn forced(server: &mut Server) {
        server.force_delete_service("web");
        server.later(61);
    }
    vec![
        ("birth and death", vec![birth, death]),
        ("second family", vec![birth, dual, birth, death]),
        ("address", vec![birth, other_address, death]),
        ("port", vec![birth, other_port, death]),
        ("type", vec![birth, cluster_ip, birth]),
        ("external", vec![external, birth, external, death]),
        ("class", vec![birth, other_class, death]),
        ("class, external", vec![external, other_class, death]),
        ("headless", vec![birth, headless, birth, death]),
        ("refused", vec![birth, refused, birth]),
        ("shared", vec![shared, other_port, death]),
        ("pool", vec![birth, shrink, dual, death]),
        ("orphan", vec![dual, forced]),
        ("reborn", vec![birth, forced, birth]),
    ]
}

/// Lives it, killed after so many writes; how many there were, how many of them about Services, and what was left.
fn live(life: &Life, kill_after: Option<usize>) -> (usize, usize, serde_json::Value) {
    let mut world = World::new();
    world.kill_after = kill_after;
    world.server.lb_node("lb-1");
    world.settle();
    for step in life {
        step(&mut world.server);
        world.settle();
        // What one that was killed has not swept is swept a minute after the next one has seen it.
        world.server.later(61);
        world.settle();
    }
    let about_services = about_services(&world.actions).len();
    (world.actions.len(), about_services, world.server.picture())
}

#[test]
fn an_operator_that_is_killed_after_any_write_ends_as_if_it_had_lived() {
    for (name, life) in lives() {
        let (writes, needed, picture) = live(&life, None);
        assert!(writes > 5, "{name}");
        for kill_after in 1..=writes {
            let (_, again, end) = live(&life, Some(kill_after));
            assert_eq!(end, picture, "{name}, killed after write {kill_after}");
            assert_eq!(
                again, needed,
                "{name}, killed after write {kill_after}: not one write twice"
            );
        }
    }
}

/// What people and chance do.
#[derive(Clone, Debug)]
enum Event {
    Serve(u8, u8),
    Delete(u8),
    Leave(u8),
    Program,
    /// An operator hears of so much, and does the next write for a Service.
    Work {
        operator: usize,
        hears: usize,
        service: u8,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..3_u8, 0..5_u8).prop_map(|(service, shape)| Event::Serve(service, shape)),
        1 => (0..3_u8).prop_map(Event::Delete),
        1 => (0..3_u8).prop_map(Event::Leave),
        2 => Just(Event::Program),
        14 => (0..2_usize, 0..9_usize, 0..3_u8)
            .prop_map(|(operator, hears, service)| Event::Work { operator, hears, service }),
    ]
}

fn name(service: u8) -> String {
    format!("service-{service}")
}

fn act(server: &mut Server, event: &Event) {
    let is_going = |server: &Server, service: u8| {
        server
            .services
            .get(&key(&name(service)))
            .is_some_and(|service| service.metadata.deletion_timestamp.is_some())
    };
    match event {
        Event::Serve(service, _) | Event::Leave(service) if is_going(server, *service) => {}
        Event::Serve(service, shape) => {
            let shared = json!({"vipline.dev/allow-shared-ip": "together"});
            let port = u16::from(*service) + 80;
            let (annotations, port) = match shape {
                0 => (json!({}), 80),
                1 => (json!({}), 443),
                2 => (shared, port),
                3 => (json!({"vipline.dev/load-balancer-ips": "203.0.113.11"}), 80),
                _ => (
                    json!({"vipline.dev/allow-shared-ip": "together", "vipline.dev/load-balancer-ips": "203.0.113.11"}),
                    port,
                ),
            };
            server.service(
                &name(*service),
                annotations,
                with(json!({"ports": [{"port": port, "protocol": "TCP"}]})),
            );
        }
        Event::Delete(service) => server.delete_service(&name(*service)),
        Event::Leave(service) => {
            if server.services.contains_key(&key(&name(*service))) {
                let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
                server.service(&name(*service), json!({}), spec);
            }
        }
        Event::Program => {
            server.now += 1;
            server.program();
        }
        Event::Work { .. } => {}
    }
}

/// Lets two operators work, each seeing all (`lag` false) or what it has heard of by then; then one of them is left.
fn two_operators(events: &[Event], lag: bool) {
    let mut world = World::new();
    world
        .server
        .pool("public", json!({"addresses": ["203.0.113.10-203.0.113.12"]}));
    world.server.lb_node("lb-1");
    world.settle();
    let start = || Operator::start(&world.server, world.settings.clone());
    let mut operators = [start(), start()];
    for event in events {
        act(&mut world.server, event);
        let Event::Work {
            operator,
            hears,
            service,
        } = event
        else {
            continue;
        };
        let operator = &mut operators[*operator];
        operator.catch_up(&world.server, if lag { *hears } else { usize::MAX });
        let subject = Subject::Service(key(&name(*service)));
        if let Next::Do(action, _) = next(&operator.index, &subject, world.server.now())
            && world.server.write(&action).is_err()
        {
            assert!(lag, "who sees all is never refused: {action:?}");
            operator.catch_up(&world.server, usize::MAX);
        }
        // What clients are told of is looked at in the end: an address that was lost to a sharer and is free again is back in the
        // claim one write before it is back in the table.
        if !lag {
            world.server.check_claims();
        }
    }
    let [left, _] = operators;
    world.operator = left;
    world.repair();
    for service in world.server.services.values() {
        assert!(service.metadata.deletion_timestamp.is_none());
    }
    // And it would not have mattered which.
    let picture = world.server.picture();
    world.operator = Operator::start(&world.server, world.settings.clone());
    world.settle();
    assert_eq!(picture, world.server.picture());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_operators_that_take_turns_never_serve_an_address_twice(events in prop::collection::vec(event(), 1..150)) {
        two_operators(&events, false);
    }

    #[test]
    fn what_two_operators_that_lag_behind_have_done_one_of_them_puts_right(events in prop::collection::vec(event(), 1..150)) {
        two_operators(&events, true);
    }
}

#[test]
fn clients_are_not_told_of_an_address_that_went_to_a_sharer_while_its_service_was_on_its_way_to_another() {
    use Event::{Leave, Program, Serve};
    let work = |service| Event::Work {
        operator: 0,
        hears: 0,
        service,
    };
    // As a random history found it.
    let events = [
        Serve(0, 0),
        Program,
        Serve(0, 0),
        work(0),
        Serve(0, 4),
        work(0),
        Serve(0, 2),
        Serve(1, 2),
        work(1),
        work(1),
        Leave(2),
        Program,
        work(1),
        Program,
        work(1),
        Serve(0, 2),
        Serve(1, 0),
        Program,
        work(1),
        work(1),
        Serve(1, 3),
    ];
    two_operators(&events, false);
}
