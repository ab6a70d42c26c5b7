//! Any order of events, any bytes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use lb_core::bgp::{
    Attributes, ConnectionId, Event, LocalAddresses, Origin, Session, State, StopReason, TransportError,
};
use proptest::prelude::*;

use super::wire::{Side, Wire, config};

#[derive(Clone, Debug)]
enum Step {
    Start(bool),
    Stop(u8),
    Connect(bool),
    Deliver(usize, bool, usize),
    Cut(usize),
    Pass(u64),
    Announce(u8, u8),
    Inject(usize, Vec<u8>),
    Liveness,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any::<bool>().prop_map(Step::Start),
        1 => any::<u8>().prop_map(Step::Stop),
        4 => any::<bool>().prop_map(Step::Connect),
        12 => (0..4_usize, any::<bool>(), 1..200_usize).prop_map(|(which, to_a, most)| Step::Deliver(which, to_a, most)),
        1 => (0..4_usize).prop_map(Step::Cut),
        4 => (0..4000_u64).prop_map(Step::Pass),
        4 => (any::<u8>(), 0..3_u8).prop_map(|(routes, med)| Step::Announce(routes, med)),
        1 => ((0..4_usize), bytes()).prop_map(|(which, bytes)| Step::Inject(which, bytes)),
        1 => Just(Step::Liveness),
    ]
}

/// Bytes, half of them behind a right header.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..60);
    (any::<bool>(), 1..6_u8, body).prop_map(|(framed, kind, body)| {
        let length = u8::try_from(body.len() + 19).unwrap();
        if framed {
            [&[0xff; 16][..], &[0, length, kind], &body].concat()
        } else {
            body
        }
    })
}

/// One bit is one route; `med` makes them different.
fn table(routes: u8, med: u8) -> BTreeMap<IpNet, Arc<Attributes>> {
    let attributes = Arc::new(Attributes {
        med: (med > 0).then_some(u32::from(med)),
        ..Attributes::default()
    });
    let bits = (0..8_u8).filter(|bit| routes & 1 << bit != 0);
    let net = |bit: u8| {
        let text = if bit.is_multiple_of(2) {
            format!("192.0.2.{bit}/32")
        } else {
            format!("2001:db8::{bit}/128")
        };
        text.parse().unwrap()
    };
    bits.map(|bit| (net(bit), Arc::clone(&attributes))).collect()
}

fn perform(wire: &mut Wire, step: &Step) {
    let side = |is_a: bool| if is_a { Side::A } else { Side::B };
    match step {
        Step::Start(is_a) => wire.step(side(*is_a), Event::Start),
        Step::Stop(how) => {
            let reasons = [
                StopReason::Shutdown("x".into()),
                StopReason::Removed,
                StopReason::Changed,
                StopReason::Restart,
            ];
            let reason = reasons[usize::from(how >> 1) % 4].clone();
            wire.step(side(how & 1 == 0), Event::Stop(reason));
        }
        Step::Connect(works) => wire.connect(*works),
        Step::Deliver(which, to_a, most) => wire.deliver(*which, side(*to_a), *most),
        Step::Cut(which) => wire.cut(*which),
        Step::Pass(ms) => wire.pass(Duration::from_millis(*ms)),
        Step::Announce(routes, med) => {
            let actions = wire.a.announce(&table(*routes, *med), wire.now);
            wire.carry(Side::A, actions);
        }
        Step::Inject(which, bytes) => wire.inject(*which, bytes),
        Step::Liveness => {
            wire.step(Side::A, Event::LivenessLost);
            wire.step(Side::A, Event::LivenessBack);
        }
    }
}

proptest! {
    #[test]
    fn whatever_happened_the_peer_knows_in_the_end_what_is_desired(
        steps in prop::collection::vec(step(), 0..80),
        over_v6: bool,
        restarts: bool,
        last in (any::<u8>(), 0..3_u8),
    ) {
        let (mut a, mut b) = (config(65000, 65001), config(65001, 65000));
        for config in [&mut a, &mut b] {
            config.restart_time_s = restarts.then_some(60);
        }
        let mut wire = Wire::new(a, b, over_v6);
        for step in &steps {
            perform(&mut wire, step);
        }
        let desired = table(last.0, last.1);
        let actions = wire.a.announce(&desired, wire.now);
        wire.carry(Side::A, actions);
        wire.step(Side::A, Event::Start);
        wire.step(Side::B, Event::Start);
        wire.settle(Duration::from_secs(120));
        let model = wire.established();
        prop_assert!(model.is_some(), "{:?} {:?}", wire.a.view(), wire.b.view());
        let model = model.unwrap();
        prop_assert!(model.routes.keys().eq(desired.keys()));
        for (net, attributes) in &desired {
            prop_assert_eq!(model.routes[net].med, attributes.med);
        }
        prop_assert_eq!(wire.connections(), 1);
        prop_assert_eq!(wire.a.view().announced, desired.len());
    }

    #[test]
    fn no_event_in_any_order_panics(
        events in prop::collection::vec((0..8_u8, 0..3_u32, any::<bool>(), bytes(), 0..9000_u64), 0..60),
    ) {
        let mut session = Session::new(config(65000, 65001), [192, 0, 2, 1].into(), 5, false);
        let mut now = Duration::ZERO;
        for (what, number, ours, bytes, ms) in events {
            now += Duration::from_millis(ms);
            let connection = ConnectionId { origin: if ours { Origin::Ours } else { Origin::Theirs }, number };
            let remote = "10.0.0.2".parse().unwrap();
            let event = match what {
                0 => Event::Start,
                1 => Event::Stop(StopReason::Removed),
                2 => Event::TransportUp { connection, local: LocalAddresses::default(), remote },
                3 => Event::TransportFailed { connection, why: TransportError::NoAnswer },
                4 => Event::Closed { connection },
                5 => Event::Timer,
                6 if ours => Event::LivenessLost,
                6 => Event::LivenessBack,
                _ => Event::Bytes { connection, bytes: &bytes },
            };
            session.step(event, now);
            session.announce(&table(bytes.len() as u8, 0), now);
            let view = session.view();
            prop_assert!(view.state != State::Established || view.connection.is_some());
        }
    }
}
