//! One source of truth for what is in the maps: the kernel's are written from it, and the host build reads it as it is.
//!
//! Never uses lb-core: where a test finds two planners agreeing, it should not be one planner twice.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
};

use xdp_prog::{
    abi::{
        BackendLine, BucketV4, BucketV6, Candidate, Config, EntryV6, KeyV4, KeyV6, MIN_TABLE_SLOTS, Method, Range,
        SEGMENT_WORDS, SLOTS_PER_WORD, Schedule, SetRef, SlotWord, TableUnit, UNIT_SLOTS, VipIndex, VipMeta,
        VipOptions, WIDE_WORDS, number, setting,
    },
    host::View,
};

/// Buckets of either match table: so many that entries placed without moving any find room.
pub(crate) const BUCKETS: usize = 8192;
/// Entries of `BACKENDS`.
pub(crate) const BACKENDS: usize = 64;
/// Buckets of `FLOWS`.
pub(crate) const FLOW_BUCKETS: usize = 1024;
/// VIPs there is room for.
pub(crate) const VIPS: usize = 64;
/// Ranges there is room for.
pub(crate) const RANGES: usize = 4096;

/// The contents of all maps.
#[derive(Clone)]
pub(crate) struct Tables {
    pub(crate) config: Config,
    pub(crate) vips_v4: Vec<BucketV4>,
    pub(crate) vips_v6: Vec<BucketV6>,
    pub(crate) slots: Vec<u64>,
    pub(crate) backends: Vec<BackendLine>,
    pub(crate) options: Vec<VipOptions>,
    pub(crate) ranges: Vec<Range>,
    pub(crate) settings: Vec<u64>,
    /// Words of flow records; the host build's own.
    pub(crate) flows: Arc<[AtomicU64]>,
    /// Marks of their buckets, open flows and turns; the host build's own.
    pub(crate) flow_marks: Arc<[AtomicU64]>,
    pub(crate) open_flows: Arc<[AtomicU64]>,
    pub(crate) turns: Arc<[AtomicU64]>,
    /// Names of the interfaces in `PORTS`, from position 0 on.
    pub(crate) ports: Vec<&'static str>,
    next_backend: u16,
    next_vip: u32,
    next_unit: u32,
    next_range: usize,
    taken: BTreeSet<(String, u8, u16)>,
}

impl Tables {
    /// Empty tables for a program with these features.
    pub(crate) fn new(features: u64) -> Self {
        Self {
            config: Config {
                features,
                seed: [
                    0x0123_4567_89ab_cdef,
                    0xdead_beef_0bad_cafe,
                    0x1111_2222_3333_4444,
                    0xa5a5_5a5a_c3c3_3c3c,
                ],
                match_salt: 0x5eed_0000_5a17,
                match_mask_v4: BUCKETS as u64 - 1,
                match_mask_v6: BUCKETS as u64 - 1,
                flow_mask: FLOW_BUCKETS as u64 - 1,
                flow_secret: 0x0f10_0f10_0f10_0f10,
                ..Config::EMPTY
            },
            vips_v4: vec![BucketV4::default(); BUCKETS],
            vips_v6: vec![BucketV6::default(); BUCKETS],
            slots: vec![0; SEGMENT_WORDS],
            backends: vec![BackendLine::default(); BACKENDS],
            options: vec![VipOptions::default(); VIPS],
            ranges: vec![Range::PADDING; RANGES],
            settings: vec![0; setting::COUNT as usize],
            flows: (0..8 * FLOW_BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            flow_marks: (0..FLOW_BUCKETS.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            open_flows: (0..BACKENDS).map(|_| AtomicU64::new(0)).collect(),
            turns: (0..VIPS).map(|_| AtomicU64::new(0)).collect(),
            ports: Vec::new(),
            next_backend: 1,
            next_vip: 1,
            next_unit: 1,
            next_range: 0,
            taken: BTreeSet::new(),
        }
    }

    /// What the host build sees.
    pub(crate) fn view(&self) -> View<'_> {
        View {
            config: &self.config,
            vips_v4: &self.vips_v4,
            vips_v6: &self.vips_v6,
            segments: vec![&self.slots],
            backends: &self.backends,
            options: &self.options,
            ranges: &self.ranges,
            settings: &self.settings,
            flows: &self.flows,
            flow_marks: &self.flow_marks,
            open_flows: &self.open_flows,
            turns: &self.turns,
        }
    }

    /// A new backend; returns its position.
    pub(crate) fn backend(&mut self, line: BackendLine) -> u16 {
        let position = self.next_backend;
        self.next_backend += 1;
        self.backends[usize::from(position)] = line;
        position
    }

    /// A new lookup table of the smallest size in which the backends take turns.
    pub(crate) fn table(&mut self, backends: &[u16]) -> TableUnit {
        let unit = self.next_unit;
        self.next_unit += 1;
        for slot in 0..MIN_TABLE_SLOTS {
            let at = unit as usize * UNIT_SLOTS + slot;
            let backend = u64::from(backends[slot % backends.len()]);
            self.slots[at / SLOTS_PER_WORD] |= backend << (at % SLOTS_PER_WORD * 16);
        }
        TableUnit(unit)
    }

    /// Candidates (backend and weight, by position) and whose turn is when, in slot memory; the word that names them.
    pub(crate) fn schedule(&mut self, method: Method, candidates: &[(u16, u16)], turns: &[u16]) -> Schedule {
        let unit = TableUnit(self.next_unit);
        self.next_unit += 1;
        let first = unit.place().1 as usize;
        for (at, (backend, weight)) in candidates.iter().enumerate() {
            self.slots[first + at] = Candidate::new(*backend, *weight).0;
        }
        for (at, backend) in turns.iter().enumerate() {
            let word = first + candidates.len() + at / SLOTS_PER_WORD;
            self.slots[word] |= u64::from(*backend) << (at % SLOTS_PER_WORD * 16);
        }
        Schedule::new(method, unit, candidates.len(), turns.len(), 0)
    }

    /// A new wide table of the smallest size, all of whose slots say the same.
    pub(crate) fn wide_table(&mut self, slot: SlotWord) -> TableUnit {
        let width = WIDE_WORDS * SLOTS_PER_WORD;
        // Aligned to its own size, as the planner's are.
        let unit = (self.next_unit as usize).next_multiple_of(width);
        self.next_unit = (unit + width) as u32;
        let unit = TableUnit(unit as u32);
        self.set_wide(unit, slot);
        unit
    }

    /// Lets all slots of a wide table say something else.
    pub(crate) fn set_wide(&mut self, unit: TableUnit, slot: SlotWord) {
        let first = unit.place().1 as usize;
        for at in 0..MIN_TABLE_SLOTS {
            self.slots[first + at * WIDE_WORDS] = slot.0;
        }
    }

    /// A new VIP with a table of its own; returns its index. Also makes the address entry.
    pub(crate) fn vip(&mut self, address: &str, protocol: u8, port: u16, backends: &[u16]) -> u32 {
        self.vip_with(address, protocol, port, backends, 0)
    }

    /// As [`Tables::vip`], with flags of [`VipMeta`].
    pub(crate) fn vip_with(&mut self, address: &str, protocol: u8, port: u16, backends: &[u16], flags: u64) -> u32 {
        let unit = if backends.is_empty() {
            TableUnit(0)
        } else {
            self.table(backends)
        };
        let index = self.next_vip;
        self.next_vip += 1;
        self.vip_at(
            address,
            protocol,
            port,
            VipMeta::new(VipIndex(index), unit, MIN_TABLE_SLOTS, flags),
        );
        self.address(address, 0);
        index
    }

    /// As [`Tables::vip_with`]; `None` where there is a VIP on this port already, or no room for it: entries are not moved here.
    pub(crate) fn vip_once(
        &mut self,
        address: &str,
        protocol: u8,
        port: u16,
        backends: &[u16],
        flags: u64,
    ) -> Option<u32> {
        if !self.taken.insert((address.to_owned(), protocol, port)) || !self.has_room(address, 0, 0) {
            return None;
        }
        self.address(address, 0);
        self.has_room(address, protocol, port)
            .then(|| self.vip_with(address, protocol, port, backends, flags))
    }

    /// Whether there is a VIP, or room for one, at an address.
    pub(crate) fn serves(&self, address: &str) -> bool {
        self.has_room(address, 0, 0)
    }

    /// Whether an entry is there or has a free way.
    fn has_room(&self, address: &str, protocol: u8, port: u16) -> bool {
        match address.parse().expect("an address") {
            IpAddr::V4(v4) => {
                let key = KeyV4::new(v4, protocol, port);
                let [first, second, third] = key.buckets(self.config.match_salt, self.config.match_mask_v4);
                let fits = |at: u32| self.vips_v4[at as usize].keys.iter().any(|&is| is == 0 || is == key.0);
                [first, second, third].into_iter().any(fits)
            }
            IpAddr::V6(v6) => {
                let key = KeyV6::new(v6, protocol, port);
                let [first, second, third] = key.buckets(self.config.match_salt, self.config.match_mask_v6);
                let is_it = |entry: &EntryV6| [entry.high, entry.low, entry.tail] == [key.high, key.low, key.tail];
                let fits = |at: u32| {
                    self.vips_v6[at as usize]
                        .entries
                        .iter()
                        .any(|is| is.tail == 0 || is_it(is))
                };
                [first, second, third].into_iter().any(fits)
            }
        }
    }

    /// A match entry with any meta word.
    pub(crate) fn vip_at(&mut self, address: &str, protocol: u8, port: u16, meta: VipMeta) {
        match address.parse().expect("an address") {
            IpAddr::V4(v4) => self.entry_v4(KeyV4::new(v4, protocol, port), meta),
            IpAddr::V6(v6) => self.entry_v6(KeyV6::new(v6, protocol, port), meta),
        }
    }

    /// Puts another meta word in the place of a VIP's.
    pub(crate) fn replace_meta(&mut self, address: &str, protocol: u8, port: u16, meta: VipMeta) {
        let is_of = |found: u64| VipMeta(found).vip() == meta.vip();
        let keep = VipMeta::OVERFLOW;
        match address.parse().expect("an address") {
            IpAddr::V4(v4) => {
                let key = KeyV4::new(v4, protocol, port).0;
                for bucket in &mut self.vips_v4 {
                    for way in 0..bucket.keys.len() {
                        if bucket.keys[way] == key && is_of(bucket.metas[way]) {
                            bucket.metas[way] = meta.0 | bucket.metas[way] & keep;
                        }
                    }
                }
            }
            IpAddr::V6(v6) => {
                let KeyV6 { high, low, tail } = KeyV6::new(v6, protocol, port);
                for entry in self.vips_v6.iter_mut().flat_map(|bucket| &mut bucket.entries) {
                    if [entry.high, entry.low, entry.tail] == [high, low, tail] && is_of(entry.meta) {
                        entry.meta = meta.0 | entry.meta & keep;
                    }
                }
            }
        }
    }

    /// An address entry; a second one for the same address adds its flags.
    pub(crate) fn address(&mut self, address: &str, flags: u64) {
        let meta = VipMeta::new(VipIndex(0), TableUnit(0), MIN_TABLE_SLOTS, flags);
        match address.parse().expect("an address") {
            IpAddr::V4(v4) => self.entry_v4(KeyV4::address(v4), meta),
            IpAddr::V6(v6) => self.entry_v6(KeyV6::address(v6), meta),
        }
    }

    /// A set of inclusive ranges, sorted here; returns the word that names it.
    pub(crate) fn set(&mut self, ranges: &[(&str, &str)]) -> u64 {
        let parse = |address: &str| number(address.parse().expect("an address"));
        self.number_set(
            &ranges
                .iter()
                .map(|(first, last)| (parse(first), parse(last)))
                .collect::<Vec<_>>(),
        )
    }

    /// As [`Tables::set`], of numbers.
    pub(crate) fn number_set(&mut self, ranges: &[(u128, u128)]) -> u64 {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        let log2 = sorted.len().max(1).next_power_of_two().trailing_zeros();
        let offset = self.next_range;
        self.next_range += 1 << log2;
        assert!(self.next_range <= RANGES, "no room for {} ranges", sorted.len());
        for (at, (first, last)) in sorted.into_iter().enumerate() {
            self.ranges[offset + at] = Range::new(first, last);
        }
        SetRef::new(offset as u32, log2).0
    }

    /// An entry goes where it is already, else into its first bucket, else into its second; then the first one says so.
    fn entry_v4(&mut self, key: KeyV4, meta: VipMeta) {
        let [first, second, third] = key.buckets(self.config.match_salt, self.config.match_mask_v4);
        for wanted in [key.0, 0] {
            for at in [first, second, third] {
                let bucket = &mut self.vips_v4[at as usize];
                if let Some(way) = bucket.keys.iter().position(|&key| key == wanted) {
                    bucket.keys[way] = key.0;
                    bucket.metas[way] |= meta.0;
                    if at != first {
                        self.vips_v4[first as usize].metas[0] |= VipMeta::OVERFLOW;
                    }
                    return;
                }
            }
        }
        panic!("no room for {key:?}");
    }

    fn entry_v6(&mut self, key: KeyV6, meta: VipMeta) {
        let [first, second, third] = key.buckets(self.config.match_salt, self.config.match_mask_v6);
        for wanted in [[key.high, key.low, key.tail], [0, 0, 0]] {
            for at in [first, second, third] {
                let entries = &mut self.vips_v6[at as usize].entries;
                let found = entries
                    .iter_mut()
                    .find(|entry| [entry.high, entry.low, entry.tail] == wanted);
                if let Some(entry) = found {
                    let meta = entry.meta | meta.0;
                    *entry = EntryV6 {
                        high: key.high,
                        low: key.low,
                        tail: key.tail,
                        meta,
                    };
                    if at != first {
                        self.vips_v6[first as usize].entries[0].meta |= VipMeta::OVERFLOW;
                    }
                    return;
                }
            }
        }
        panic!("no room for {key:?}");
    }
}
