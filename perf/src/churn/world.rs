//! Clients, routers and time around LB nodes.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use lb_core::{
    config::TransitConfig,
    desired::{Backend, BackendId, BackendSet, Base, Desired, Member, NextHop, NextHops, Protocol, Via, Vip, VipKey},
};

use super::{
    node::{Flow, HZ, LbNode},
    scenario::Event,
};

/// CPUs of an LB node that receive packets.
const CPUS: usize = 4;
/// Seconds of a round.
const ROUND_S: u32 = 10;
/// One flow in so many ends in a round, and another begins.
const TURNOVER: usize = 50;
/// Weight of a backend.
const WEIGHT: u16 = 100;

/// How flows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Design {
    /// As Vipline does.
    Vipline,
    /// Not at all: hash, table, backend.
    Stateless,
    /// By a table of every flow on each CPU, least recently used goes first.
    Lru,
}

impl Design {
    pub(super) const ALL: [Self; 3] = [Self::Vipline, Self::Stateless, Self::Lru];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Vipline => "Vipline",
            Self::Stateless => "stateless Maglev",
            Self::Lru => "LRU of all flows",
        }
    }
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) flows: usize,
    pub(super) backends: u32,
    pub(super) lbs: u32,
    pub(super) is_short_of_records: bool,
}

/// What came of a history.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// Flows that there were.
    pub(super) flows: usize,
    /// Of them, sent elsewhere than where they live, and their backend lived.
    pub(super) broken: usize,
    /// Of them, those whose backend died.
    pub(super) died: usize,
    /// Most flows, and bytes, that all nodes together remembered.
    pub(super) remembered: usize,
    pub(super) bytes: usize,
}

/// `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }
}

fn mixed(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// Everything there is in a history.
pub(super) struct World {
    design: Design,
    size: Size,
    dice: Dice,
    members: Vec<Member>,
    backends: u32,
    dead: BTreeSet<BackendId>,
    nodes: Vec<LbNode>,
    flows: Vec<Flow>,
    clients: u32,
    /// Turns the dealing of receive queues.
    queues: u64,
    flood: u32,
    /// Members that an operator has seen, if there is one.
    seen: Option<Vec<Member>>,
    /// What it publishes of those before the first change.
    base: Option<Arc<Base>>,
    /// In jiffies.
    now: u64,
    outcome: Outcome,
}

impl World {
    /// Nodes and backends, and all flows open.
    pub(super) fn new(design: Design, size: Size, seed: u64) -> Result<Self> {
        let mut world = Self {
            design,
            size,
            dice: Dice(seed),
            members: Vec::new(),
            backends: 0,
            dead: BTreeSet::new(),
            nodes: Vec::new(),
            flows: Vec::new(),
            clients: 0,
            queues: 0,
            flood: 0,
            seen: None,
            base: None,
            now: 1 << 32,
            outcome: Outcome::default(),
        };
        for _ in 0..size.backends {
            let member = world.fresh();
            world.members.push(member);
        }
        world.nodes = (0..size.lbs).map(|_| world.node()).collect();
        world.reach()?;
        for _ in 0..size.flows {
            world.open();
        }
        Ok(world)
    }

    /// What has come of it.
    pub(super) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Something happens.
    pub(super) fn meet(&mut self, event: &Event) -> Result<()> {
        match *event {
            Event::Rounds(count) => {
                for _ in 0..count {
                    self.round()?;
                }
                return Ok(());
            }
            Event::Queues => self.queues += 1,
            Event::Publish => self.seen = Some(self.members.clone()),
            Event::Flood(syns) => self.flood = syns,
            Event::Add(count) => self.add(count),
            Event::Remove(count) => drop(self.take(count)),
            Event::Replace(count) => {
                drop(self.take(count));
                self.add(count);
            }
            Event::Drain(count) => {
                let drained = self.take(count);
                self.members
                    .extend(drained.into_iter().map(|member| Member { weight: 0, ..member }));
            }
            Event::Weigh => {
                for member in self.members.iter_mut().step_by(3) {
                    member.weight = (member.weight / 2).max(1);
                }
            }
            Event::Die(count) => {
                // Those that are being drained die first: it is what they are drained for.
                let mut dead: Vec<Member> = self.members.extract_if(.., |member| member.weight == 0).collect();
                if dead.is_empty() {
                    dead = self.take(count);
                }
                self.dead.extend(dead.into_iter().map(|member| member.backend));
            }
            Event::NodeJoins => {
                let node = self.node();
                self.nodes.push(node);
            }
            Event::NodeLeaves => drop(self.nodes.pop()),
            Event::NodeReboots => {
                let node = self.node();
                *self.nodes.first_mut().context("there is a node")? = node;
            }
        }
        self.members.sort();
        self.publish();
        self.reach()
    }

    /// No transit ends within a history: what was before the first change is the base until its end.
    fn publish(&mut self) {
        let first = self.nodes.first().and_then(|node| node.slots(&vip(Protocol::Tcp)));
        let Some(seen) = self.seen.take_if(|seen| *seen != self.members) else {
            return;
        };
        let set = BackendSet {
            members: seen,
            table_slots: first,
        };
        self.base = Some(Arc::new(Base {
            set: Arc::new(set),
            of: "workers".into(),
            since_s: self.now / u64::from(HZ),
        }));
    }

    fn node(&self) -> LbNode {
        let share = self.size.flows.div_ceil(self.size.lbs as usize);
        // Room for twice what a node meets; or for half, and where only flows of slots in transit are recorded for much less.
        let room = match (self.size.is_short_of_records, self.design) {
            (false, _) => share * 2,
            (true, Design::Vipline) => share / 40,
            (true, Design::Stateless | Design::Lru) => share / 2,
        };
        let transit = TransitConfig {
            enabled: self.design == Design::Vipline,
            flow_records: (room as u32).max(16),
            ..TransitConfig::default()
        };
        LbNode::new(transit, (self.design == Design::Lru).then_some(room), CPUS)
    }

    fn fresh(&mut self) -> Member {
        self.backends += 1;
        Member {
            backend: BackendId(format!("worker-{:05}", self.backends).into()),
            weight: WEIGHT,
        }
    }

    fn add(&mut self, count: u32) {
        for _ in 0..count {
            let member = self.fresh();
            self.members.push(member);
        }
    }

    /// Takes so many out, of those that take flows if there are any.
    fn take(&mut self, count: u32) -> Vec<Member> {
        let mut taken = Vec::new();
        for _ in 0..count {
            let drained = self.members.iter().position(|member| member.weight == 0);
            let at = drained.unwrap_or_else(|| self.dice.below(self.members.len()));
            taken.push(self.members.remove(at));
        }
        taken
    }

    /// Every node does what is desired now.
    fn reach(&mut self) -> Result<()> {
        let address = |id: &BackendId| {
            let number: u32 = id.0.trim_start_matches("worker-").parse().unwrap_or_default();
            Backend {
                address: [10, (number >> 16) as u8, (number >> 8) as u8, number as u8].into(),
            }
        };
        let set = Arc::new(BackendSet {
            members: self.members.clone(),
            table_slots: None,
        });
        let vip = Vip {
            base: self.base.clone(),
            ..Vip::new(Arc::clone(&set))
        };
        let before = self.base.iter().flat_map(|base| &base.set.members);
        let departed = before.filter(|member| !set.members.iter().any(|now| now.backend == member.backend));
        let desired = Desired {
            departed: departed
                .map(|member| (member.backend.clone(), address(&member.backend)))
                .collect(),
            vips: vips().map(|key| (key, vip.clone())).collect(),
            backends: set
                .members
                .iter()
                .map(|member| (member.backend.clone(), address(&member.backend)))
                .collect(),
            ..Desired::default()
        };
        let hops: NextHops = (1..=self.backends)
            .map(|number| (BackendId(format!("worker-{number:05}").into()), NextHop::Via(via())))
            .collect();
        for node in &mut self.nodes {
            node.reach(&desired, &hops, &self.dead, self.now)?;
        }
        Ok(())
    }

    /// Ten seconds: every flow sends a packet.
    fn round(&mut self) -> Result<()> {
        self.now += u64::from(ROUND_S * HZ);
        for at in 0..self.flows.len() {
            if self.dice.below(TURNOVER) == 0 {
                self.flows[at] = self.opened();
                continue;
            }
            for _ in 0..self.flood {
                self.spoof();
            }
            self.packet(at);
        }
        // As the daemon does every two seconds.
        self.reach()?;
        let states = self.nodes.iter().map(|node| node.state(self.now));
        let (flows, bytes) = states.fold((0, 0), |(flows, bytes), state| {
            (flows + state.flows, bytes + state.bytes)
        });
        self.outcome.remembered = self.outcome.remembered.max(flows);
        self.outcome.bytes = self.outcome.bytes.max(bytes);
        Ok(())
    }

    fn packet(&mut self, at: usize) {
        let mut flow = self.flows[at].clone();
        flow.sequence = flow.sequence.wrapping_add(100);
        let went = self.send(&flow, false);
        if flow.backend.as_ref().is_some_and(|backend| self.dead.contains(backend)) {
            self.outcome.died += 1;
            self.flows[at] = self.opened();
        } else if went == flow.backend {
            self.flows[at] = flow;
        } else {
            self.outcome.broken += 1;
            self.flows[at] = self.opened();
        }
    }

    fn open(&mut self) {
        let flow = self.opened();
        self.flows.push(flow);
    }

    /// A flow that has just begun: the client has answered its backend.
    fn opened(&mut self) -> Flow {
        self.outcome.flows += 1;
        let mut flow = self.unknown();
        flow.backend = self.send(&flow, true);
        flow.sequence = flow.sequence.wrapping_add(1);
        if flow.vip.protocol == Protocol::Tcp {
            let went = self.send(&flow, false);
            if went != flow.backend {
                self.outcome.broken += 1;
                flow.backend = went;
            }
        }
        flow
    }

    /// A SYN from nobody.
    fn spoof(&mut self) {
        let mut flow = self.unknown();
        flow.vip.protocol = Protocol::Tcp;
        self.send(&flow, true);
    }

    fn unknown(&mut self) -> Flow {
        self.clients += 1;
        let [_, a, b, c] = self.clients.to_be_bytes();
        let [tcp, udp] = [Protocol::Tcp, Protocol::Udp].map(vip);
        Flow {
            vip: if self.clients.is_multiple_of(4) { udp } else { tcp },
            source: SocketAddr::from(([100, a, b, c], 1024 + (self.dice.roll() as u16 >> 1))),
            sequence: self.dice.roll() as u32,
            backend: None,
        }
    }

    fn send(&mut self, flow: &Flow, is_first: bool) -> Option<BackendId> {
        let SocketAddr::V4(source) = flow.source else {
            return None;
        };
        let hash = mixed(u64::from(u32::from(*source.ip())) << 16 | u64::from(source.port()));
        let count = self.nodes.len();
        let node = self.nodes.get_mut(hash as usize % count.max(1))?;
        let cpu = mixed(hash ^ self.queues) as usize;
        node.send(flow, is_first, self.now, cpu)
    }
}

fn vip(protocol: Protocol) -> VipKey {
    VipKey {
        address: [203, 0, 113, 1].into(),
        protocol,
        port: 443,
    }
}

fn vips() -> impl Iterator<Item = VipKey> {
    [Protocol::Tcp, Protocol::Udp].into_iter().map(vip)
}

fn via() -> Via {
    Via {
        ifindex: 1,
        port: 0,
        destination_mac: [2, 0, 0, 0, 0, 3],
        source_mac: [2, 0, 0, 0, 0, 1],
        source: [192, 0, 2, 1].into(),
        mtu: 1500,
        tags: None,
    }
}
