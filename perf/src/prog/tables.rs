//! The balancer with tables of a given size.
//!
//! Never measures. Backends are resolved next hops on the interface that test runs pretend to come from, so that every packet to a
//! VIP is sent.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use lb::datapath::{Balancer, Capacity};
use lb_core::{
    desired::{BackendId, Member},
    maglev,
};
use xdp_prog::abi::{
    BackendLine, BucketV4, BucketV6, Config, EntryV6, KeyV4, KeyV6, LineMeta, MAX_SEGMENTS, OuterHeader, SEGMENT_UNITS, TableUnit,
    UNIT_SLOTS, VipIndex, VipMeta, feature,
};

use super::wrapper::kind;

/// VIP 0 of IPv4: RFC 2544's benchmarking network.
pub(crate) const VIP_V4: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// Upper half of the VIPs of IPv6: RFC 5180's benchmarking network.
pub(crate) const VIP_V6: u64 = 0x2001_0002_0000_0000;
/// What `vipline run` turns on without being asked.
pub(crate) const DEFAULT_FEATURES: u64 = feature::DROP_MARTIANS | feature::DROP_SOURCE_IS_VIP;
/// Interface of a test run without context: loopback.
const LOOPBACK: u32 = 1;

/// What the tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// VIP addresses of each family, one VIP of each kind on it.
    pub(crate) vips: u32,
    /// Backends of each VIP.
    pub(crate) backends: u32,
    /// Slots of each lookup table.
    pub(crate) slots: usize,
    /// Every VIP has a backend set, so a table, of its own.
    pub(crate) own: bool,
    /// Bits of [`feature`].
    pub(crate) features: u64,
}

impl Shape {
    /// Backends of all VIPs together.
    pub(crate) fn all_backends(&self) -> u32 {
        if self.own { self.backends + self.vips } else { self.backends }
    }

    /// Loads the balancer and fills its tables with VIPs of these kinds (bits of [`kind`]).
    pub(crate) fn load(&self, kinds: &[u64]) -> Result<Balancer> {
        let count = |v6: u64| kinds.iter().filter(|&&kind| kind & kind::V6 == v6).count();
        let buckets = |keys: usize, ways: usize| (keys * 4 / 3).div_ceil(ways).next_power_of_two();
        let (v4, v6) = (count(0), count(kind::V6));
        let keys = |kinds: usize| if kinds == 0 { 1 } else { self.vips as usize * (kinds + 1) };
        let config = Config {
            features: self.features,
            seed: [0x8d5a_4c3b_2e1f_9071, 0x1f83_d9ab_fb41_bd6b, 0x5be0_cd19_137e_2179, 0x9b05_688c_2b3e_6c1f],
            match_salt: 0xa54f_f53a_5f1d_36f1,
            match_mask_v4: buckets(keys(v4), 4) as u64 - 1,
            match_mask_v6: buckets(keys(v6), 2) as u64 - 1,
            ..Config::EMPTY
        };
        let capacity = Capacity {
            vips: self.vips * kinds.len() as u32,
            backends: self.all_backends(),
            table_segments: MAX_SEGMENTS as u32,
            ranges: 64,
        };
        let mut balancer = Balancer::load(&config, &capacity)?;
        for backend in 1..=self.all_backends() {
            let outer = OuterHeader::v4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::from_bits(0x0a01_0000 + backend));
            let [.., high, low] = backend.to_be_bytes();
            let mut line = BackendLine::unresolved(outer);
            line.destination_mac = BackendLine::mac_word([2, 0, 0, 1, high, low], 0);
            line.source_mac = BackendLine::mac_word([2, 0, 0, 0, 0, 1], 0);
            line.meta = LineMeta::new(LineMeta::RESOLVED, 0, 0, 1_500, LOOPBACK).0;
            let [.., o0, o1, o2, o3, o4] = [0, 0, 0, line.outer[0], line.outer[1], line.outer[2], line.outer[3], line.outer[4]];
            balancer.backends.fill(
                backend,
                &[line.meta, line.destination_mac, line.source_mac, o0, o1, o2, o3, o4],
            )?;
        }
        let units = self.fill_slots(&mut balancer)?;
        let mut match_v4 = vec![BucketV4::default(); config.match_mask_v4 as usize + 1];
        let mut match_v6 = vec![BucketV6::default(); config.match_mask_v6 as usize + 1];
        let mut index = 0;
        for vip in 0..self.vips {
            let unit = units[vip as usize % units.len()];
            let v4 = Ipv4Addr::from_bits(VIP_V4 + vip);
            let v6 = Ipv6Addr::from_bits(u128::from(VIP_V6) << 64 | u128::from(vip));
            for kind in kinds {
                let protocol = if kind & kind::UDP == 0 { 6 } else { 17 };
                let meta = VipMeta::new(VipIndex(index), unit, self.slots, 0);
                index += 1;
                if kind & kind::V6 == 0 {
                    place_v4(&mut match_v4, &config, KeyV4::new(v4, protocol, 80), meta)?;
                } else {
                    place_v6(&mut match_v6, &config, KeyV6::new(v6, protocol, 80), meta)?;
                }
            }
            if kinds.iter().any(|kind| kind & kind::V6 == 0) {
                place_v4(&mut match_v4, &config, KeyV4::address(v4), VipMeta(0))?;
            }
            if kinds.iter().any(|kind| kind & kind::V6 != 0) {
                place_v6(&mut match_v6, &config, KeyV6::address(v6), VipMeta(0))?;
            }
        }
        for (index, bucket) in (0..).zip(&match_v4) {
            let words: Vec<u64> = bucket.keys.iter().chain(&bucket.metas).copied().collect();
            balancer.vips_v4.fill(index, &words)?;
        }
        for (index, bucket) in (0..).zip(&match_v6) {
            let words: Vec<u64> = bucket.entries.iter().flat_map(|e| [e.high, e.low, e.tail, e.meta]).collect();
            balancer.vips_v6.fill(index, &words)?;
        }
        Ok(balancer)
    }

    /// Builds the lookup tables one after the other and returns where they begin.
    fn fill_slots(&self, balancer: &mut Balancer) -> Result<Vec<TableUnit>> {
        let sets = if self.own { self.vips } else { 1 };
        let per_table = (self.slots / UNIT_SLOTS) as u32;
        let mut units = Vec::new();
        // Unit 0 is the empty table; large tables do not cross a segment's end.
        let mut unit = per_table;
        for set in 0..sets {
            while unit / SEGMENT_UNITS as u32 >= balancer.slots.segments() {
                balancer.slots.add_segment()?;
            }
            let members: Vec<Member> = (0..self.backends)
                .map(|position| Member {
                    backend: BackendId(format!("node-{:06}", set + position).into()),
                    weight: 1,
                })
                .collect();
            let table = maglev::build(&members, self.slots);
            for (word, slots) in (unit * UNIT_SLOTS as u32 / 4..).zip(table.chunks_exact(4)) {
                let value = slots
                    .iter()
                    .rev()
                    .fold(0, |value, &slot| value << 16 | u64::from(set as u16 + slot + 1));
                balancer.slots.store(word, value)?;
            }
            units.push(TableUnit(unit));
            unit += per_table;
        }
        Ok(units)
    }
}

fn place_v4(table: &mut [BucketV4], config: &Config, key: KeyV4, meta: VipMeta) -> Result<()> {
    let (mut key, mut meta, mut turn) = (key.0, meta.0, 0_usize);
    for _ in 0..10_000 {
        let (first, second) = KeyV4(key).buckets(config.match_salt, config.match_mask_v4);
        for bucket in [first, second] {
            let bucket = &mut table[bucket as usize];
            if let Some(way) = bucket.keys.iter().position(|&key| key == 0) {
                bucket.keys[way] = key;
                bucket.metas[way] = meta;
                return Ok(());
            }
        }
        turn = turn.wrapping_mul(5).wrapping_add(3);
        let bucket = &mut table[if turn & 4 == 0 { first } else { second } as usize];
        std::mem::swap(&mut bucket.keys[turn % 4], &mut key);
        std::mem::swap(&mut bucket.metas[turn % 4], &mut meta);
    }
    bail!("the match table does not fit")
}

fn place_v6(table: &mut [BucketV6], config: &Config, key: KeyV6, meta: VipMeta) -> Result<()> {
    let mut entry = EntryV6 { high: key.high, low: key.low, tail: key.tail, meta: meta.0 };
    let mut turn = 0_usize;
    for _ in 0..10_000 {
        let key = KeyV6 { high: entry.high, low: entry.low, tail: entry.tail };
        let (first, second) = key.buckets(config.match_salt, config.match_mask_v6);
        for bucket in [first, second] {
            let free = table[bucket as usize].entries.iter_mut().find(|entry| entry.tail == 0);
            if let Some(free) = free {
                *free = entry;
                return Ok(());
            }
        }
        turn = turn.wrapping_mul(5).wrapping_add(3);
        let bucket = &mut table[if turn & 4 == 0 { first } else { second } as usize];
        std::mem::swap(&mut bucket.entries[turn >> 1 & 1], &mut entry);
    }
    None.context("the match table does not fit")
}
