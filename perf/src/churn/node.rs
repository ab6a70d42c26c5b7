//! One LB node: the planner and the packet logic as they are, over this process's memory; before them, where the design is to
//! remember every flow, a table for each CPU.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use etherparse::PacketBuilder;
use lb_core::{
    config::{Capacity, TransitConfig},
    desired::{BackendId, Desired, NextHops, Protocol, VipKey},
    plan::{Image, MapId, Moment, Planner, Table, Write},
};
use xdp_prog::{
    abi::{Activity, BackendIndex, Config, FlowWord, feature, tick_shift},
    flows::Unrecorded,
    host::Host,
};

/// Jiffies a second.
pub(super) const HZ: u32 = 250;
/// Bytes of an entry of a table that tracks every flow: Katran's, with what the kernel's LRU map adds.
pub(super) const LRU_BYTES: usize = 120;
/// Bytes of a flow record.
const RECORD_BYTES: usize = 16;
/// Bytes that a slot takes more while it is in transit.
const WIDE_BYTES: usize = 14;

/// A flow as packets show it.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) vip: VipKey,
    pub(super) source: SocketAddr,
    pub(super) sequence: u32,
    /// Where it lives.
    pub(super) backend: Option<BackendId>,
}

/// What a node remembers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    /// Flows.
    pub(super) flows: usize,
    pub(super) bytes: usize,
}

/// An LB node.
pub(super) struct LbNode {
    config: Config,
    transit: TransitConfig,
    planner: Planner,
    image: Image,
    records: Arc<[AtomicU64]>,
    marks: Arc<[AtomicU64]>,
    /// What packets noted of slots: the host's memory has no room for it.
    noted: BTreeMap<(Table, usize), Activity>,
    /// A datagram in a learning window found no room among the records since the plan before.
    window_too_short: bool,
    /// Of every CPU, where every flow is remembered.
    cpus: Vec<Lru>,
}

impl LbNode {
    /// An empty node that remembers flows of slots in transit (`transit.enabled`), every flow (`tracked`: entries of all CPUs), or
    /// none.
    pub(super) fn new(transit: TransitConfig, tracked: Option<usize>, cpus: usize) -> Self {
        let config = Config {
            features: if transit.enabled { feature::TRANSIT } else { 0 },
            seed: [1, 2, 3, 4],
            match_mask_v4: 15,
            match_mask_v6: 15,
            flow_mask: transit.flow_mask(),
            flow_secret: 77,
            tick_shift: tick_shift(HZ).into(),
            ..Config::EMPTY
        };
        let capacity = Capacity {
            vips: 8,
            backends: 4_096,
            table_segments: 64,
            ranges: 1,
        };
        let planner = Planner::new(&capacity, &config, HZ);
        let words = if transit.enabled {
            (config.flow_mask as usize + 1) * 8
        } else {
            8
        };
        Self {
            config,
            transit,
            image: planner.image().clone(),
            planner,
            records: (0..words).map(|_| AtomicU64::new(0)).collect(),
            marks: (0..words.div_ceil(8 * 64)).map(|_| AtomicU64::new(0)).collect(),
            noted: BTreeMap::new(),
            window_too_short: false,
            cpus: match tracked {
                Some(entries) => (0..cpus).map(|_| Lru::new(entries / cpus)).collect(),
                None => Vec::new(),
            },
        }
    }

    /// Does what is desired.
    pub(super) fn reach(
        &mut self,
        desired: &Desired,
        hops: &NextHops,
        dead: &BTreeSet<BackendId>,
        now: u64,
    ) -> Result<()> {
        let noted = std::mem::take(&mut self.noted);
        let moment = Moment {
            now: ticks(now),
            unix_s: now / u64::from(HZ),
            timeouts: self.transit.timeouts(HZ),
            lives: self.transit.lives(HZ),
            activity: &|table, slot| noted.get(&(table, slot)).copied().unwrap_or_default(),
            dead,
            named: &|_| false,
            overlay: None,
            window_too_short: std::mem::take(&mut self.window_too_short),
        };
        let plan = self.planner.plan_at(desired, hops, &moment)?;
        self.noted = noted;
        let wide: BTreeSet<Table> = self.wide().collect();
        for write in &plan.writes {
            self.image.apply(write);
            self.note_fill(&wide, write);
        }
        self.noted.retain(|(table, _), _| wide.contains(table));
        Ok(())
    }

    /// Slots of a VIP's table.
    pub(super) fn slots(&self, vip: &VipKey) -> Option<usize> {
        Some(self.planner.vip(vip)?.table.slots)
    }

    fn wide(&self) -> impl Iterator<Item = Table> {
        self.planner.vips().map(|vip| vip.table).filter(|table| table.is_wide)
    }

    /// Activity with which a wide table begins.
    fn note_fill(&mut self, wide: &BTreeSet<Table>, write: &Write) {
        let Write::Fill {
            map: MapId::LookupTables,
            index,
            word,
            values,
        } = write
        else {
            return;
        };
        let filled = |table: &&Table| table.word(0) == (*index, *word) && values.len() == 2 * table.slots;
        if let Some(table) = wide.iter().find(filled) {
            let activities = values.iter().skip(1).step_by(2).enumerate();
            self.noted
                .extend(activities.map(|(slot, value)| ((*table, slot), Activity(*value))));
        }
    }

    /// Where a packet of this flow goes.
    pub(super) fn send(&mut self, flow: &Flow, is_first: bool, now: u64, cpu: usize) -> Option<BackendId> {
        let key = (flow.source, flow.vip);
        let cpu = cpu % self.cpus.len().max(1);
        if !is_first && let Some(known) = self.cpus.get_mut(cpu).and_then(|lru| lru.get(&key)) {
            return Some(known);
        }
        let backend = self.choose(flow, is_first, now)?;
        if let Some(lru) = self.cpus.get_mut(cpu) {
            lru.put(key, backend.clone());
        }
        Some(backend)
    }

    fn choose(&mut self, flow: &Flow, is_first: bool, now: u64) -> Option<BackendId> {
        let frame = frame(flow, is_first).ok()?;
        let mut view = self.image.view(&self.config);
        (view.flows, view.flow_marks) = (&self.records, &self.marks);
        let mut host = Host::new(view, 1);
        host.record_flows(self.transit.enabled);
        host.set_jiffies(now);
        let choice = host.balance(&frame).choice;
        self.window_too_short |= host.unrecorded()[Unrecorded::Datagram as usize] > 0;
        let choice = choice?;
        if let Some(vip) = self.planner.vip(&flow.vip).filter(|vip| vip.table.is_wide) {
            self.note(vip.table, choice.slot as usize, choice.backend, flow.vip.protocol, now);
        }
        self.planner.backend_at(choice.backend).cloned()
    }

    /// What the program notes in a wide table.
    fn note(&mut self, table: Table, slot: usize, backend: BackendIndex, protocol: Protocol, now: u64) {
        let (segment, word) = table.word(slot);
        if backend.0 == self.image.load(MapId::LookupTables, segment, word) as u16 {
            return;
        }
        let noted = self.noted.entry((table, slot)).or_default();
        *noted = match protocol {
            Protocol::Tcp => Activity::new(ticks(now), noted.udp()),
            Protocol::Udp => Activity::new(noted.tcp(), ticks(now)),
        };
    }

    /// What it remembers now.
    pub(super) fn state(&self, now: u64) -> State {
        if !self.cpus.is_empty() {
            let flows = self.cpus.iter().map(Lru::len).sum();
            return State {
                flows,
                bytes: flows * LRU_BYTES,
            };
        }
        let lives = self.transit.lives(HZ);
        let words = self.records.iter().step_by(2).map(|word| word.load(Ordering::Relaxed));
        let flows = words
            .filter(|word| *word != 0 && !FlowWord(*word).is_expired(ticks(now), lives))
            .count();
        let slots: usize = self
            .wide()
            .collect::<BTreeSet<_>>()
            .iter()
            .map(|table| table.slots)
            .sum();
        State {
            flows,
            bytes: flows * RECORD_BYTES + slots * WIDE_BYTES,
        }
    }
}

fn ticks(jiffies: u64) -> u32 {
    (jiffies >> tick_shift(HZ)) as u32
}

fn frame(flow: &Flow, is_first: bool) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (SocketAddr::V4(source), std::net::IpAddr::V4(vip)) = (flow.source, flow.vip.address) else {
        anyhow::bail!("flows are IPv4")
    };
    let ip = ethernet.ipv4(source.ip().octets(), vip.octets(), 64);
    let mut frame = Vec::with_capacity(64);
    match flow.vip.protocol {
        Protocol::Tcp => {
            let tcp = ip.tcp(source.port(), flow.vip.port, flow.sequence, 1000);
            let tcp = if is_first { tcp.syn() } else { tcp.ack(1) };
            tcp.write(&mut frame, &[])?;
        }
        Protocol::Udp => ip.udp(source.port(), flow.vip.port).write(&mut frame, &[])?,
    }
    Ok(frame)
}

type FlowKey = (SocketAddr, VipKey);

/// Least recently used goes first.
struct Lru {
    capacity: usize,
    turn: u64,
    flows: BTreeMap<FlowKey, (u64, BackendId)>,
    by_turn: BTreeMap<u64, FlowKey>,
}

impl Lru {
    fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            turn: 0,
            flows: BTreeMap::new(),
            by_turn: BTreeMap::new(),
        }
    }

    fn len(&self) -> usize {
        self.flows.len()
    }

    fn get(&mut self, key: &FlowKey) -> Option<BackendId> {
        let (turn, backend) = self.flows.get_mut(key)?;
        self.by_turn.remove(turn);
        self.turn += 1;
        *turn = self.turn;
        self.by_turn.insert(self.turn, *key);
        Some(backend.clone())
    }

    fn put(&mut self, key: FlowKey, backend: BackendId) {
        self.turn += 1;
        if let Some((turn, _)) = self.flows.insert(key, (self.turn, backend)) {
            self.by_turn.remove(&turn);
        }
        self.by_turn.insert(self.turn, key);
        if self.flows.len() > self.capacity
            && let Some((_, oldest)) = self.by_turn.pop_first()
        {
            self.flows.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_flow_is_forgotten_first() {
        let vip = VipKey {
            address: [203, 0, 113, 1].into(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let key = |port| (SocketAddr::from(([198, 51, 100, 1], port)), vip);
        let name = |name: &str| BackendId(name.into());
        let mut lru = Lru::new(2);
        lru.put(key(1), name("a"));
        lru.put(key(2), name("b"));
        assert_eq!(lru.get(&key(1)), Some(name("a")));
        lru.put(key(3), name("c"));
        assert_eq!(lru.get(&key(2)), None);
        assert_eq!(lru.get(&key(1)), Some(name("a")));
        assert_eq!(lru.get(&key(3)), Some(name("c")));
        assert_eq!(lru.len(), 2);
    }
}
