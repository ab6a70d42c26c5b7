//! The books of a planner, from maps that an earlier process wrote: all that was planned before is gone, and the maps alone say what
//! stands where.
//!
//! Never writes, and never believes more than the maps say. What they say of a VIP is compared with what is desired of it: where that
//! is the same, the books say so, and the next plan has nothing to do there. Where it is not, or where a plan was interrupted
//! half-way, the books have a stand-in that equals nothing, and the next plan replaces it as it replaces any other state.
//!
//! Backends are known by the address that their line names. A line of an address that nobody desires belongs to a stand-in as well,
//! whom the next plan forgets when no table names it any more. Maps that contradict themselves are refused: there is nothing to go
//! on from.
//!
//! Slots in transit go on. Since when they are, and whom records may name, the maps do not say: so they count from now, which ends
//! them later and never too early, and whoever has a line may be named.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use xdp_prog::abi::{
    BackendIndex, BackendLine, Config, KeyV4, KeyV6, SEGMENT_UNITS, SetRef, SlotWord, VipIndex, VipMeta, WAYS_V4,
    WAYS_V6, setting,
};

use super::{
    Image, MapId, Planner, Table,
    books::{BackendState, Indexes, VipState},
    entries::EntryKey,
    image::slots_of,
    rates,
    schedules::only_slot,
    tables::{SetKey, build, check_set, digest_of, pack},
    transit,
    vips::{ALLOWED_SOURCES, LIMITS, PACKET_RATE, SCHEDULES, SYN_RATE, meta_of},
};
use crate::{
    config::Capacity,
    desired::{BackendId, BackendSet, Desired, Limits, Member, Protocol, Rate, Vip, VipKey},
    maglev::{self, base_slot},
    match_table::Place,
    nexthop_line,
    ranges::RangeSet,
};

/// How the maps contradict themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// An entry that no packet finds, or that is no VIP's.
    #[error("{map}: the entry in way {way} of bucket {bucket} is not one of ours")]
    Entry {
        /// Which match table.
        map: MapId,
        /// Which bucket.
        bucket: u32,
        /// Which of its entries.
        way: u32,
    },
    /// Two VIPs with one position, or one beyond the maps' ends.
    #[error("VIP position {index} is given twice, or there is none such")]
    Vip {
        /// The position.
        index: u32,
    },
    /// A meta word with bits of nobody's making.
    #[error("the entry of VIP position {index} says what this version does not know")]
    Meaning {
        /// The position.
        index: u32,
    },
    /// A slot in transit with bits of nobody's making.
    #[error("slot {slot} of the lookup table at unit {unit} says what this version does not know")]
    Slot {
        /// Where the table begins.
        unit: u32,
        /// Which of its slots.
        slot: usize,
    },
    /// A lookup table beyond slot memory, or two that overlap.
    #[error("a lookup table of {slots} slots at unit {unit} overlaps another, or lies outside of slot memory")]
    Table {
        /// Where it begins.
        unit: u32,
        /// Its slots.
        slots: usize,
    },
    /// Candidates of a scheduler beyond slot memory, or that overlap something.
    #[error("the candidates of a scheduler at unit {unit} overlap something, or lie outside of slot memory")]
    Schedule {
        /// Where they begin.
        unit: u32,
    },
    /// A slot names a backend beyond the maps' ends.
    #[error("a slot names backend position {index}, and there is none such")]
    Backend {
        /// The position.
        index: u16,
    },
    /// Something that should be a range set is none.
    #[error("the range set at {offset} is none, or overlaps another")]
    Ranges {
        /// Where it begins.
        offset: u32,
    },
}

impl Planner {
    /// For maps made with this capacity and program configuration, as `image` found them at a tick; no packet that saw what stood
    /// before the last write is on its way any more. If they say what is `desired`, the next plan for it is empty.
    ///
    /// # Errors
    ///
    /// When the maps contradict themselves, which no prefix of plans does.
    pub fn adopt(
        capacity: &Capacity,
        config: &Config,
        hz: u32,
        (image, now): (Image, u32),
        desired: &Desired,
    ) -> Result<Self, AdoptError> {
        let mut planner = Self::new(capacity, config, hz);
        planner.image = image;
        let found = planner.find_entries()?;
        planner.adopt_settings()?;
        planner.adopt_backends(desired, &found)?;
        planner.adopt_vips(desired, found, now)?;
        planner.find_loose_options();
        planner.entries.commit();
        planner.books.commit();
        Ok(planner)
    }

    /// Takes in the match tables; what they say of every VIP. An entry that was being moved stands twice: the one that packets find
    /// first stays.
    fn find_entries(&mut self) -> Result<BTreeMap<VipKey, VipMeta>, AdoptError> {
        let mut vips = BTreeMap::new();
        let mut places: BTreeMap<EntryKey, Vec<Place>> = BTreeMap::new();
        let mut metas = BTreeMap::new();
        for (map, place, key, meta) in ways(&self.image) {
            let wrong = AdoptError::Entry {
                map,
                bucket: place.bucket,
                way: place.way,
            };
            let (address, vip) = meaning(key).ok_or(wrong)?;
            places.entry(key).or_default().push(place);
            let meta = VipMeta(meta & !VipMeta::OVERFLOW);
            if *metas.entry(key).or_insert(meta) != meta {
                return Err(wrong);
            }
            match vip {
                Some(vip) => drop(vips.insert(vip, meta)),
                None => self.books.set_address(address, Some(meta.has(VipMeta::OWN_ADDRESS))),
            }
        }
        for (key, mut places) in places {
            let choices = self.entries.choices(key);
            let turn = |place: &Place| choices.iter().position(|bucket| *bucket == place.bucket);
            places.sort_by_key(|place| (turn(place).unwrap_or(choices.len()), place.way));
            let (map, clears) = match key {
                EntryKey::V4(_) => (MapId::VipsV4, [0, 1, 2, 3]),
                EntryKey::V6(_) => (MapId::VipsV6, [2, 6, 0, 0]),
            };
            for (number, place) in places.into_iter().enumerate() {
                if number > 0 {
                    self.books.leftovers.ways.push((map, place, clears[place.way as usize]));
                } else if !self.entries.found(key, place) {
                    let Place { bucket, way } = place;
                    return Err(AdoptError::Entry { map, bucket, way });
                }
            }
        }
        Ok(vips)
    }

    fn adopt_settings(&mut self) -> Result<(), AdoptError> {
        for index in [
            setting::DENIED_SOURCES,
            setting::TUNNEL_SOURCES,
            setting::TUNNEL_VIPS,
            setting::TUNNEL_LOCALS,
            setting::TUNNEL_DENIED,
        ] {
            let reference = SetRef(self.image.load(MapId::Settings, index, 0));
            self.books.settings[index as usize] = self.adopt_ranges(reference)?;
        }
        Ok(())
    }

    /// One user more of the set that a reference names.
    fn adopt_ranges(&mut self, reference: SetRef) -> Result<Option<Arc<RangeSet>>, AdoptError> {
        if !reference.is_present() {
            return Ok(None);
        }
        let offset = reference.offset();
        let wrong = AdoptError::Ranges { offset };
        let end = offset as usize + reference.padded_len() as usize;
        let ranges = self.image.ranges().get(offset as usize..end).ok_or(wrong)?;
        let set = Arc::new(RangeSet::from_padded(ranges).ok_or(wrong)?);
        let sets = &mut self.books.range_sets;
        match sets.sets.get_mut(&set) {
            Some((known, users)) if *known == offset => *users += 1,
            Some(_) => return Err(wrong),
            None if sets.blocks.take_at(offset, set.padded_log2()) => {
                sets.sets.insert(Arc::clone(&set), (offset, 1));
            }
            None => return Err(wrong),
        }
        Ok(Some(set))
    }

    /// Gives every line an owner, and every position that a table names.
    fn adopt_backends(&mut self, desired: &Desired, found: &BTreeMap<VipKey, VipMeta>) -> Result<(), AdoptError> {
        let mut at: BTreeMap<IpAddr, VecDeque<&BackendId>> = BTreeMap::new();
        for (id, backend) in desired.backends.iter().chain(&desired.departed) {
            at.entry(backend.address).or_default().push_back(id);
        }
        let end = self.capacity.backend_lines();
        let named = self.named_backends(found)?;
        let mut taken = BTreeSet::new();
        for index in 1..end {
            let line = self.image.line(index);
            if line == BackendLine::default() && !named.contains(&(index as u16)) {
                continue;
            }
            let address = nexthop_line::address_of(&line).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
            let id = at.get_mut(&address).and_then(VecDeque::pop_front).cloned();
            let id = id.unwrap_or_else(|| stand_in("backend", index));
            let index = BackendIndex(index as u16);
            taken.insert(u32::from(index.0));
            self.books.backends.insert(
                id.clone(),
                BackendState {
                    index,
                    address,
                    has_departed: false,
                },
            );
            self.books.backend_ids.insert(index, id);
        }
        self.books.backend_indexes = Indexes::with(1, end, &taken);
        Ok(())
    }

    /// Positions that the tables in use name.
    fn named_backends(&self, found: &BTreeMap<VipKey, VipMeta>) -> Result<BTreeSet<u16>, AdoptError> {
        let tables: BTreeSet<Table> = found.values().map(|meta| table_of(*meta)).collect();
        let mut named = BTreeSet::new();
        for table in tables {
            let (unit, slots) = (table.unit.0, table.slots);
            if table.is_wide {
                let words = transit::words(&self.image, table).into_iter().map(SlotWord);
                for (word, slot) in words.clone().zip(0..) {
                    let is_known = word.flags() & !(SlotWord::TCP | SlotWord::UDP | SlotWord::LEARNING) == 0;
                    is_known.then_some(()).ok_or(AdoptError::Slot { unit, slot })?;
                }
                named.extend(words.flat_map(|word| [word.cur(), word.base(), word.udp_base()]));
            } else {
                named.extend(slots_of(self.image.table(table.unit, slots)));
            }
            if !self.image.holds(table) {
                return Err(AdoptError::Table { unit, slots });
            }
        }
        named.remove(&BackendIndex::NONE.0);
        match named.last() {
            Some(index) if u32::from(*index) >= self.capacity.backend_lines() => {
                Err(AdoptError::Backend { index: *index })
            }
            Some(_) | None => Ok(named),
        }
    }

    fn adopt_vips(&mut self, desired: &Desired, found: BTreeMap<VipKey, VipMeta>, now: u32) -> Result<(), AdoptError> {
        self.books
            .lookup
            .units
            .grow(self.image.segments() * SEGMENT_UNITS as u32);
        // The empty table's.
        self.books.lookup.units.take(0);
        let mut built = Built::default();
        let mut tables = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for (key, meta) in found {
            let (VipIndex(index), table) = (meta.vip(), table_of(meta));
            if index >= self.capacity.vips || !taken.insert(index) {
                return Err(AdoptError::Vip { index });
            }
            if table != Table::EMPTY && tables.insert(table) {
                let free = self.books.lookup.units.take_at(table.unit.0, table.units_log2());
                let (unit, slots) = (table.unit.0, table.slots);
                free.then_some(()).ok_or(AdoptError::Table { unit, slots })?;
                if table.is_wide {
                    self.books.find_wide(table, now);
                }
            } else if table.is_wide {
                self.books.lookup.use_table(table);
            }
            let state = self.adopt_vip(key, meta, desired, &mut built)?;
            self.books.set_vip(key, Some(state));
        }
        self.books.vip_indexes = Indexes::with(0, self.capacity.vips, &taken);
        Ok(())
    }

    fn adopt_vip(
        &mut self,
        key: VipKey,
        meta: VipMeta,
        desired: &Desired,
        built: &mut Built,
    ) -> Result<VipState, AdoptError> {
        let (index, table) = (meta.vip(), table_of(meta));
        let vip = desired.vips.get(&key);
        let set = vip.and_then(|vip| self.recognise(key, vip, table, desired, built));
        let recognised = set.is_some();
        let set = set.unwrap_or_else(|| nobody("table", table.unit.0, table.slots));
        let set = self.books.lookup.known(set);
        match self.books.lookup.sets.get_mut(&set) {
            // It has its table by itself.
            _ if table.is_wide => {}
            Some((_, vips)) => *vips += 1,
            None => {
                let digest = digest_of(self.image.table(table.unit, table.slots));
                self.books.lookup.note_set(table, digest);
                self.books.lookup.sets.insert(set.clone(), (table, 1));
            }
        }
        let seed = &self.config.seed;
        let wanted = vip.map(|vip| {
            let slots = wanted_slots(vip, table);
            let only = only_slot(seed, &key, vip, slots);
            (vip, SetKey::new(Arc::clone(&vip.set), None, slots, only))
        });
        let wanted = wanted.as_ref().map(|(vip, set)| (*vip, set));
        let (scheduled, is_wanted) = self.adopt_schedule(meta, key, wanted)?;
        // That of a stand-in is nobody's, so that the next plan looks at the VIP.
        let desired_set = match vip {
            Some(_) if scheduled.is_some() && !is_wanted => nobody("schedule", index.0, 0).set,
            Some(vip) if recognised => Arc::clone(&vip.set),
            Some(_) | None => Arc::clone(&set.set),
        };
        let has_options = meta.has(VipMeta::OPTIONS);
        let word = |word| {
            let word = self.image.load(MapId::VipOptions, index.0, word);
            if has_options { word } else { 0 }
        };
        let wanted = vip.map(|vip| vip.limits).unwrap_or_default();
        let mut limits = Limits {
            packets: rate_of((word(PACKET_RATE), word(PACKET_RATE + 1)), wanted.packets, self.hz),
            syns: rate_of((word(SYN_RATE), word(SYN_RATE + 1)), wanted.syns, self.hz),
        };
        let reference = SetRef(word(ALLOWED_SOURCES));
        let range_set = self.adopt_ranges(reference)?;
        if has_options && range_set.is_none() && limits == Limits::default() {
            // Half-way between two kinds of options: it has some, which are none of those that are desired.
            limits.packets = Some(other_than(wanted.packets));
        }
        let wanted = vip.and_then(|vip| vip.allowed_sources.as_ref());
        let allowed_sources = match (&range_set, wanted) {
            (Some(set), Some(wanted)) if **set == RangeSet::from_cidrs(wanted) => Some(Arc::clone(wanted)),
            // Whatever it is, it is not what is desired.
            (Some(_), None) => Some(Arc::from([])),
            (Some(_) | None, Some(_)) | (None, None) => None,
        };
        let state = VipState {
            index,
            desired_set,
            set,
            table,
            most_slots: table.slots,
            limits,
            allowed_sources,
            range_set,
            clamp_mss: meta.has(VipMeta::CLAMP_MSS),
            client_affinity: meta.has(VipMeta::CLIENT_AFFINITY),
            scheduler: vip.map(|vip| vip.scheduler).unwrap_or_default(),
            affinity_timeout_s: vip.and_then(|vip| vip.affinity_timeout_s),
            each_datagram: vip.is_some_and(|vip| vip.each_datagram),
            scheduled,
            // No packet reads it.
            keeps_datagrams: vip.is_none_or(|vip| vip.keeps_datagrams),
        };
        if meta_of(&state) != meta {
            return Err(AdoptError::Meaning { index: index.0 });
        }
        Ok(state)
    }

    /// The desired set, if the VIP's table is that set's.
    fn recognise(&self, key: VipKey, vip: &Vip, table: Table, desired: &Desired, built: &mut Built) -> Option<SetKey> {
        let slots = wanted_slots(vip, table);
        let only = only_slot(&self.config.seed, &key, vip, slots);
        let seen = (Arc::as_ptr(&vip.set).addr(), slots, only);
        let made = built.entry(seen).or_insert_with(|| {
            // Who has no position yet stands in no table.
            let mut takers = vip.set.members.iter().filter(|member| member.weight > 0);
            let known = takers.all(|member| self.books.backends.contains_key(&member.backend));
            (known && check_set(key, &vip.set, slots, desired).is_ok()).then(|| {
                // Nothing is known of health: what it changed before is one change more.
                let set = SetKey::new(Arc::clone(&vip.set), None, slots, only);
                let words = pack(&build(&set, &self.books.backends));
                (set, words)
            })
        });
        let (set, words) = made.as_ref()?;
        if table.is_wide {
            // Where new flows go is what the set says, in slots of the larger of the two.
            let (now, built): (_, Vec<u16>) = (self.image.targets(table), slots_of(words).collect());
            let at = |slot| built.get(base_slot(slot, now.len(), built.len()));
            let stands = built.len() <= now.len() && now.iter().zip(0..).all(|(cur, slot)| at(slot) == Some(cur));
            return stands.then(|| set.clone());
        }
        let stands = self.image.table(table.unit, table.slots) == words;
        let elsewhere = self
            .books
            .lookup
            .sets
            .get(set)
            .is_some_and(|(known, _)| *known != table);
        (stands && !elsewhere).then(|| set.clone())
    }

    /// Options that are no VIP's, or of a VIP that has none of that kind.
    fn find_loose_options(&mut self) {
        let metas = self.books.vips.values().map(|state| (state.index.0, meta_of(state)));
        let metas: BTreeMap<u32, VipMeta> = metas.collect();
        for index in 0..self.image.option_entries() {
            for (flag, words) in [(VipMeta::OPTIONS, LIMITS), (VipMeta::SCHEDULED, SCHEDULES)] {
                let is_used = metas.get(&index).is_some_and(|meta| meta.has(flag));
                let is_written = |word| self.image.load(MapId::VipOptions, index, word) != 0;
                if !is_used && words.clone().any(is_written) {
                    self.books.leftovers.options.push((VipIndex(index), words));
                }
            }
        }
    }
}

/// Slots of a VIP's table when it is next planned.
fn wanted_slots(vip: &Vip, table: Table) -> usize {
    let by_members = || maglev::default_slots(vip.set.members.len()).max(table.slots);
    vip.set.table_slots.unwrap_or_else(by_members)
}

/// Desired sets with the words of their tables, by where a set stands in memory and the slots asked for; `None` for what cannot be
/// built.
type Built = BTreeMap<(usize, usize, Option<usize>), Option<(SetKey, Vec<u64>)>>;

/// Somebody whom no configuration can name. People see it for as long as flows live there.
fn stand_in(what: &str, position: u32) -> BackendId {
    BackendId(format!("({what} {position} of before)").into())
}

/// A set that no configuration can name.
pub(super) fn nobody(what: &str, position: u32, slots: usize) -> SetKey {
    let member = Member {
        backend: stand_in(what, position),
        weight: 0,
    };
    let set = BackendSet {
        members: vec![member],
        table_slots: None,
    };
    SetKey::new(Arc::new(set), None, slots, None)
}

fn table_of(meta: VipMeta) -> Table {
    Table {
        unit: meta.unit(),
        slots: meta.slots(),
        is_wide: meta.has(VipMeta::TRANSIT),
    }
}

/// Every way that holds a key: where, which, and its meta word.
fn ways(image: &Image) -> impl Iterator<Item = (MapId, Place, EntryKey, u64)> {
    let v4 = image.words(MapId::VipsV4, 0).chunks_exact(2 * WAYS_V4).zip(0..);
    let v4 = v4.flat_map(|(words, bucket)| {
        (0..WAYS_V4).map(move |way| {
            let place = Place {
                bucket,
                way: way as u32,
            };
            (words[way], place, words[WAYS_V4 + way])
        })
    });
    let v4 = v4
        .filter(|(key, ..)| *key != 0)
        .map(|(key, place, meta)| (MapId::VipsV4, place, EntryKey::V4(KeyV4(key)), meta));
    let v6 = image.words(MapId::VipsV6, 0).chunks_exact(4 * WAYS_V6).zip(0..);
    let v6 = v6.flat_map(|(words, bucket)| {
        (0..WAYS_V6).map(move |way| {
            let place = Place {
                bucket,
                way: way as u32,
            };
            (&words[way * 4..way * 4 + 4], place)
        })
    });
    let v6 = v6.filter(|(words, _)| words[2] != 0).map(|(words, place)| {
        let key = KeyV6 {
            high: words[0],
            low: words[1],
            tail: words[2],
        };
        (MapId::VipsV6, place, EntryKey::V6(key), words[3])
    });
    v4.chain(v6)
}

/// What a key stands for: its address, and the VIP unless it is the address entry's; `None` for a key of nobody's making.
fn meaning(key: EntryKey) -> Option<(IpAddr, Option<VipKey>)> {
    let (address, protocol, port): (IpAddr, u8, u16) = match key {
        EntryKey::V4(key) => {
            let address = (key.0 as u32).to_ne_bytes();
            let port = u16::from_be((key.0 >> 32) as u16);
            (address.into(), (key.0 >> 48) as u8, port)
        }
        EntryKey::V6(key) => {
            let mut octets = [0; 16];
            octets[..8].copy_from_slice(&key.high.to_ne_bytes());
            octets[8..].copy_from_slice(&key.low.to_ne_bytes());
            let port = u16::from_be(key.tail as u16);
            (Ipv6Addr::from(octets).into(), (key.tail >> 16) as u8, port)
        }
    };
    let known = [Protocol::Tcp, Protocol::Udp].into_iter();
    let vip = match known.into_iter().find(|known| known.number() == protocol) {
        Some(protocol) => Some(VipKey {
            address,
            protocol,
            port,
        }),
        None if protocol == 0 && port == 0 => None,
        None => return None,
    };
    // Nothing else stands in the word.
    let again = vip.map_or_else(|| EntryKey::address(address), |vip| EntryKey::vip(&vip));
    (again == key).then_some((address, vip))
}

/// The rate that two words of options say: the desired one, if it is that.
fn rate_of((rate, burst): (u64, u64), wanted: Option<Rate>, hz: u32) -> Option<Rate> {
    match rate {
        0 => None,
        _ if rates(wanted, hz) == (rate, burst) => wanted,
        _ => Some(other_than(wanted)),
    }
}

/// A rate that is not this one.
fn other_than(wanted: Option<Rate>) -> Rate {
    let most = Rate {
        per_second: u32::MAX,
        burst: u32::MAX,
    };
    let least = Rate {
        per_second: 1,
        burst: 1,
    };
    if wanted == Some(most) { least } else { most }
}
