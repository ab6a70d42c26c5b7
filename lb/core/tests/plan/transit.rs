//! Flows that live while plans are carried out: a packet pump runs at every prefix of every plan, through the packet logic itself,
//! and no flow whose backend lives is ever sent elsewhere.

mod deaths;
mod dice;
mod histories;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use etherparse::PacketBuilder;
use lb_core::{
    config::{Capacity, TransitConfig},
    desired::{Backend, BackendId, BackendSet, Desired, Member, Protocol, Vip, VipKey},
    health::{Health, Overlay},
    plan::{Image, MapId, Moment, Planner, Table, Write},
    schedule::Scheduler,
    sweep::{Look, look},
    transit::forgotten,
};
use xdp_prog::{
    abi::{Activity, BackendIndex, Config, FlowWord, SlotWord, feature, tick_shift},
    host::Host,
};

pub(crate) use self::dice::Dice;
use crate::world::{id, resolved};

#[path = "published.rs"]
mod published;
#[path = "waits.rs"]
mod waits;

const HZ: u32 = 250;
const TRANSIT: TransitConfig = TransitConfig {
    enabled: true,
    tcp_idle_timeout_s: 100,
    udp_idle_timeout_s: 20,
    max_s: 86_400,
    flow_records: 4096,
};
const CAPACITY: Capacity = Capacity {
    vips: 24,
    backends: 60,
    table_segments: 2,
    ranges: 4,
};
/// Those that connections go through.
const SCHEDULERS: [Scheduler; 5] = [
    Scheduler::Maglev,
    Scheduler::RoundRobin,
    Scheduler::WeightedLeastConnections,
    Scheduler::NeverQueue,
    Scheduler::DestinationHash,
];
const FLOWS: usize = 80;

pub(crate) struct Flow {
    pub(crate) vip: VipKey,
    source: SocketAddr,
    sequence: u32,
    pub(crate) backend: u16,
}

/// What becomes of the daemon in the middle of plans.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restarts {
    Never,
    /// The next one goes on from the maps.
    Adopting,
    /// The twin: it takes where new flows go for all that a slot says.
    Forgetting,
}

pub(crate) struct World {
    config: Config,
    restarts: Restarts,
    restarted: usize,
    pub(crate) planner: Planner,
    /// What packets see: behind the planner while a plan is carried out.
    image: Image,
    flows: Arc<[AtomicU64]>,
    flow_marks: Arc<[AtomicU64]>,
    open_flows: Vec<AtomicU64>,
    turns: Vec<AtomicU64>,
    noted: BTreeMap<(Table, usize), Activity>,
    /// In jiffies.
    now: u64,
    pub(crate) desired: Desired,
    /// Of all of them.
    pub(crate) overlay: Overlay,
    pub(crate) living: Vec<Flow>,
    next_backend: u32,
    next_source: u32,
    pub(crate) broken: usize,
    pub(crate) packets: usize,
    elsewhere: usize,
    /// UDP flows that left an unhealthy backend.
    pub(crate) moved: usize,
    /// UDP flows that stayed at one, though no plan is being carried out.
    pub(crate) stayed: usize,
    /// Those who have departed die now and then: their deadline has come, or they are gone.
    departed_die: bool,
    dead: BTreeSet<BackendId>,
    /// Positions that they had.
    dead_at: BTreeSet<u16>,
    /// Flows that ended with them, and packets that went to one although a plan has heard of it.
    died: usize,
    haunting: usize,
    is_planning: bool,
}

fn vips() -> Vec<VipKey> {
    let key = |address: &str, protocol, port| VipKey {
        address: address.parse().unwrap(),
        protocol,
        port,
    };
    vec![
        key("203.0.113.1", Protocol::Tcp, 80),
        key("203.0.113.1", Protocol::Tcp, 443),
        key("203.0.113.1", Protocol::Udp, 443),
        key("2001:db8::1", Protocol::Tcp, 80),
    ]
}

impl Flow {
    /// Its client.
    pub(crate) fn source(&self) -> SocketAddr {
        self.source
    }
}

impl World {
    pub(crate) fn new(features: u64, restarts: Restarts) -> Self {
        Self::with(features, &CAPACITY, restarts)
    }

    fn with(features: u64, capacity: &Capacity, restarts: Restarts) -> Self {
        let config = Config {
            features,
            seed: [1, 2, 3, 4],
            match_mask_v4: 15,
            match_mask_v6: 15,
            flow_mask: TRANSIT.flow_mask(),
            flow_secret: 77,
            tick_shift: tick_shift(HZ).into(),
            ..Config::EMPTY
        };
        let planner = Planner::new(capacity, &config, HZ);
        let words = |count| -> Vec<AtomicU64> { (0..count).map(|_| AtomicU64::new(0)).collect() };
        let mut world = Self {
            config,
            restarts,
            restarted: 0,
            image: planner.image().clone(),
            planner,
            flows: words(2 * 4096).into(),
            flow_marks: words(1024 / 64).into(),
            open_flows: words(64),
            turns: words(24),
            noted: BTreeMap::new(),
            now: 1 << 32,
            desired: Desired::default(),
            overlay: Overlay::default(),
            living: Vec::new(),
            next_backend: 0,
            next_source: 0,
            broken: 0,
            packets: 0,
            elsewhere: 0,
            moved: 0,
            stayed: 0,
            departed_die: false,
            dead: BTreeSet::new(),
            dead_at: BTreeSet::new(),
            died: 0,
            haunting: 0,
            is_planning: false,
        };
        let members: Vec<Member> = (0..5).map(|_| world.member()).collect();
        let set = Arc::new(BackendSet {
            members,
            table_slots: Some(256),
        });
        world.desired.vips = vips().into_iter().map(|key| (key, Vip::new(set.clone()))).collect();
        world
    }

    fn member(&mut self) -> Member {
        let number = self.next_backend;
        self.next_backend += 1;
        // Names in order, so that a later one stands behind.
        let backend = id(format!("n{number:04}"));
        let address = IpAddr::from([10, 0, (number >> 8) as u8, number as u8]);
        self.desired.backends.insert(backend.clone(), Backend { address });
        Member { backend, weight: 1 }
    }

    fn ticks(&self) -> u32 {
        (self.now >> tick_shift(HZ)) as u32
    }

    /// Backends that living records name, as the daemon's sweep has them for schedulers.
    fn named(&self) -> BTreeSet<u16> {
        if !self.planner.is_scheduled() {
            return BTreeSet::new();
        }
        let words = self.flows.iter().step_by(2).map(|word| FlowWord(word.load(Relaxed)));
        let looks = words.map(|word| look(word, self.ticks(), TRANSIT.lives(HZ)));
        looks
            .filter_map(|look| match look {
                Look::Flow(backend) => Some(backend),
                Look::Free | Look::Client | Look::Over(_) => None,
            })
            .collect()
    }

    /// Something changes for some VIPs.
    pub(crate) fn change(&mut self, dice: &mut Dice) {
        let keys = vips();
        let first = &self.desired.vips[&keys[dice.below(keys.len())]].set;
        let (mut members, mut slots) = (first.members.clone(), first.table_slots);
        match dice.below(6) {
            0 => members.push(self.member()),
            1 if members.len() > 1 => drop(members.remove(dice.below(members.len()))),
            2 if members.len() > 1 => {
                members.remove(dice.below(members.len()));
                members.push(self.member());
            }
            3 => {
                let at = dice.below(members.len());
                members[at].weight = dice.below(3) as u16;
            }
            4 => slots = slots.map(|slots| if slots < 1024 { slots * 2 } else { 256 }),
            _ => {}
        }
        let set = Arc::new(BackendSet {
            members,
            table_slots: slots,
        });
        if self.config.features & feature::SCHEDULERS != 0 {
            // Of UDP each flow is placed once more when a scheduler comes, as documented.
            let vip = self.desired.vips.get_mut(&keys[[0, 1, 3][dice.below(3)]]).unwrap();
            vip.scheduler = SCHEDULERS[dice.below(SCHEDULERS.len())];
        }
        for key in keys {
            if dice.below(3) > 0 {
                self.desired.vips.get_mut(&key).unwrap().set = set.clone();
            }
        }
        let named: BTreeSet<_> = self
            .desired
            .vips
            .values()
            .flat_map(|vip| &vip.set.members)
            .map(|member| &member.backend)
            .collect();
        let named: BTreeSet<_> = named.into_iter().cloned().collect();
        self.desired.backends.retain(|backend, _| named.contains(backend));
    }

    /// The daemon ends, and another one goes on from the maps as they are.
    fn restart(&mut self) {
        self.restarted += 1;
        let wide: BTreeSet<Table> = self
            .planner
            .vips()
            .map(|vip| vip.table)
            .filter(|table| table.is_wide && self.restarts == Restarts::Forgetting)
            .collect();
        for (table, slot) in wide
            .into_iter()
            .flat_map(|table| (0..table.slots).map(move |slot| (table, slot)))
        {
            let (index, word) = table.word(slot);
            let cur = self.image.load(MapId::LookupTables, index, word) as u16;
            assert!(self.image.apply(&Write::Store {
                map: MapId::LookupTables,
                index,
                word,
                value: SlotWord::steady(cur).0,
            }));
        }
        let found = (self.image.clone(), self.ticks());
        let mut desired = self.desired.clone();
        if self.departed_die {
            // Who they are is published: the maps know no names.
            let departed = self.planner.backends().filter(|backend| backend.has_departed);
            let departed = departed.map(|backend| {
                let address = backend.address;
                (backend.id.clone(), Backend { address })
            });
            desired.departed = departed.collect();
        }
        self.planner = Planner::adopt(&CAPACITY, &self.config, HZ, found, &desired).unwrap();
    }

    /// Plans, and carries the plan out with packets in between.
    pub(crate) fn plan(&mut self, dice: &mut Dice) {
        let noted = std::mem::take(&mut self.noted);
        let named = self.named();
        let dead = self.dead.clone();
        // Packets come while it is being planned, so their time may be a tick ahead.
        let now = self.ticks().wrapping_sub(dice.below(2) as u32);
        let moment = Moment {
            now,
            unix_s: self.unix_s(),
            timeouts: TRANSIT.timeouts(HZ),
            lives: TRANSIT.lives(HZ),
            activity: &|table, slot| noted.get(&(table, slot)).copied().unwrap_or_default(),
            named: &|backend| named.contains(&backend.0),
            overlay: Some(&self.overlay),
            dead: &dead,
            ..Moment::STILL
        };
        let mut hops = resolved(&self.desired);
        hops.extend(
            self.planner
                .backends()
                .map(|backend| (backend.id.clone(), lb_core::desired::NextHop::Via(crate::world::via()))),
        );
        let before: BTreeMap<VipKey, Table> = self.planner.vips().map(|vip| (vip.key, vip.table)).collect();
        let plan = self.planner.plan_at(&self.desired, &hops, &moment).unwrap();
        self.noted = noted;
        self.is_planning = true;
        let ends = match self.restarts {
            Restarts::Never => None,
            Restarts::Adopting | Restarts::Forgetting => {
                (dice.below(2) == 0).then(|| dice.below(plan.writes.len() + 1))
            }
        };
        for (write, number) in plan.writes.iter().zip(0..) {
            if ends == Some(number) {
                self.is_planning = false;
                self.restart();
                return self.plan(dice);
            }
            assert!(self.image.apply(write));
            self.forget(write);
            // What is filled in is noted as if packets had been there.
            self.read_fill(write);
            for _ in 0..2 {
                self.pump(dice, &before);
            }
        }
        self.is_planning = false;
        assert!(&self.image == self.planner.image());
        let tables: BTreeSet<Table> = self.planner.vips().map(|vip| vip.table).collect();
        self.noted.retain(|(table, _), _| tables.contains(table));
        let noted = &self.noted;
        let again = Moment {
            now,
            unix_s: self.unix_s(),
            timeouts: TRANSIT.timeouts(HZ),
            lives: TRANSIT.lives(HZ),
            activity: &|table, slot| noted.get(&(table, slot)).copied().unwrap_or_default(),
            named: &|backend| named.contains(&backend.0),
            overlay: Some(&self.overlay),
            dead: &dead,
            ..Moment::STILL
        };
        let again = self.planner.clone().plan_at(&self.desired, &hops, &again).unwrap();
        assert!(again.writes.is_empty(), "planned again at once: {:?}", again.writes);
        if !self.planner.is_in_transit() && !self.planner.is_scheduled() {
            self.flow_marks.iter().for_each(|marks| marks.store(0, Relaxed));
        }
        if ends == Some(plan.writes.len()) {
            self.restart();
        }
    }

    /// As the daemon forgets records.
    fn forget(&self, write: &Write) {
        if let Write::ForgetDatagrams(backends) = write {
            let backends = backends.iter().map(|backend| backend.0).collect();
            for record in self.flows.iter().step_by(2) {
                if let Some(swept) = forgotten(FlowWord(record.load(Relaxed)), &backends) {
                    record.store(swept.0, Relaxed);
                }
            }
        }
    }

    /// What a backend is for a VIP, as far as that is believed.
    fn health(&self, vip: &VipKey, backend: u16) -> Health {
        let vip = &self.desired.vips[vip];
        let unfit = self.overlay.unfit(&vip.set, vip.checks.as_deref());
        let id = self.planner.backend_at(BackendIndex(backend));
        unfit.zip(id).map(|(unfit, id)| unfit.health(id)).unwrap_or_default()
    }

    /// Whether new flows of a VIP do not go to a backend for its health.
    pub(crate) fn is_out(&self, vip: &VipKey, backend: u16) -> bool {
        self.health(vip, backend) != Health::Eligible
    }

    /// Whether any VIP believes a backend to be dead.
    fn is_dead(&self, backend: u16) -> bool {
        self.desired
            .vips
            .keys()
            .any(|vip| self.health(vip, backend) == Health::Dead)
    }

    /// Activity that a plan fills into new wide tables.
    fn read_fill(&mut self, write: &Write) {
        let Write::Fill {
            map: MapId::LookupTables,
            index,
            word,
            values,
        } = write
        else {
            return;
        };
        let wide: BTreeSet<Table> = self
            .planner
            .vips()
            .map(|vip| vip.table)
            .filter(|table| table.is_wide)
            .collect();
        for table in wide
            .into_iter()
            .filter(|table| table.word(0) == (*index, *word) && values.len() == 2 * table.slots)
        {
            for slot in 0..table.slots {
                self.noted.insert((table, slot), Activity(values[2 * slot + 1]));
            }
        }
    }

    /// A packet of some flow, and now and then a new flow.
    pub(crate) fn pump(&mut self, dice: &mut Dice, before: &BTreeMap<VipKey, Table>) {
        if self.living.len() < FLOWS && dice.below(2) == 0 {
            self.open(dice, before);
        }
        if !self.living.is_empty() {
            let at = dice.below(self.living.len());
            self.packet(at, before);
        }
    }

    fn open(&mut self, dice: &mut Dice, before: &BTreeMap<VipKey, Table>) {
        let keys = vips();
        let vip = keys[dice.below(keys.len())];
        self.next_source += 1;
        let number = self.next_source;
        let source: IpAddr = match vip.address {
            IpAddr::V4(_) => IpAddr::from([198, 51, (number >> 8) as u8, number as u8]),
            IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 7, 0, 0, 0, 0, number as u16]),
        };
        let source = SocketAddr::new(source, 1024 + (dice.roll() as u16 >> 2));
        let sequence = dice.roll() as u32;
        let flow = Flow {
            vip,
            source,
            sequence,
            backend: 0,
        };
        let Some(backend) = self.send(&flow, true, before) else {
            return;
        };
        self.living.push(Flow { backend, ..flow });
        // The client answers its backend at once.
        let last = self.living.len() - 1;
        self.packet(last, before);
    }

    fn packet(&mut self, at: usize, before: &BTreeMap<VipKey, Table>) {
        if at >= self.living.len() {
            return;
        }
        self.living[at].sequence = self.living[at].sequence.wrapping_add(100);
        let flow = Flow { ..self.living[at] };
        let went = self.send(&flow, false, before);
        self.packets += 1;
        if self.was_buried(flow.backend) {
            self.haunting += usize::from(went == Some(flow.backend) && !self.is_planning);
            self.died += 1;
            self.living.swap_remove(at);
            return;
        }
        // UDP leaves an unhealthy backend at once, which is when the plan is carried out.
        if flow.vip.protocol == Protocol::Udp && self.is_out(&flow.vip, flow.backend) {
            if went == Some(flow.backend) {
                self.stayed += usize::from(!self.is_planning);
                return;
            }
            self.moved += 1;
            match went {
                Some(backend) => self.living[at].backend = backend,
                None => drop(self.living.swap_remove(at)),
            }
            return;
        }
        if went != Some(flow.backend) {
            // Nothing lives with the dead.
            self.broken += usize::from(!self.is_dead(flow.backend));
            self.living.swap_remove(at);
        }
    }

    fn send(&mut self, flow: &Flow, is_first: bool, before: &BTreeMap<VipKey, Table>) -> Option<u16> {
        let frame = frame(flow, is_first);
        let mut view = self.image.view(&self.config);
        (view.flows, view.open_flows, view.turns) = (&self.flows, &self.open_flows, &self.turns);
        view.flow_marks = &self.flow_marks;
        let mut host = Host::new(view, 1);
        host.record_flows(true);
        host.set_jiffies(self.now);
        let choice = host.balance(&frame).choice?;
        // What the program notes in the table: whichever of the two the packet met, the other is not used any more or not yet.
        let now = self.ticks();
        let tables = [
            before.get(&flow.vip).copied(),
            self.planner.vip(&flow.vip).map(|vip| vip.table),
        ];
        for table in tables.into_iter().flatten().filter(|table| table.is_wide) {
            let slot = choice.slot as usize >> table.slots.trailing_zeros().abs_diff(table.slots.trailing_zeros());
            let (segment, word) = table.word(slot);
            let cur = self.image.load(MapId::LookupTables, segment, word) as u16;
            if slot < table.slots && choice.backend.0 != cur {
                self.elsewhere += 1;
                let noted = self.noted.entry((table, slot)).or_default();
                *noted = match flow.vip.protocol {
                    Protocol::Tcp => Activity::new(now, noted.udp()),
                    Protocol::Udp => Activity::new(noted.tcp(), now),
                };
            }
        }
        (choice.backend != BackendIndex::NONE).then_some(choice.backend.0)
    }

    /// Every UDP flow whose backend is out says something: it is to be elsewhere by now.
    pub(crate) fn speak(&mut self) {
        let tables: BTreeMap<VipKey, Table> = self.planner.vips().map(|vip| (vip.key, vip.table)).collect();
        let mut at = 0;
        while let Some(flow) = self.living.get(at) {
            let count = self.living.len();
            if flow.vip.protocol == Protocol::Udp && self.is_out(&flow.vip, flow.backend) {
                self.packet(at, &tables);
            }
            at += usize::from(self.living.len() == count);
        }
    }

    /// Time passes; every flow says something before it has been silent for too long.
    pub(crate) fn pass(&mut self, seconds: u32) {
        let tables: BTreeMap<VipKey, Table> = self.planner.vips().map(|vip| (vip.key, vip.table)).collect();
        for _ in 0..seconds.div_ceil(15) {
            self.now += u64::from(seconds.min(15) * HZ);
            let mut at = 0;
            while at < self.living.len() {
                let count = self.living.len();
                self.packet(at, &tables);
                at += usize::from(self.living.len() == count);
            }
        }
    }
}

fn frame(flow: &Flow, is_first: bool) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (flow.source.ip(), flow.vip.address) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ipv4(source.octets(), destination.octets(), 64),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet.ipv6(source.octets(), destination.octets(), 64),
        _ => unreachable!("flows are of their VIP's family"),
    };
    let mut frame = Vec::new();
    match flow.vip.protocol {
        Protocol::Tcp => {
            let tcp = ip.tcp(flow.source.port(), flow.vip.port, flow.sequence, 1000);
            let tcp = if is_first { tcp.syn() } else { tcp.ack(1) };
            tcp.write(&mut frame, &[]).unwrap();
        }
        Protocol::Udp => ip
            .udp(flow.source.port(), flow.vip.port)
            .write(&mut frame, &[])
            .unwrap(),
    }
    frame
}
