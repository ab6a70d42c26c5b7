//! A planner, the maps that it fills, and packets that go through the packet logic over them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use etherparse::PacketBuilder;
use lb_core::{
    config::{Capacity, TransitConfig},
    desired::{Backend, BackendId, BackendSet, Desired, Member, NextHop, NextHops, Protocol, Via, Vip, VipKey},
    plan::{Image, Moment, Planner},
    sweep::{Look, look},
};
use xdp_prog::{
    abi::{Activity, BackendIndex, Config, FlowState, FlowWord, feature, tick_shift},
    host::Host,
};

const HZ: u32 = 250;
pub(crate) const TCP_IDLE_S: u32 = 1000;
const CAPACITY: Capacity = Capacity {
    vips: 16,
    backends: 200,
    table_segments: 4,
    ranges: 4,
};

pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const FIN: u8 = 17;
pub(crate) const RST: u8 = 4;

pub(crate) struct Bed {
    transit: TransitConfig,
    config: Config,
    planner: Planner,
    image: Image,
    flows: Vec<AtomicU64>,
    flow_marks: Vec<AtomicU64>,
    open_flows: Vec<AtomicU64>,
    turns: Vec<AtomicU64>,
    /// Jiffies.
    now: u64,
    /// Tick of the last packet: slots are taken to be as active as that.
    last: u32,
    /// They are silent, whatever comes.
    pub(crate) slots_are_silent: bool,
    pub(crate) desired: Desired,
    pub(crate) unrecorded: [u64; 4],
}

pub(crate) fn key(address: &str, protocol: Protocol, port: u16) -> VipKey {
    VipKey {
        address: address.parse().unwrap(),
        protocol,
        port,
    }
}

pub(crate) fn web() -> VipKey {
    key("203.0.113.1", Protocol::Tcp, 80)
}

pub(crate) fn id(number: usize) -> BackendId {
    BackendId(Arc::from(format!("n{number:03}")))
}

/// Members `n000`, `n001`, … of these weights.
pub(crate) fn set(weights: &[u16]) -> Arc<BackendSet> {
    let member = |(number, weight): (usize, &u16)| Member {
        backend: id(number),
        weight: *weight,
    };
    Arc::new(BackendSet {
        members: weights.iter().enumerate().map(member).collect(),
        table_slots: Some(512),
    })
}

pub(crate) fn client(number: u32) -> SocketAddr {
    let [_, b, c, d] = number.to_be_bytes();
    SocketAddr::new(IpAddr::from([100 + b, 7, c, d]), 40_000)
}

impl Bed {
    pub(crate) fn new(flow_records: u32, vips: impl IntoIterator<Item = (VipKey, Vip)>) -> Self {
        let transit = TransitConfig {
            tcp_idle_timeout_s: TCP_IDLE_S,
            udp_idle_timeout_s: 100,
            flow_records,
            ..TransitConfig::default()
        };
        let config = Config {
            features: feature::TRANSIT | feature::SCHEDULERS | feature::AFFINITY,
            seed: [1, 2, 3, 4],
            match_mask_v4: 15,
            match_mask_v6: 15,
            flow_mask: transit.flow_mask(),
            flow_secret: 77,
            tick_shift: tick_shift(HZ).into(),
            ..Config::EMPTY
        };
        let planner = Planner::new(&CAPACITY, &config, HZ);
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        let mut bed = Self {
            transit,
            config,
            image: planner.image().clone(),
            planner,
            flows: words(2 * flow_records.next_power_of_two()),
            flow_marks: words(flow_records.next_power_of_two().div_ceil(4 * 64)),
            open_flows: words(CAPACITY.backend_lines()),
            turns: words(CAPACITY.vips),
            now: 1 << 32,
            last: 0,
            slots_are_silent: false,
            desired: Desired::default(),
            unrecorded: [0; 4],
        };
        bed.desired.vips = vips.into_iter().collect();
        bed.plan();
        bed
    }

    pub(crate) fn ticks(&self) -> u32 {
        (self.now >> tick_shift(HZ)) as u32
    }

    /// Makes the maps say what is desired; backends are those that sets name.
    pub(crate) fn plan(&mut self) {
        let members = self.desired.vips.values().flat_map(|vip| vip.set.members.iter());
        let named = members.map(|member| {
            let number: u32 = member.backend.0[1..].parse().unwrap();
            let address = IpAddr::from([10, 0, (number >> 8) as u8, number as u8]);
            (member.backend.clone(), Backend { address })
        });
        self.desired.backends = named.collect();
        let via = Via {
            ifindex: 1,
            port: 0,
            destination_mac: [2, 0, 0, 0, 0, 1],
            source_mac: [2, 0, 0, 0, 0, 2],
            source: IpAddr::from([10, 9, 0, 1]),
            mtu: 1500,
            tags: None,
        };
        let known = self.planner.backends().map(|backend| backend.id.clone());
        let hops: NextHops = known
            .chain(self.desired.backends.keys().cloned())
            .map(|id| (id, NextHop::Via(via)))
            .collect();
        let (named, last) = (self.named(), if self.slots_are_silent { 0 } else { self.last });
        let moment = Moment {
            now: self.ticks(),
            timeouts: self.transit.timeouts(HZ),
            lives: self.transit.lives(HZ),
            activity: &|_, _| Activity::new(last, last),
            named: &|backend| named.contains_key(&backend.0),
            ..Moment::STILL
        };
        let plan = self.planner.plan_at(&self.desired, &hops, &moment).unwrap();
        for write in &plan.writes {
            assert!(self.image.apply(write));
        }
        assert!(&self.image == self.planner.image());
    }

    pub(crate) fn planner(&self) -> &Planner {
        &self.planner
    }

    pub(crate) fn pass(&mut self, seconds: u32) {
        self.now += u64::from(seconds * HZ);
    }

    /// Flow records that live, by backend.
    fn named(&self) -> BTreeMap<u16, u32> {
        let mut named = BTreeMap::new();
        for word in self.flows.iter().step_by(2) {
            let word = FlowWord(word.load(Ordering::Relaxed));
            if let Look::Flow(backend) = look(word, self.ticks(), self.transit.lives(HZ)) {
                *named.entry(backend).or_default() += 1;
            }
        }
        named
    }

    /// As the daemon does.
    pub(crate) fn sweep(&self) {
        for word in self.flows.iter().step_by(2) {
            let record = FlowWord(word.load(Ordering::Relaxed));
            if let Look::Over(swept) = look(record, self.ticks(), self.transit.lives(HZ)) {
                word.store(swept.0, Ordering::Relaxed);
                if record.counts() != 0 {
                    self.open_flows[usize::from(record.backend())].fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Open flows by backend, as they were counted; and as the records have them.
    pub(crate) fn open_flows(&self) -> (Vec<u64>, Vec<u64>) {
        let counted = self
            .open_flows
            .iter()
            .map(|open| open.load(Ordering::Relaxed))
            .collect();
        let mut recorded = vec![0; self.open_flows.len()];
        for word in self.flows.iter().step_by(2) {
            let word = FlowWord(word.load(Ordering::Relaxed));
            recorded[usize::from(word.backend())] += word.counts();
        }
        (counted, recorded)
    }

    pub(crate) fn open_at(&self, number: usize) -> u64 {
        let index = self.planner.backend_index(&id(number)).unwrap();
        self.open_flows[usize::from(index.0)].load(Ordering::Relaxed)
    }

    pub(crate) fn clients_remembered(&self) -> usize {
        let words = self
            .flows
            .iter()
            .step_by(2)
            .map(|word| FlowWord(word.load(Ordering::Relaxed)));
        words.filter(|word| word.state() == FlowState::Client as u64).count()
    }

    /// Where a packet goes: the number in its backend's name.
    pub(crate) fn send(&mut self, from: SocketAddr, to: VipKey, flags: u8, sequence: u32) -> Option<usize> {
        self.last = self.ticks();
        let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.address) else {
            panic!("IPv4 is enough here");
        };
        let ip = ip.ipv4(source.octets(), destination.octets(), 64);
        let mut frame = Vec::new();
        match to.protocol {
            Protocol::Tcp => {
                let tcp = ip.tcp(from.port(), to.port, sequence, 1000);
                tcp.write(&mut frame, &[]).unwrap();
                frame[14 + 20 + 13] = flags;
            }
            Protocol::Udp => ip.udp(from.port(), to.port).write(&mut frame, &[]).unwrap(),
        }
        let mut view = self.image.view(&self.config);
        (view.flows, view.flow_marks) = (&self.flows, &self.flow_marks);
        (view.open_flows, view.turns) = (&self.open_flows, &self.turns);
        let mut host = Host::new(view, 1);
        host.record_flows(true);
        host.set_jiffies(self.now);
        let choice = host.balance(&frame).choice?;
        for (sum, more) in self.unrecorded.iter_mut().zip(host.unrecorded()) {
            *sum += more;
        }
        if choice.backend == BackendIndex::NONE {
            return None;
        }
        let name = self
            .planner
            .backend_at(choice.backend)
            .expect("a backend that is known");
        Some(name.0[1..].parse().unwrap())
    }

    /// A connection that begins and is answered.
    pub(crate) fn open(&mut self, from: SocketAddr, to: VipKey) -> usize {
        let backend = self.send(from, to, SYN, 100).expect("somebody takes it");
        assert_eq!(self.send(from, to, ACK, 101), Some(backend), "{from}");
        backend
    }
}
