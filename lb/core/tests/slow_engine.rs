//! The engine over the planner's own tables, while they change. Never looks into it: frames, events and counts only. What holds
//! whatever comes is in the fuzz targets (`slow_corpus.rs`).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{net::IpAddr, sync::Arc};

use etherparse::PacketBuilder;
use lb_core::{
    config::{Capacity, Protection},
    desired::{Backend, BackendId, BackendSet, Desired, Member, NextHop, NextHops, Protocol, Rate, Via, Vip, VipKey},
    health::Overlay,
    plan::Planner,
    slow::{
        Book, Bounds, Budgets, Common, Engine, EngineSettings, Event, Input, Kind, Outcome, Output, Packet, Tables, To,
    },
};
use xdp_prog::{
    abi::{Config, feature},
    host::Host,
    verdict::Verdict,
};

const SECOND_NS: u64 = 1_000_000_000;
const IFINDEX: u32 = 3;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const CLIENT: [u8; 4] = [192, 0, 2, 77];
const VIP: [u8; 4] = [203, 0, 113, 1];

struct World {
    config: Config,
    planner: Planner,
    desired: Desired,
    hops: NextHops,
    common: Common,
    engine: Engine,
}

impl World {
    /// A VIP whose only backend's next hop is not known.
    fn new(bounds: Bounds) -> Self {
        let config = Config {
            features: feature::ALL & !(feature::SLOW_PATH | feature::CAPTURE),
            match_mask_v4: 3,
            match_mask_v6: 3,
            ..Config::EMPTY
        };
        let backend = BackendId(Arc::from("node"));
        let set = BackendSet {
            members: vec![Member {
                backend: backend.clone(),
                weight: 1,
            }],
            table_slots: None,
        };
        let key = VipKey {
            address: VIP.into(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let mut desired = Desired::default();
        desired.vips.insert(key, Vip::new(Arc::new(set)));
        let address = IpAddr::from([192, 0, 2, 1]);
        desired.backends.insert(backend, Backend { address });
        let mut world = Self {
            config,
            planner: Planner::new(&Capacity::default(), &config, 250),
            desired,
            hops: NextHops::new(),
            common: Common::new(bounds, 7),
            engine: Engine::new(EngineSettings {
                ifindex: IFINDEX,
                mac: MAC,
                announces: false,
            }),
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        self.planner.plan(&self.desired, &self.hops).unwrap();
    }

    fn resolve(&mut self) {
        let via = Via {
            ifindex: IFINDEX,
            port: 0,
            destination_mac: [2, 0, 0, 0, 0, 0xbb],
            source_mac: MAC,
            source: [198, 51, 100, 1].into(),
            mtu: 1500,
            tags: None,
        };
        self.hops = self
            .desired
            .backends
            .keys()
            .map(|id| (id.clone(), NextHop::Via(via)))
            .collect();
        self.planner.plan_hops(&self.hops);
    }

    fn with(&mut self, work: impl FnOnce(&mut Engine, &mut Tables<'_>, &mut Output)) -> Output {
        let mut out = Output::default();
        let book = Book::new(
            &self.desired,
            &self.hops,
            &Overlay::default(),
            Protection::default(),
            &[],
        );
        let mut tables = Tables {
            book: &book,
            common: &self.common,
            decide: &mut Host::new(self.planner.image().view(&self.config), IFINDEX),
        };
        work(&mut self.engine, &mut tables, &mut out);
        out
    }

    fn step(&mut self, now_ns: u64, verdict: Verdict, frame: &[u8]) -> Output {
        let input = Input { verdict, frame };
        self.with(|engine, tables, out| engine.step(now_ns, input, tables, out))
    }

    fn turn(&mut self, now_ns: u64) -> Output {
        self.with(|engine, tables, out| engine.turn(now_ns, tables, out))
    }
}

fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 1, 1], MAC)
}

fn syn(source_port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = ethernet().ipv4(CLIENT, VIP, 64).tcp(source_port, 80, 1, 1000).syn();
    builder.write(&mut frame, &[]).unwrap();
    frame
}

fn ping() -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = ethernet().ipv4(CLIENT, VIP, 64).icmpv4_echo_request(1, 1);
    builder.write(&mut frame, b"abcdefgh").unwrap();
    frame
}

fn counted(out: &Output) -> Vec<(Kind, Outcome, u64)> {
    out.counts.iter().collect()
}

#[test]
fn frames_that_wait_go_out_in_order_when_the_next_hop_is_known() {
    let mut world = World::new(Bounds::default());
    let first = world.step(1, Verdict::SlowNextHop, &syn(1001));
    assert!(matches!(first.events[..], [Event::NextHopWanted(_)]));
    let second = world.step(2, Verdict::SlowNextHop, &syn(1002));
    assert_eq!((second.events.len(), world.engine.held()), (0, 2), "asked for once");

    let early = world.turn(3);
    assert_eq!(
        (early, world.engine.held()),
        (Output::default(), 2),
        "the table changed, and not for them"
    );

    world.resolve();
    let out = world.turn(4);
    assert_eq!(counted(&out), [(Kind::NextHop, Outcome::Forwarded, 2)]);
    let inner: Vec<&[u8]> = out.frames.iter().map(|sent| &sent.frame[14 + 20..]).collect();
    assert_eq!(inner, [&syn(1001)[14..], &syn(1002)[14..]]);
    assert_eq!(out.frames[0].to, To::Interface(IFINDEX));
    assert_eq!((world.engine.held(), world.engine.held_bytes()), (0, 0));
    assert_eq!(world.engine.deadline(&world.common), None);
}

#[test]
fn a_next_hop_is_asked_for_every_second_and_then_the_host_is_unreachable() {
    let mut world = World::new(Bounds {
        replies_per_source: 1,
        ..Bounds::default()
    });
    let frame = syn(1001);
    world.step(0, Verdict::SlowNextHop, &frame);
    for second in 1..=2 {
        assert_eq!(world.engine.deadline(&world.common), Some(second * SECOND_NS));
        let out = world.turn(second * SECOND_NS);
        assert!(matches!(out.events[..], [Event::NextHopWanted(_)]), "{second}");
        assert!(out.frames.is_empty() && counted(&out).is_empty());
    }
    assert_eq!(world.engine.deadline(&world.common), Some(3 * SECOND_NS));
    let out = world.turn(3 * SECOND_NS);
    assert_eq!(counted(&out), [(Kind::NextHop, Outcome::Unreachable, 1)]);
    let answer = Packet::parse(&out.frames[0].frame).unwrap();
    assert_eq!((answer.source, answer.destination), (VIP.into(), CLIENT.into()));
    assert_eq!(answer.payload()[..2], [3, 1], "ICMP host unreachable");
    assert_eq!(answer.payload()[8..], frame[14..]);
    assert_eq!(world.engine.deadline(&world.common), None);
}

#[test]
fn a_vip_that_is_gone_says_nothing() {
    let mut world = World::new(Bounds::default());
    world.step(1, Verdict::SlowNextHop, &syn(1001));
    world.desired.vips.clear();
    world.plan();
    let out = world.turn(2);
    assert_eq!(
        (counted(&out), out.frames.len()),
        (vec![(Kind::NextHop, Outcome::NotVip, 1)], 0)
    );
    let mut other_protocol = syn(1001);
    other_protocol[23] = 132;
    let late = [
        (Verdict::SlowUnservedPort, syn(1002)),
        (Verdict::SlowNoBackend, syn(1003)),
        (Verdict::SlowProtocol, other_protocol),
        (Verdict::SlowIcmp, ping()),
    ];
    for (verdict, frame) in late {
        let out = world.step(3, verdict, &frame);
        assert_eq!(out.frames, [], "{verdict:?}");
        assert_eq!(counted(&out).len(), 1, "{verdict:?}");
    }
}

#[test]
fn a_flood_of_one_kind_sheds_that_kind_only() {
    let rate = Rate {
        per_second: 1,
        burst: 3,
    };
    let bounds = Bounds {
        budgets: Budgets::new(|_| rate),
        replies_per_source: 100,
        ..Bounds::default()
    };
    let mut world = World::new(bounds);
    world.resolve();
    let mut floods = Output::default();
    for _ in 0..50 {
        floods.counts.merge(&world.step(1, Verdict::SlowIcmp, &ping()).counts);
    }
    assert_eq!(
        counted(&floods),
        [
            (Kind::Echo, Outcome::EchoReply, 3),
            (Kind::Echo, Outcome::OverBudget, 47)
        ]
    );
    let out = world.step(1, Verdict::SlowNextHop, &syn(1001));
    assert_eq!(counted(&out), [(Kind::NextHop, Outcome::Forwarded, 1)]);
}
