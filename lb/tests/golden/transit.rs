//! Slots in transit: the loaded program follows flows to where they live, and keeps the same records as the host build.

use std::sync::atomic::Ordering;

use anyhow::Result;
use lb::datapath::{Balancer, Jiffies};
use xdp_prog::{
    abi::{Activity, FlowLives, MIN_TABLE_SLOTS, SlotWord, TableUnit, VipIndex, VipMeta, feature, setting, tick_shift},
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
const RST: u8 = 0x04;
const PORT: u16 = 80;
/// Positions of the backends, as they are made.
const OLD: u16 = 1;
const NEW: u16 = 2;
const THIRD: u16 = 3;
const MOVED: SlotWord = SlotWord::new(NEW, OLD, OLD, SlotWord::TCP | SlotWord::UDP | SlotWord::LEARNING);

struct Site {
    tables: Tables,
    kernel: Kernel,
    ways: Vec<Way>,
    table: TableUnit,
    jiffies: Jiffies,
}

impl Site {
    fn new(features: u64, flags: u64) -> Result<Self> {
        let jiffies = Jiffies::calibrate()?;
        let mut tables = Tables::new(features | feature::TRANSIT);
        tables.config.tick_shift = tick_shift(jiffies.hz()).into();
        tables.settings[setting::FLOW_LIVES as usize] = FlowLives::new(256, 4096, 480, 480).0;
        let ways = vec![Way::v4(1), Way::v6(2), Way::v4(3)];
        for way in &ways {
            tables.backend(way.alive_line());
        }
        let table = tables.wide_table(MOVED);
        for (index, (address, protocol)) in (1..).zip([(VIP_V4, TCP), (VIP_V4, UDP), (VIP_V6, TCP), (VIP_V6, UDP)]) {
            let meta = VipMeta::new(
                VipIndex(index),
                table,
                MIN_TABLE_SLOTS,
                VipMeta::TRANSIT | VipMeta::RECORDS | flags,
            );
            tables.vip_at(address, protocol, PORT, meta);
            tables.address(address, 0);
        }
        let kernel = Kernel::balancer(&tables)?;
        Ok(Self {
            tables,
            kernel,
            ways,
            table,
            jiffies,
        })
    }

    /// The slots of all flows say this from now on.
    fn say(&mut self, slot: SlotWord) -> Result<()> {
        self.tables.set_wide(self.table, slot);
        self.kernel.write(&self.tables)
    }

    /// Nothing lives at a backend any more.
    fn bury(&mut self, backend: u16) -> Result<()> {
        self.tables.backends[usize::from(backend)].meta &= !xdp_prog::abi::LineMeta::ALIVE;
        self.kernel.write(&self.tables)
    }

    /// Sends a packet; the backend that it went to, on which program and host build agree, records and all.
    fn send(&self, packet: &Packet, sequence: u32) -> Result<u16> {
        let frame = numbered(packet, sequence);
        let Kernel::Balancer(balancer) = &self.kernel else {
            unreachable!()
        };
        let ran = self.kernel.run(&frame)?;
        let mut host = Host::new(self.tables.view(), LOOPBACK);
        host.record_flows(true);
        host.set_jiffies(self.jiffies.at(monotonic_ns()));
        let outcome = host.balance(&frame);
        assert_eq!(ran.action, Action::Tx, "{packet:?}");
        assert!(ran.frame == outcome.frame, "{packet:?}: program and host build differ");
        // Ticks may differ by the one that passes in between.
        const TICK: u64 = 0xff_ffff;
        for bucket in 0..FLOW_BUCKETS as u32 {
            for word in 0..8 {
                let kernel = balancer.flows.load(bucket, word)?;
                let host = self.tables.flows[bucket as usize * 8 + word as usize].load(Ordering::Relaxed);
                let mask = if word % 2 == 0 { !TICK } else { !0 };
                assert_eq!(kernel & mask, host & mask, "{packet:?}: bucket {bucket} word {word}");
                assert!(
                    word % 2 == 1 || (kernel & TICK).abs_diff(host & TICK) <= 1,
                    "{kernel:x} {host:x}"
                );
            }
        }
        for (index, host) in (0..).zip(self.tables.flow_marks.iter()) {
            let kernel = balancer.flow_marks.load(index, 0)?;
            assert_eq!(kernel, host.load(Ordering::Relaxed), "{packet:?}: marks {index}");
        }
        let backend = outcome.choice.expect("a slot was read").backend.0;
        let way = &self.ways[usize::from(backend) - 1];
        let numbered_way = way.carries(packet);
        assert_eq!(ran.frame.len(), numbered_way.len());
        assert_eq!(ran.frame[..14], numbered_way[..14], "to the backend's next hop");
        Ok(backend)
    }

    fn records(&self) -> usize {
        let words = self.tables.flows.iter().step_by(2);
        words.filter(|word| word.load(Ordering::Relaxed) != 0).count()
    }

    /// What packets noted in the program's table: the latest ticks of TCP and UDP.
    fn noted(&self) -> Result<Activity> {
        let Kernel::Balancer(balancer) = &self.kernel else {
            unreachable!()
        };
        let first = self.table.place().1;
        let mut latest = (0, 0);
        for slot in 0..MIN_TABLE_SLOTS as u32 {
            let noted = Activity(balancer.slots.load(first + 2 * slot + 1)?);
            latest = (latest.0.max(noted.tcp()), latest.1.max(noted.udp()));
        }
        Ok(Activity::new(latest.0, latest.1))
    }
}

#[test]
fn a_connection_that_began_before_stays_and_one_that_begins_after_moves() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for features in [
        0,
        feature::ALL & !(feature::LIMITS | feature::SOURCE_PREFIX | feature::REDIRECT),
    ] {
        let site = Site::new(features, 0)?;
        for (from, vip) in both() {
            let tcp = |number| Packet::tcp(&on_port(from, number), &at(vip, PORT));
            // Nothing is known of it: it lives at the base, and is not recorded.
            let records = site.records();
            assert_eq!(site.send(&tcp(1).flags(ACK), 7)?, OLD);
            assert_eq!(site.records(), records);
            // A new one: recorded, and confirmed by who knows its number.
            assert_eq!(site.send(&tcp(2).flags(SYN), u32::MAX - 5)?, NEW);
            assert_eq!(site.send(&tcp(2).flags(SYN), u32::MAX - 5)?, NEW, "sent again");
            assert_eq!(site.send(&tcp(2).flags(ACK), u32::MAX - 4)?, NEW);
            assert_eq!(
                site.send(&tcp(2).flags(ACK), 1_000_000)?,
                NEW,
                "any number, once confirmed"
            );
            assert_eq!(site.send(&tcp(2).flags(ACK | FIN), 1_000_001)?, NEW);
            assert_eq!(site.send(&tcp(2).flags(ACK), 1_000_002)?, NEW);
            assert_eq!(site.records(), records + 1);
            // A SYN in the name of the first: it goes its way, and the first one its own.
            assert_eq!(site.send(&tcp(1).flags(SYN), 1 << 31)?, NEW);
            for sequence in [8, (1 << 31) + 70_000, 1 << 31] {
                assert_eq!(site.send(&tcp(1).flags(ACK), sequence)?, OLD);
            }
            assert_eq!(
                site.send(&tcp(1).flags(SYN), 5)?,
                OLD,
                "a second one is not believed either"
            );
            assert_eq!(site.send(&tcp(1).flags(ACK), 6)?, OLD);
            assert!(site.noted()?.tcp() > 0);
            // A reset ends nothing for who resumes.
            assert_eq!(site.send(&tcp(2).flags(RST), 1_000_003)?, NEW);
            assert_eq!(site.send(&tcp(2).flags(ACK), 1_000_004)?, NEW);
        }
    }
    Ok(())
}

#[test]
fn datagrams_in_the_window_are_recorded_at_home_and_those_after_it_move() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut site = Site::new(0, 0)?;
    let udp = |from, vip, number| Packet::udp(&on_port(from, number), &at(vip, PORT));
    for (from, vip) in both() {
        assert_eq!(site.send(&udp(from, vip, 1), 0)?, OLD);
        assert_eq!(site.send(&udp(from, vip, 1), 0)?, OLD);
    }
    assert_eq!(site.records(), 2);
    assert!(site.noted()?.udp() > 0);
    site.say(SlotWord::new(NEW, OLD, NEW, SlotWord::TCP | SlotWord::UDP))?;
    for (from, vip) in both() {
        assert_eq!(site.send(&udp(from, vip, 1), 0)?, OLD, "recorded in the window");
        assert_eq!(site.send(&udp(from, vip, 2), 0)?, NEW, "new after it");
    }
    assert_eq!(site.records(), 2);
    Ok(())
}

#[test]
fn records_follow_a_flow_through_further_changes_and_not_to_the_dead() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut site = Site::new(0, 0)?;
    let tcp = |from, vip, number| Packet::tcp(&on_port(from, number), &at(vip, PORT));
    for (from, vip) in both() {
        assert_eq!(site.send(&tcp(from, vip, 1).flags(SYN), 9)?, NEW);
        assert_eq!(site.send(&tcp(from, vip, 1).flags(ACK), 10)?, NEW);
    }
    // New flows go to a third; those at the base and at the second stay. And back to where it began.
    for cur in [THIRD, OLD] {
        site.say(SlotWord::new(cur, OLD, OLD, SlotWord::TCP))?;
        for (from, vip) in both() {
            assert_eq!(site.send(&tcp(from, vip, 1).flags(ACK), 11)?, NEW);
            assert_eq!(site.send(&tcp(from, vip, 2).flags(ACK), 11)?, OLD);
            assert_eq!(site.send(&tcp(from, vip, 10 + cur).flags(SYN), 1)?, cur);
        }
    }
    let records = site.records();
    assert_eq!(records, 4, "where base and cur are one, a SYN need not be recorded");
    site.bury(NEW)?;
    for (from, vip) in both() {
        assert_eq!(
            site.send(&tcp(from, vip, 1).flags(ACK), 12)?,
            OLD,
            "nothing lives at the second any more"
        );
    }
    // The control: steady slots ask no record.
    site.say(SlotWord::steady(THIRD))?;
    for (from, vip) in both() {
        assert_eq!(site.send(&tcp(from, vip, 10 + OLD).flags(ACK), 2)?, THIRD);
    }
    Ok(())
}

#[test]
fn a_record_is_found_by_its_mark_also_by_the_next_program_and_forgotten_with_it() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let site = Site::new(0, 0)?;
    for (from, vip) in both() {
        let packet = Packet::tcp(&on_port(from, 1), &at(vip, PORT));
        assert_eq!(site.send(&packet.flags(SYN), 9)?, NEW);
    }
    let Kernel::Balancer(balancer) = &site.kernel else {
        unreachable!()
    };
    let marks = |balancer: &Balancer| -> Result<u32> {
        let words =
            (0..balancer.flow_marks.entries()).map(|index| Ok(balancer.flow_marks.load(index, 0)?.count_ones()));
        words.sum()
    };
    assert_eq!(marks(balancer)?, 2);

    let next = Kernel::balancer(&site.tables)?;
    let Kernel::Balancer(taken) = &next else { unreachable!() };
    let goes = |kernel: &Kernel, from: &str, vip: &str| -> Result<u16> {
        let packet = Packet::tcp(&on_port(from, 1), &at(vip, PORT)).flags(ACK);
        let ran = kernel.run(&numbered(&packet, 10))?;
        let way = site
            .ways
            .iter()
            .position(|way| ran.frame[..14] == way.carries(&packet)[..14]);
        Ok(way.expect("to a backend") as u16 + 1)
    };
    for (from, vip) in both() {
        assert_eq!(goes(&next, from, vip)?, OLD, "the twin: it knows no record");
    }
    taken.take_records(balancer)?;
    assert!(marks(taken)? >= 2);
    for (from, vip) in both() {
        assert_eq!(goes(&next, from, vip)?, NEW);
    }
    taken.forget_marks()?;
    assert_eq!(marks(taken)?, 0);
    for (from, vip) in both() {
        assert_eq!(goes(&next, from, vip)?, OLD);
    }
    Ok(())
}

#[test]
fn connections_of_a_client_with_affinity_live_where_each_began() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let site = Site::new(feature::AFFINITY, VipMeta::CLIENT_AFFINITY)?;
    for (from, vip) in both() {
        let tcp = |number| Packet::tcp(&on_port(from, number), &at(vip, PORT));
        assert_eq!(site.send(&tcp(1).flags(SYN), 9)?, NEW);
        assert_eq!(
            site.send(&tcp(2).flags(ACK), 9)?,
            OLD,
            "another connection of the client"
        );
        assert_eq!(site.send(&tcp(1).flags(ACK), 10)?, NEW);
    }
    Ok(())
}
