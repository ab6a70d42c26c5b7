//! VIPs with a scheduler: the loaded program sends new flows where the scheduler says, and keeps the same records, counts and turns as
//! the host build.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use lb::datapath::{Balancer, Jiffies, Mapped, Sweep};
use xdp_prog::{
    abi::{
        FlowLives, LineMeta, MIN_TABLE_SLOTS, Method, Schedule, SlotWord, VipIndex, VipMeta, feature, setting,
        tick_shift,
    },
    host::Host,
};

use crate::{
    flows::{both, monotonic_ns, numbered, on_port},
    support::{
        frames::{ACK, Packet, SYN, TCP, UDP},
        kernel::{Action, Kernel},
        site::{LOOPBACK, VIP_V4, VIP_V6, Way, at},
        tables::{FLOW_BUCKETS, Tables},
    },
};

const FIN: u8 = 0x01;
const PORT: u16 = 80;
/// The backend of every slot of the VIPs' table: where goes what nobody placed.
const SLOT: u16 = 4;
/// All backends, with alternating families.
const BACKENDS: u16 = 4;
const TICK: u64 = 0xff_ffff;
/// Positions of the VIPs.
const VIPS: [(&str, u8, u32); 4] = [(VIP_V4, TCP, 1), (VIP_V4, UDP, 2), (VIP_V6, TCP, 3), (VIP_V6, UDP, 4)];

struct Site {
    tables: Tables,
    kernel: Kernel,
    ways: Vec<Way>,
    jiffies: Jiffies,
    /// The host's, for what found no room.
    unrecorded: [u64; 4],
}

/// What a VIP is given, and what the flow table has room for.
struct Ask {
    method: Method,
    candidates: Vec<(u16, u16)>,
    turns: Vec<u16>,
    each: bool,
    affinity: u64,
    features: u64,
    flow_mask: u64,
}

impl Ask {
    fn new(method: Method) -> Self {
        Self {
            method,
            candidates: (1..=3).map(|backend| (backend, 1)).collect(),
            turns: Vec::new(),
            each: false,
            affinity: 0,
            features: 0,
            flow_mask: FLOW_BUCKETS as u64 - 1,
        }
    }

    fn turns(turns: &[u16]) -> Self {
        Self {
            turns: turns.to_vec(),
            ..Self::new(Method::Turn)
        }
    }

    fn weights(method: Method, weights: [u16; 3]) -> Self {
        Self {
            candidates: (1..).zip(weights).collect(),
            ..Self::new(method)
        }
    }
}

impl Site {
    fn new(ask: &Ask) -> Result<Self> {
        let jiffies = Jiffies::calibrate()?;
        let mut tables = Tables::new(ask.features | feature::TRANSIT | feature::SCHEDULERS | feature::AFFINITY);
        tables.ports = vec!["lo"];
        tables.config.tick_shift = tick_shift(jiffies.hz()).into();
        tables.config.flow_mask = ask.flow_mask;
        tables.settings[setting::FLOW_LIVES as usize] = FlowLives::new(256, 4096, 480, 480).0;
        let ways: Vec<Way> = (1..=BACKENDS as u8)
            .map(|number| {
                if number % 2 == 0 {
                    Way::v6(number)
                } else {
                    Way::v4(number)
                }
            })
            .collect();
        for way in &ways {
            tables.backend(way.alive_line());
        }
        let table = tables.table(&[SLOT]);
        let schedule = tables.schedule(ask.method, &ask.candidates, &ask.turns);
        let each = if ask.each { Schedule::EACH } else { 0 };
        let client = if ask.affinity > 0 { VipMeta::CLIENT_AFFINITY } else { 0 };
        for (address, protocol, index) in VIPS {
            let flags = VipMeta::RECORDS | VipMeta::SCHEDULED | client;
            let meta = VipMeta::new(VipIndex(index), table, MIN_TABLE_SLOTS, flags);
            tables.vip_at(address, protocol, PORT, meta);
            tables.address(address, 0);
            tables.options[index as usize].schedule = schedule.0 | each;
            tables.options[index as usize].affinity = ask.affinity;
        }
        let kernel = Kernel::balancer(&tables)?;
        Ok(Self {
            tables,
            kernel,
            ways,
            jiffies,
            unrecorded: [0; 4],
        })
    }

    fn balancer(&self) -> &Balancer {
        match &self.kernel {
            Kernel::Balancer(balancer) => balancer,
            Kernel::Worker(_) => unreachable!("it is a balancer"),
        }
    }

    /// Sends a packet; the backend that it went to, on which program and host build agree, with all that they remember.
    fn send(&mut self, packet: &Packet, sequence: u32) -> Result<u16> {
        let frame = numbered(packet, sequence);
        let ran = self.kernel.run(&frame)?;
        let mut host = Host::new(self.tables.view(), LOOPBACK);
        host.record_flows(true);
        host.set_jiffies(self.jiffies.at(monotonic_ns()));
        let outcome = host.balance(&frame);
        let unrecorded = host.unrecorded();
        drop(host);
        assert_eq!(ran.action, Action::Tx, "{packet:?}");
        assert!(ran.frame == outcome.frame, "{packet:?}: program and host build differ");
        for (sum, more) in self.unrecorded.iter_mut().zip(unrecorded) {
            *sum += more;
        }
        let balancer = self.balancer();
        for (at, host) in self
            .tables
            .flows
            .iter()
            .enumerate()
            .take(8 * (self.tables.config.flow_mask as usize + 1))
        {
            let (bucket, word) = (at as u32 / 8, at as u32 % 8);
            let (kernel, host) = (balancer.flows.load(bucket, word)?, host.load(Ordering::Relaxed));
            // Ticks may differ by the one that passes in between.
            let mask = if word % 2 == 0 { !TICK } else { !0 };
            assert_eq!(kernel & mask, host & mask, "{packet:?}: bucket {bucket} word {word}");
            let apart = (kernel & TICK).wrapping_sub(host & TICK) << 40;
            assert!(word % 2 == 1 || (apart as i64 >> 40).abs() <= 1, "{kernel:x} {host:x}");
        }
        same(&balancer.flow_marks, &self.tables.flow_marks)?;
        same(&balancer.open_flows, &self.tables.open_flows)?;
        same(&balancer.turns, &self.tables.turns)?;
        let counted = balancer.counters.flows.sum(0)?;
        let counted = [counted.syns, counted.datagrams, counted.scheduled, counted.clients];
        assert_eq!(counted, self.unrecorded, "{packet:?}");
        let backend = outcome.choice.expect("a slot was read").backend.0;
        let expected = self.ways[usize::from(backend) - 1].carries(packet);
        assert_eq!(ran.frame.len(), expected.len());
        assert_eq!(ran.frame[..14], expected[..14], "to the backend's next hop");
        Ok(backend)
    }

    /// A new connection, confirmed.
    fn open(&mut self, (client, vip): (&str, &str), number: u16) -> Result<u16> {
        let tcp = Packet::tcp(&on_port(client, number), &at(vip, PORT));
        let backend = self.send(&tcp.clone().flags(SYN), 1000)?;
        assert_eq!(
            self.send(&tcp.flags(ACK), 1001)?,
            backend,
            "the client's answer follows"
        );
        Ok(backend)
    }

    fn close(&mut self, (client, vip): (&str, &str), number: u16) -> Result<u16> {
        self.send(
            &Packet::tcp(&on_port(client, number), &at(vip, PORT)).flags(ACK | FIN),
            2000,
        )
    }

    fn open_flows(&self) -> [u64; BACKENDS as usize] {
        std::array::from_fn(|backend| self.tables.open_flows[backend + 1].load(Ordering::Relaxed))
    }

    fn records(&self) -> usize {
        let words = self.tables.flows.iter().step_by(2);
        words.filter(|word| word.load(Ordering::Relaxed) != 0).count()
    }
}

fn same(kernel: &Mapped, host: &[AtomicU64]) -> Result<()> {
    for (index, host) in (0..kernel.entries()).zip(host) {
        assert_eq!(kernel.load(index, 0)?, host.load(Ordering::Relaxed), "position {index}");
    }
    Ok(())
}

/// Another client, on the same port.
fn client(number: u8, v6: bool) -> String {
    if v6 {
        format!("[2001:db8:c::{number:x}]:40000")
    } else {
        format!("198.51.100.{number}:40000")
    }
}

#[test]
fn new_flows_take_turns_and_stay_with_whom_they_had() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for features in [
        0,
        feature::ALL & !(feature::LIMITS | feature::SOURCE_PREFIX | feature::REDIRECT),
    ] {
        let round = [1, 2, 1, 3];
        let mut site = Site::new(&Ask {
            features,
            ..Ask::turns(&round)
        })?;
        for way in both() {
            let placed: Vec<u16> = (0..12).map(|number| site.open(way, number)).collect::<Result<_>>()?;
            // Wherever the round began, it goes on and on.
            let fits = (0..4).any(|first| (0..12).all(|turn| placed[turn] == round[(first + turn) % 4]));
            assert!(fits, "{placed:?}");
            // The control: what nobody placed goes by its slot.
            let stranger = Packet::tcp(&on_port(way.0, 99), &at(way.1, PORT)).flags(ACK);
            let records = site.records();
            assert_eq!(site.send(&stranger, 5)?, SLOT);
            assert_eq!(site.records(), records);
            for (number, backend) in (0..).zip(&placed) {
                assert_eq!(site.close(way, number)?, *backend);
            }
        }
        assert_eq!(site.open_flows(), [0; 4]);
    }
    Ok(())
}

#[test]
fn datagrams_of_a_flow_stay_or_each_takes_a_turn() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for each in [false, true] {
        let mut site = Site::new(&Ask {
            each,
            ..Ask::turns(&[1, 2, 3])
        })?;
        for (client, vip) in both() {
            let udp = |number| Packet::udp(&on_port(client, number), &at(vip, PORT));
            let first = site.send(&udp(0), 0)?;
            let again = site.send(&udp(0), 0)?;
            let other = site.send(&udp(1), 0)?;
            if each {
                assert_eq!(again, first % 3 + 1);
                assert_eq!(other, again % 3 + 1);
            } else {
                assert_eq!((again, other), (first, first % 3 + 1));
            }
        }
        assert_eq!(site.records(), if each { 0 } else { 4 });
        assert_eq!(site.open_flows().iter().sum::<u64>(), if each { 0 } else { 4 });
    }
    Ok(())
}

#[test]
fn the_least_loaded_for_its_weight_takes_the_next_and_who_closes_makes_room() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    // Shares of 12 flows by weights 1, 2, 3; what sed does differs only on the way there.
    for method in [Method::Least, Method::Expected] {
        let mut site = Site::new(&Ask::weights(method, [1, 2, 3]))?;
        for (count, way) in (1..).zip(both()) {
            let placed: Vec<u16> = (0..12).map(|number| site.open(way, number)).collect::<Result<_>>()?;
            assert_eq!(
                site.open_flows(),
                [2 * count, 4 * count, 6 * count, 0],
                "{method:?} {placed:?}"
            );
        }
        // All that the third has close: it gets the next ones.
        let way = both()[0];
        for number in 0..12 {
            let tcp = Packet::tcp(&on_port(way.0, number), &at(way.1, PORT)).flags(ACK);
            if site.send(&tcp, 1002)? == 3 {
                assert_eq!(site.close(way, number)?, 3);
            }
        }
        assert_eq!(site.open_flows(), [4, 8, 6, 0]);
        for number in 100..105 {
            assert_eq!(site.open(way, number)?, 3, "{method:?}");
        }
        // A connection that goes on after its FIN counts again, once.
        let before = site.open_flows();
        assert_eq!(site.close(way, 100)?, 3);
        assert_eq!(site.close(way, 100)?, 3);
        assert_eq!(site.open_flows()[2], before[2] - 1);
        assert_eq!(site.open(way, 100)?, 3, "by the same ports, where it was");
        assert_eq!(site.open_flows(), before);
    }
    Ok(())
}

#[test]
fn who_has_none_is_first_and_who_expects_least_is_next() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = both()[0];
    // With weights 1 and 10 the heavy one would take the first five of any six: sed does so, nq does not.
    let mut site = Site::new(&Ask::weights(Method::Expected, [1, 1, 10]))?;
    for number in 0..5 {
        assert_eq!(site.open(way, number)?, 3, "sed");
    }
    let mut site = Site::new(&Ask::weights(Method::Idle, [1, 1, 10]))?;
    let mut first: Vec<u16> = (0..3).map(|number| site.open(way, number)).collect::<Result<_>>()?;
    first.sort_unstable();
    assert_eq!(first, [1, 2, 3], "nq: nobody waits while somebody has nothing to do");
    for number in 3..8 {
        assert_eq!(site.open(way, number)?, 3, "nq: then as sed");
    }
    Ok(())
}

#[test]
fn a_client_stays_with_its_backend_over_ports_while_that_takes_new_flows() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let ask = Ask {
        affinity: 400,
        ..Ask::turns(&[1, 2, 3])
    };
    let mut site = Site::new(&ask)?;
    for (v6, vip) in [(false, VIP_V4), (true, VIP_V6)] {
        let mut first = Vec::new();
        for number in 1..=6 {
            let client = client(number, v6);
            let backend = site.open((&client, vip), 0)?;
            for port in 1..4 {
                assert_eq!(site.open((&client, vip), port)?, backend, "client {number}");
            }
            first.push(backend);
        }
        // Clients take turns; their later flows do not.
        assert!(first.windows(2).all(|pair| pair[1] == pair[0] % 3 + 1), "{first:?}");
    }
    let lives = FlowLives::new(256, 4096, 480, 480);
    let recorded: u64 = site.balancer().records(site.jiffies.ticks(), lives)?.values().sum();
    assert_eq!(recorded, 2 * 6 * 4, "flows, and not the clients that are remembered");
    // Backend 2 takes no new flows any more: its clients go elsewhere, and stay there; their old flows stay with it.
    let schedule = site.tables.schedule(Method::Turn, &[(1, 1), (3, 1)], &[1, 3]);
    for (_, _, index) in VIPS {
        site.tables.options[index as usize].schedule = schedule.0;
    }
    site.kernel.write(&site.tables)?;
    for (v6, vip) in [(false, VIP_V4), (true, VIP_V6)] {
        let mut moved = 0;
        for number in 1..=6 {
            let client = client(number, v6);
            let tcp = Packet::tcp(&on_port(&client, 0), &at(vip, PORT)).flags(ACK);
            let old = site.send(&tcp, 1002)?;
            let new = site.open((&client, vip), 10)?;
            assert_eq!(new == old, old != 2, "client {number}: {old} {new}");
            moved += usize::from(old == 2);
            assert_eq!(site.open((&client, vip), 11)?, new);
            assert_eq!(site.send(&tcp, 1003)?, old);
        }
        assert_eq!(moved, 2);
    }
    Ok(())
}

#[test]
fn what_finds_no_room_is_counted_and_goes_by_its_slot() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = both()[0];
    // Two buckets: eight records, four of them for SYNs alone.
    let mut site = Site::new(&Ask {
        flow_mask: 1,
        ..Ask::turns(&[1, 2, 3])
    })?;
    for number in 0..60 {
        let tcp = Packet::tcp(&on_port(way.0, number), &at(way.1, PORT));
        let backend = site.send(&tcp.clone().flags(SYN), 1000)?;
        // Recorded or not, the next segment finds it.
        let next = site.send(&tcp.flags(ACK), 1001)?;
        assert_eq!(next, backend, "flow {number}");
    }
    assert_eq!(site.records(), 8);
    assert_eq!(site.unrecorded, [0, 0, 52, 0]);
    assert_eq!(site.open_flows().iter().sum::<u64>(), 8);
    assert_eq!(site.open_flows()[usize::from(SLOT) - 1], 0);
    Ok(())
}

#[test]
fn nobody_is_sent_to_the_dead_and_a_table_in_transit_keeps_what_was_there() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = both()[0];
    let mut site = Site::new(&Ask::turns(&[1, 2, 3]))?;
    let placed: Vec<u16> = (0..3).map(|number| site.open(way, number)).collect::<Result<_>>()?;
    // Slots are on their way from 4 to 3: what was there before and has no record is at 4.
    let wide = site.tables.wide_table(SlotWord::new(3, SLOT, SLOT, SlotWord::TCP));
    for (address, protocol, index) in VIPS {
        let flags = VipMeta::RECORDS | VipMeta::SCHEDULED | VipMeta::TRANSIT;
        site.tables.replace_meta(
            address,
            protocol,
            PORT,
            VipMeta::new(VipIndex(index), wide, MIN_TABLE_SLOTS, flags),
        );
    }
    site.kernel.write(&site.tables)?;
    for (number, backend) in (0..).zip(&placed) {
        let tcp = Packet::tcp(&on_port(way.0, number), &at(way.1, PORT)).flags(ACK);
        assert_eq!(site.send(&tcp, 1002)?, *backend);
    }
    let stranger = Packet::tcp(&on_port(way.0, 99), &at(way.1, PORT)).flags(ACK);
    assert_eq!(site.send(&stranger, 5)?, SLOT);
    // The dead take nothing: their turns go by the slot, and their flows to its base.
    site.tables.backends[2].meta &= !LineMeta::ALIVE;
    site.kernel.write(&site.tables)?;
    let new: Vec<u16> = (10..16).map(|number| site.open(way, number)).collect::<Result<_>>()?;
    assert!(!new.contains(&2), "{new:?}");
    for (number, backend) in (0..).zip(&placed) {
        let tcp = Packet::tcp(&on_port(way.0, number), &at(way.1, PORT)).flags(ACK);
        let expected = if *backend == 2 { SLOT } else { *backend };
        assert_eq!(site.send(&tcp, 1003)?, expected);
    }
    Ok(())
}

/// The daemon's sweep: who is silent for longer than records live is counted down, and its place is free.
#[test]
fn silent_flows_are_swept_and_counted_down() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut site = Site::new(&Ask::new(Method::Least))?;
    for way in both() {
        for number in 0..6 {
            site.open(way, number)?;
        }
    }
    let (balancer, now) = (site.balancer(), site.jiffies.ticks());
    let lives = FlowLives::new(256, 4096, 480, 480);
    let open = |balancer: &Balancer| {
        (1..=3)
            .map(|backend| balancer.open_flows.load(backend, 0))
            .sum::<Result<u64, _>>()
    };
    let mut sweep = Sweep::default();
    assert!(sweep.names(1) && sweep.names(9), "nothing is known yet");
    // In parts, as the daemon does.
    for _ in 0..16 {
        assert_eq!(sweep.flows(), None);
        sweep.step(balancer, 16, now, lives)?;
    }
    assert_eq!((sweep.flows(), open(balancer)?), (Some(12), 12), "all live");
    assert!(sweep.names(1) && !sweep.names(9));
    // The client of one says something, later.
    let later = now + 4000;
    let places = (0..balancer.flows.entries()).flat_map(|bucket| [0, 2, 4, 6].map(|word| (bucket, word)));
    let mut used = places.filter(|(bucket, word)| balancer.flows.load(*bucket, *word).is_ok_and(|record| record != 0));
    let (bucket, first) = used.next().expect("twelve records");
    let word = balancer.flows.load(bucket, first)?;
    let renewed = word & !TICK | u64::from(later) & TICK;
    assert!(balancer.flows.replace(bucket, first, word, renewed)?);
    sweep.step(balancer, 1, now + 4200, lives)?;
    assert_eq!((sweep.flows(), open(balancer)?), (Some(1), 1), "that one lives");
    sweep.step(balancer, 1, later + 4200, lives)?;
    assert_eq!((sweep.flows(), open(balancer)?), (Some(0), 0));
    assert!(!sweep.names(1));
    // A packet finds room where they were, and is counted once.
    let way = both()[0];
    let tcp = Packet::tcp(&on_port(way.0, 0), &at(way.1, PORT)).flags(SYN);
    site.kernel.run(&numbered(&tcp, 1))?;
    assert_eq!(open(site.balancer())?, 1);
    Ok(())
}
