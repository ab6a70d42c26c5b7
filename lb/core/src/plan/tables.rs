//! Lookup tables in slot memory: built once per set, shared by content.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use xdp_prog::{
    abi::{MAX_TABLE_SLOTS, MIN_TABLE_SLOTS, SEGMENT_UNITS, SLOTS_PER_WORD, TableUnit, UNIT_SLOTS},
    hash,
};

use super::{Planning, books::BackendState, error::PlanError, image::table_place, write::MapId};
use crate::{
    desired::{BackendId, BackendSet, Desired, Vip, VipKey},
    maglev,
    slots::Blocks,
};

/// log2 of the units of the largest table.
const MAX_UNITS_LOG2: u32 = (MAX_TABLE_SLOTS / UNIT_SLOTS).trailing_zeros();

/// A lookup table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// Where it begins in slot memory.
    pub unit: TableUnit,
    /// Its slots.
    pub slots: usize,
}

impl Table {
    /// Where the table of sets without a backend is: all slots `NONE`.
    pub const EMPTY: Self = Self {
        unit: TableUnit(0),
        slots: MIN_TABLE_SLOTS,
    };

    fn units_log2(self) -> u32 {
        (self.slots / UNIT_SLOTS).trailing_zeros()
    }
}

/// A set and the size of its table, ordered by a digest so that long equal prefixes of members cost nothing.
#[derive(Clone, Debug)]
pub(super) struct SetKey {
    pub(super) set: Arc<BackendSet>,
    slots: usize,
    digest: u64,
}

impl SetKey {
    fn new(set: Arc<BackendSet>, slots: usize) -> Self {
        let digest = set.members.iter().fold(0, |digest, member| {
            let name = member
                .backend
                .0
                .bytes()
                .fold(digest, |hash, byte| hash::mix(hash ^ u64::from(byte)));
            hash::mix(name ^ u64::from(member.weight) << 8)
        });
        Self { set, slots, digest }
    }
}

impl Ord for SetKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.digest, self.slots)
            .cmp(&(other.digest, other.slots))
            .then_with(|| {
                if Arc::ptr_eq(&self.set, &other.set) {
                    Ordering::Equal
                } else {
                    self.set.cmp(&other.set)
                }
            })
    }
}

impl PartialOrd for SetKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for SetKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for SetKey {}

/// Which tables there are, and who uses them.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    /// Table of each set, and VIPs that use it.
    sets: BTreeMap<SetKey, (Table, u32)>,
    /// Digest of each table's content, and sets that use it.
    tables: BTreeMap<Table, (u64, u32)>,
    by_content: BTreeMap<(usize, u64), Vec<Table>>,
    units: Blocks,
    max_segments: u32,
}

impl Lookup {
    pub(super) fn new(max_segments: u32) -> Self {
        Self {
            sets: BTreeMap::new(),
            tables: BTreeMap::new(),
            by_content: BTreeMap::new(),
            units: Blocks::new(MAX_UNITS_LOG2),
            max_segments,
        }
    }

    /// Distinct tables in use; the empty one only counts where there is a use for it.
    pub(super) fn tables(&self) -> usize {
        self.tables.len()
    }

    /// VIPs that share a table.
    pub(super) fn shared_by(&self, table: Table) -> usize {
        self.sets
            .values()
            .filter(|(other, _)| *other == table)
            .map(|(_, vips)| *vips as usize)
            .sum()
    }

    /// VIPs of every table.
    pub(super) fn sharing(&self) -> BTreeMap<Table, usize> {
        let mut sharing = BTreeMap::new();
        self.sets
            .values()
            .for_each(|(table, vips)| *sharing.entry(*table).or_default() += *vips as usize);
        sharing
    }

    /// Units that have an owner, the empty table's included.
    pub(super) fn units_in_use(&self) -> u32 {
        self.units.len() - self.units.free()
    }

    /// One VIP less uses the set's table. The caller has waited for a grace period.
    pub(super) fn release(&mut self, key: &SetKey) {
        let Some((table, vips)) = self.sets.get_mut(key) else {
            return;
        };
        let table = *table;
        *vips -= 1;
        if *vips > 0 {
            return;
        }
        self.sets.remove(key);
        let Some((digest, sets)) = self.tables.get_mut(&table) else {
            return;
        };
        let digest = *digest;
        *sets -= 1;
        if *sets > 0 {
            return;
        }
        self.tables.remove(&table);
        if let Some(same) = self.by_content.get_mut(&(table.slots, digest)) {
            same.retain(|other| *other != table);
            if same.is_empty() {
                self.by_content.remove(&(table.slots, digest));
            }
        }
        if table != Table::EMPTY {
            self.units.release(table.unit.0, table.units_log2());
        }
    }
}

impl Planning<'_> {
    /// The table that a VIP's flows go by, built if there is none like it; the VIP counts as a user from here on.
    pub(super) fn acquire_table(
        &mut self,
        key: VipKey,
        vip: &Vip,
        at_least: usize,
    ) -> Result<(SetKey, Table), PlanError> {
        let slots = match vip.set.table_slots {
            Some(slots) => slots,
            None => maglev::default_slots(vip.set.members.len()).max(at_least),
        };
        let seen = (Arc::as_ptr(&vip.set).addr(), slots);
        let set = match self.set_keys.get(&seen) {
            Some(set) => set.clone(),
            None => {
                check_set(key, &vip.set, slots, self.desired)?;
                let set = SetKey::new(vip.set.clone(), slots);
                // An equal set that is known stands in for it: from here on they compare by where they stand.
                let known = self
                    .books
                    .lookup
                    .sets
                    .get_key_value(&set)
                    .map(|(known, _)| known.clone());
                let set = known.unwrap_or(set);
                self.set_keys.insert(seen, set.clone());
                set
            }
        };
        if let Some((table, vips)) = self.books.lookup.sets.get_mut(&set) {
            *vips += 1;
            return Ok((set, *table));
        }
        let table = self.table_of(key, &set)?;
        self.books.lookup.sets.insert(set.clone(), (table, 1));
        Ok((set, table))
    }

    fn table_of(&mut self, key: VipKey, set: &SetKey) -> Result<Table, PlanError> {
        if self.books.lookup.units.is_empty() {
            self.add_segment();
            self.books.lookup.units.take(0);
        }
        let words = build(&set.set, set.slots, &self.books.backends);
        let slots = words.len() * SLOTS_PER_WORD;
        let digest = words.iter().fold(0, |digest, word| hash::mix(digest ^ word));
        let same = self.books.lookup.by_content.get(&(slots, digest)).into_iter().flatten();
        if let Some(table) = same
            .copied()
            .find(|table| self.draft.image().table(table.unit, slots) == words)
        {
            self.summary.tables_shared += 1;
            if let Some((_, sets)) = self.books.lookup.tables.get_mut(&table) {
                *sets += 1;
            }
            return Ok(table);
        }
        let table = if words.iter().all(|word| *word == 0) {
            Table::EMPTY
        } else {
            let unit = self
                .take_units((slots / UNIT_SLOTS).trailing_zeros())
                .ok_or(PlanError::SlotMemoryFull {
                    vip: key,
                    slots,
                    segments: self.books.lookup.max_segments,
                })?;
            let (segment, word) = table_place(unit);
            self.draft.fill(MapId::LookupTables, segment, word, words.into());
            self.summary.tables_built += 1;
            Table { unit, slots }
        };
        self.books.lookup.tables.insert(table, (digest, 1));
        self.books
            .lookup
            .by_content
            .entry((slots, digest))
            .or_default()
            .push(table);
        Ok(table)
    }

    /// Free units, or units of a new segment, or at last those that this plan has stopped using.
    fn take_units(&mut self, log2: u32) -> Option<TableUnit> {
        loop {
            if let Some(unit) = self.books.lookup.units.take(log2) {
                return Some(TableUnit(unit));
            }
            if self.draft.image().segments() < self.books.lookup.max_segments {
                self.add_segment();
            } else if !self.reclaim() {
                return None;
            }
        }
    }

    fn add_segment(&mut self) {
        self.draft.add_segment();
        self.books.lookup.units.grow(SEGMENT_UNITS as u32);
    }
}

fn check_set(vip: VipKey, set: &BackendSet, slots: usize, desired: &Desired) -> Result<(), PlanError> {
    if !maglev::is_table_size(slots) {
        return Err(PlanError::TableSize { vip, slots });
    }
    if let Some(pair) = set.members.windows(2).find(|pair| pair[0].backend >= pair[1].backend) {
        return Err(PlanError::MembersNotSorted {
            vip,
            backend: pair[1].backend.clone(),
        });
    }
    let takers = set.members.iter().filter(|member| member.weight > 0).count();
    if takers > slots {
        return Err(PlanError::TableTooSmall { vip, slots, takers });
    }
    match set
        .members
        .iter()
        .find(|member| !desired.backends.contains_key(&member.backend))
    {
        Some(member) => Err(PlanError::UnknownBackend {
            vip,
            backend: member.backend.clone(),
        }),
        None => Ok(()),
    }
}

/// The words of a set's table. A set without weights gets the empty table, whatever its size.
fn build(set: &BackendSet, slots: usize, backends: &BTreeMap<BackendId, BackendState>) -> Vec<u64> {
    if set.members.iter().all(|member| member.weight == 0) {
        return vec![0; MIN_TABLE_SLOTS / SLOTS_PER_WORD];
    }
    let index = |id: &BackendId| backends.get(id).map_or(0, |backend| u64::from(backend.index.0));
    let indexes: Vec<u64> = set.members.iter().map(|member| index(&member.backend)).collect();
    let pack = |positions: &[u16]| {
        positions.iter().rev().fold(0, |word, position| {
            word << 16 | indexes.get(usize::from(*position)).unwrap_or(&0)
        })
    };
    maglev::build(&set.members, slots)
        .chunks_exact(SLOTS_PER_WORD)
        .map(pack)
        .collect()
}
