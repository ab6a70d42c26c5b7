//! An engine over real tables, and an owner for some VIP addresses.
//!
//! | address | owned | what is served |
//! |---|---|---|
//! | 203.0.113.10, 2001:db8::10 | yes | TCP 80 and UDP 53 by a backend that is reached |
//! | 203.0.113.20, 2001:db8::20 | yes | TCP 80 by nobody |
//! | 203.0.113.30, 2001:db8::30 | no | UDP 53 by a backend whose next hop is not known |

use std::collections::BTreeMap;

use lb_core::{
    config::{Capacity, Protection},
    desired::{Backend, BackendId, BackendSet, Desired, Member, NextHop, NextHops, Protocol, Via, Vip, VipKey},
    health::Overlay,
    match_table,
    plan::Planner,
    slow::{Book, Bounds, Common, Engine, EngineSettings, Input, Outcome, Output, Sent, Tables, To},
};
use xdp_prog::{
    abi::{Config, feature},
    host::Host,
    verdict::Verdict,
};

/// The interface that everything comes in by.
pub(crate) const IFINDEX: u32 = 3;
/// Its MAC address.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
/// Longer than anything waits.
const LATER_NS: u64 = 10_000_000_000;

/// Tables, a book and an engine.
pub(crate) struct Bed {
    config: Config,
    planner: Planner,
    book: Book,
    common: Common,
    engine: Engine,
    now_ns: u64,
}

impl Bed {
    /// With answers for everybody.
    pub(crate) fn new() -> Self {
        Self::within(1000)
    }

    /// With so many answers to one source, a second.
    pub(crate) fn within(replies_per_source: u32) -> Self {
        Self::with(replies_per_source, Protection::default())
    }

    /// With no source refused before a handler sees it.
    pub(crate) fn open() -> Self {
        let protection = Protection {
            drop_martians: false,
            drop_source_is_vip: false,
        };
        Self::with(1000, protection)
    }

    fn with(replies_per_source: u32, protection: Protection) -> Self {
        let capacity = Capacity {
            vips: 16,
            backends: 16,
            table_segments: 1,
            ranges: 16,
        };
        let (match_mask_v4, match_mask_v6) = match_table::masks_for(capacity.vips);
        let config = Config {
            features: feature::SLOW_PATH,
            match_mask_v4,
            match_mask_v6,
            ..Config::EMPTY
        };
        let mut planner = Planner::new(&capacity, &config, 250);
        let (desired, hops) = desired();
        planner.plan(&desired, &hops).unwrap();
        let owned = [
            "203.0.113.10/32",
            "203.0.113.20/32",
            "2001:db8::10/128",
            "2001:db8::20/128",
        ];
        let owned = owned.map(|network| network.parse().unwrap());
        let bounds = Bounds {
            replies_per_source,
            ..Bounds::default()
        };
        let settings = EngineSettings {
            ifindex: IFINDEX,
            mac: MAC,
            announces: false,
        };
        Self {
            config,
            planner,
            book: Book::new(&desired, &hops, &Overlay::default(), protection, &owned),
            common: Common::new(bounds, 1),
            engine: Engine::new(settings),
            now_ns: 0,
        }
    }

    /// What comes of a frame, at once and when all that waits has waited too long.
    pub(crate) fn step(&mut self, verdict: Verdict, frame: &[u8]) -> Output {
        let mut out = Output::default();
        let view = self.planner.image().view(&self.config);
        let mut tables = Tables {
            book: &self.book,
            common: &self.common,
            decide: &mut Host::new(view, IFINDEX),
        };
        self.engine
            .step(self.now_ns, Input { verdict, frame }, &mut tables, &mut out);
        self.now_ns += LATER_NS;
        self.engine.turn(self.now_ns, &mut tables, &mut out);
        out
    }

    /// What the program itself would say of a frame.
    pub(crate) fn verdict(&self, frame: &[u8]) -> Verdict {
        let view = self.planner.image().view(&self.config);
        Host::new(view, IFINDEX).balance(frame).verdict
    }

    /// The one outcome, and the frame that was sent back if one was.
    pub(crate) fn answer(&mut self, verdict: Verdict, frame: &[u8]) -> (Outcome, Option<Vec<u8>>) {
        let out = self.step(verdict, frame);
        let counted: Vec<_> = out.counts.iter().collect();
        let [(_, outcome, 1)] = counted[..] else {
            panic!("not one outcome: {counted:?}");
        };
        match &out.frames[..] {
            [] => (outcome, None),
            [Sent { to, frame }] => {
                assert_eq!(*to, To::Interface(IFINDEX), "back where it came from");
                (outcome, Some(frame.clone()))
            }
            more => panic!("{} answers to one packet", more.len()),
        }
    }
}

fn desired() -> (Desired, NextHops) {
    let reached = BackendId("reached".into());
    let unreached = BackendId("unreached".into());
    let set = |backend: Option<&BackendId>| BackendSet {
        members: backend
            .map(|backend| Member {
                backend: backend.clone(),
                weight: 1,
            })
            .into_iter()
            .collect(),
        table_slots: None,
    };
    let mut desired = Desired {
        backends: BTreeMap::from([
            (
                reached.clone(),
                Backend {
                    address: [10, 0, 0, 1].into(),
                },
            ),
            (
                unreached.clone(),
                Backend {
                    address: [10, 0, 0, 2].into(),
                },
            ),
        ]),
        ..Desired::default()
    };
    for network in ["203.0.113.", "2001:db8::"] {
        let mut add = |last: &str, protocol, port, backend| {
            let key = VipKey {
                address: format!("{network}{last}").parse().unwrap(),
                protocol,
                port,
            };
            desired.vips.insert(key, Vip::new(set(backend).into()));
        };
        add("10", Protocol::Tcp, 80, Some(&reached));
        add("10", Protocol::Udp, 53, Some(&reached));
        add("20", Protocol::Tcp, 80, None);
        add("30", Protocol::Udp, 53, Some(&unreached));
    }
    let via = Via {
        ifindex: IFINDEX,
        port: 0,
        destination_mac: [2; 6],
        source_mac: MAC,
        source: [10, 0, 0, 100].into(),
        mtu: 1500,
        tags: None,
    };
    let hops = NextHops::from([(reached, NextHop::Via(via)), (unreached, NextHop::Unresolved)]);
    (desired, hops)
}
