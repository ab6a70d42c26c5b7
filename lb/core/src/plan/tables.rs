//! Lookup tables in slot memory: built once per set, shared by content.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use xdp_prog::{
    abi::{MAX_TABLE_SLOTS, MIN_TABLE_SLOTS, SEGMENT_UNITS, SLOTS_PER_WORD, TableUnit, UNIT_SLOTS, WIDE_WORDS},
    hash,
};

use super::{Planning, books::BackendState, error::PlanError, transit::Wide, write::MapId};
use crate::{
    desired::{BackendId, BackendSet, Desired, Member, Vip, VipKey},
    health::{Health, Unfit},
    maglev,
    slots::Blocks,
};

/// log2 of the units of the largest table: a whole segment.
const MAX_UNITS_LOG2: u32 = (MAX_TABLE_SLOTS / UNIT_SLOTS * WIDE_UNITS).trailing_zeros();
/// How many times the memory of a plain table a wide one takes.
const WIDE_UNITS: usize = WIDE_WORDS * SLOTS_PER_WORD;

/// A lookup table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// Where it begins in slot memory.
    pub unit: TableUnit,
    /// Its slots.
    pub slots: usize,
    /// It has slots in transit: [`xdp_prog::abi::SlotWord`]s, and what packets noted.
    pub is_wide: bool,
}

impl Table {
    /// Where the table of sets without a backend is: all slots `NONE`.
    pub const EMPTY: Self = Self {
        unit: TableUnit(0),
        slots: MIN_TABLE_SLOTS,
        is_wide: false,
    };

    /// How many times the units of a plain table a wide one has.
    pub(super) const WIDE_TO_PLAIN: u32 = WIDE_UNITS as u32;

    /// Units that it takes.
    pub(super) fn units(self) -> u32 {
        1 << self.units_log2()
    }

    pub(super) fn units_log2(self) -> u32 {
        let width = if self.is_wide { WIDE_UNITS } else { 1 };
        (self.slots / UNIT_SLOTS * width).trailing_zeros()
    }

    /// Segment of slot memory, and word of it, where a slot of a wide table stands; what packets noted of it is the word behind.
    pub fn word(self, slot: usize) -> (u32, u32) {
        let (segment, first) = self.unit.place();
        (segment, first + (slot * WIDE_WORDS) as u32)
    }
}

/// A set, who of it takes no new flows, and the size of its table, ordered by a digest so that long equal prefixes of members cost nothing.
#[derive(Clone, Debug)]
pub(super) struct SetKey {
    pub(super) set: Arc<BackendSet>,
    pub(super) unfit: Option<Unfit>,
    slots: usize,
    /// All slots say what this one says.
    only: Option<usize>,
    digest: u64,
}

impl SetKey {
    pub(super) fn new(set: Arc<BackendSet>, unfit: Option<Unfit>, slots: usize, only: Option<usize>) -> Self {
        let digest = set.members.iter().fold(0, |digest, member| {
            let name = member
                .backend
                .0
                .bytes()
                .fold(digest, |hash, byte| hash::mix(hash ^ u64::from(byte)));
            hash::mix(name ^ u64::from(member.weight) << 8)
        });
        Self {
            set,
            unfit,
            slots,
            only,
            digest,
        }
    }

    /// Of a member.
    pub(super) fn health(&self, backend: &BackendId) -> Health {
        self.unfit
            .as_ref()
            .map_or(Health::Eligible, |unfit| unfit.health(backend))
    }
}

/// Compares those who are out of two sets; where they are the same, at no cost.
pub(super) fn compare_unfit(one: Option<&Unfit>, other: Option<&Unfit>) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) if one.is_same(other) => Ordering::Equal,
        (one, other) => one.cmp(&other),
    }
}

impl Ord for SetKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.digest, self.slots, self.only)
            .cmp(&(other.digest, other.slots, other.only))
            .then_with(|| compare_unfit(self.unfit.as_ref(), other.unfit.as_ref()))
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

/// By what a VIP has its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// As its set's plain table.
    Set(SetKey),
    /// By itself.
    Wide(Table),
}

/// Which tables there are, and who uses them.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    /// Table of each set, and VIPs that use it.
    pub(super) sets: BTreeMap<SetKey, (Table, u32)>,
    /// Digest of each table's content, and sets that use it; of a wide one, VIPs.
    tables: BTreeMap<Table, (u64, u32)>,
    /// Plain tables by slots and digest.
    by_content: BTreeMap<(usize, u64), Vec<Table>>,
    /// More about the wide ones.
    pub(super) wide: BTreeMap<Table, Wide>,
    pub(super) units: Blocks,
    max_segments: u32,
}

impl Lookup {
    pub(super) fn new(max_segments: u32) -> Self {
        Self {
            sets: BTreeMap::new(),
            tables: BTreeMap::new(),
            by_content: BTreeMap::new(),
            wide: BTreeMap::new(),
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
        if table.is_wide {
            return self.tables.get(&table).map_or(0, |(_, vips)| *vips as usize);
        }
        self.sets
            .values()
            .filter(|(other, _)| *other == table)
            .map(|(_, vips)| *vips as usize)
            .sum()
    }

    /// All tables in use.
    pub(super) fn all(&self) -> impl Iterator<Item = Table> {
        self.tables.keys().copied()
    }

    /// Plain tables whose content may be the same.
    fn alike(&self, slots: usize, digest: u64) -> Vec<Table> {
        self.by_content.get(&(slots, digest)).cloned().unwrap_or_default()
    }

    /// One set more uses a plain table, which may be new.
    pub(super) fn note_set(&mut self, table: Table, digest: u64) {
        let (_, sets) = self.tables.entry(table).or_insert((digest, 0));
        *sets += 1;
        if *sets == 1 {
            self.by_content.entry((table.slots, digest)).or_default().push(table);
        }
    }

    /// One user more.
    pub(super) fn use_table(&mut self, table: Table) {
        if let Some((_, users)) = self.tables.get_mut(&table) {
            *users += 1;
        }
    }

    /// A new wide table, with one user. Nobody finds it by its content.
    pub(super) fn add_wide(&mut self, table: Table) {
        self.tables.insert(table, (0, 1));
    }

    fn forget_content(&mut self, table: Table, digest: u64) {
        let content = (table.slots, digest);
        if let Some(same) = self.by_content.get_mut(&content) {
            same.retain(|other| *other != table);
            if same.is_empty() {
                self.by_content.remove(&content);
            }
        }
    }

    /// VIPs of every table.
    pub(super) fn sharing(&self) -> BTreeMap<Table, usize> {
        let mut sharing = BTreeMap::new();
        self.sets
            .values()
            .for_each(|(table, vips)| *sharing.entry(*table).or_default() += *vips as usize);
        for table in self.wide.keys() {
            sharing.insert(*table, self.shared_by(*table));
        }
        sharing
    }

    /// Units that have an owner, the empty table's included.
    pub(super) fn units_in_use(&self) -> u32 {
        self.units.len() - self.units.free()
    }

    pub(super) fn free_units(&self) -> u32 {
        self.units.free()
    }

    pub(super) fn max_segments(&self) -> u32 {
        self.max_segments
    }

    /// Whether a table is wide and has no slot in transit any more.
    pub(super) fn is_over(&self, table: Table) -> bool {
        self.wide.get(&table).is_some_and(|wide| wide.is_over)
    }

    /// The equal set that is known, where there is one: long lists are kept once, and from here on they compare by where they stand.
    pub(super) fn known(&self, set: SetKey) -> SetKey {
        let known = self.sets.get_key_value(&set).map(|(known, _)| known.clone());
        known.unwrap_or(set)
    }

    /// Nobody reads these units any more.
    pub(super) fn release_units(&mut self, unit: TableUnit, log2: u32) {
        self.units.release(unit.0, log2);
    }

    /// One VIP less has this. The caller has waited for a grace period.
    pub(super) fn let_go(&mut self, hold: &Hold) {
        match hold {
            Hold::Set(set) => self.release(set),
            Hold::Wide(table) => self.release_table(*table),
        }
    }

    /// One VIP less uses the set's table. The caller has waited for a grace period.
    fn release(&mut self, key: &SetKey) {
        let Some((table, vips)) = self.sets.get_mut(key) else {
            return;
        };
        let table = *table;
        *vips -= 1;
        if *vips > 0 {
            return;
        }
        self.sets.remove(key);
        self.release_table(table);
    }

    /// One user of the table less: a set, or a VIP if it is wide. The caller has waited for a grace period.
    fn release_table(&mut self, table: Table) {
        let Some((digest, users)) = self.tables.get_mut(&table) else {
            return;
        };
        let digest = *digest;
        *users -= 1;
        if *users > 0 {
            return;
        }
        self.tables.remove(&table);
        self.wide.remove(&table);
        self.forget_content(table, digest);
        if table != Table::EMPTY {
            self.units.release(table.unit.0, table.units_log2());
        }
    }
}

impl Planning<'_> {
    /// The set that a VIP wants, with the size of its table.
    pub(super) fn set_key(&mut self, key: VipKey, vip: &Vip, at_least: usize) -> Result<SetKey, PlanError> {
        let slots = match vip.set.table_slots {
            Some(slots) => slots,
            None => maglev::default_slots(vip.set.members.len()).max(at_least),
        };
        let only = self.only_slot(&key, vip, slots);
        let unfit = self.laid.of(vip);
        let seen = (Arc::as_ptr(&vip.set).addr(), unfit.map_or(0, Unfit::addr), slots, only);
        match self.set_keys.get(&seen) {
            Some(set) => Ok(set.clone()),
            None => {
                check_set(key, &vip.set, slots, self.desired)?;
                let set = SetKey::new(vip.set.clone(), unfit.cloned(), slots, only);
                let set = self.books.lookup.known(set);
                self.set_keys.insert(seen, set.clone());
                Ok(set)
            }
        }
    }

    /// The plain table of a set, built if there is none like it; the VIP counts as a user from here on.
    pub(super) fn acquire_table(&mut self, key: VipKey, set: &SetKey) -> Result<Table, PlanError> {
        if let Some((table, vips)) = self.books.lookup.sets.get_mut(set) {
            *vips += 1;
            return Ok(*table);
        }
        let table = self.table_of(key, set)?;
        self.books.lookup.sets.insert(set.clone(), (table, 1));
        Ok(table)
    }

    /// The backends of a set's slots.
    pub(super) fn set_slots(&mut self, set: &SetKey) -> Arc<[u16]> {
        if let Some(slots) = self.built.get(set) {
            return slots.clone();
        }
        let slots: Arc<[u16]> = build(set, &self.books.backends).into();
        self.built.insert(set.clone(), slots.clone());
        slots
    }

    fn table_of(&mut self, key: VipKey, set: &SetKey) -> Result<Table, PlanError> {
        let words = pack(&self.set_slots(set));
        let slots = words.len() * SLOTS_PER_WORD;
        let digest = digest_of(&words);
        let same = self.books.lookup.alike(slots, digest);
        if let Some(table) = same
            .into_iter()
            .find(|table| self.draft.image().table(table.unit, slots) == words)
        {
            self.summary.tables_shared += 1;
            self.books.lookup.use_table(table);
            return Ok(table);
        }
        let table = if words.iter().all(|word| *word == 0) {
            self.make_first_segment();
            Table::EMPTY
        } else {
            let table = Table {
                unit: TableUnit(0),
                slots,
                is_wide: false,
            };
            let table = self.place_table(key, table)?;
            let (segment, word) = table.unit.place();
            self.draft.fill(MapId::LookupTables, segment, word, words.into());
            self.summary.tables_built += 1;
            table
        };
        self.books.lookup.note_set(table, digest);
        Ok(table)
    }

    /// Finds a place for a table.
    pub(super) fn place_table(&mut self, key: VipKey, table: Table) -> Result<Table, PlanError> {
        let unit = self.place_units(key, table.units_log2(), table.slots)?;
        Ok(Table { unit, ..table })
    }

    /// Finds a place of so many units; `slots` is for the error.
    pub(super) fn place_units(&mut self, key: VipKey, log2: u32, slots: usize) -> Result<TableUnit, PlanError> {
        self.make_first_segment();
        self.take_units(log2).ok_or(PlanError::SlotMemoryFull {
            vip: key,
            slots,
            segments: self.books.lookup.max_segments,
        })
    }

    /// Unit 0 is the empty table's.
    fn make_first_segment(&mut self) {
        if self.books.lookup.units.is_empty() {
            self.add_segment();
            self.books.lookup.units.take(0);
        }
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

/// A digest of a table's content.
pub(super) fn digest_of(words: &[u64]) -> u64 {
    words.iter().fold(0, |digest, word| hash::mix(digest ^ word))
}

pub(super) fn check_set(vip: VipKey, set: &BackendSet, slots: usize, desired: &Desired) -> Result<(), PlanError> {
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

/// The backends of a set's slots. A set of which nobody takes new flows gets the empty table, whatever its size.
pub(super) fn build(key: &SetKey, backends: &BTreeMap<BackendId, BackendState>) -> Vec<u16> {
    let members = &key.set.members;
    let takes = |member: &Member| member.weight > 0 && key.health(&member.backend) == Health::Eligible;
    if !members.iter().any(takes) {
        return vec![0; MIN_TABLE_SLOTS];
    }
    let index = |id: &BackendId| backends.get(id).map_or(0, |backend| backend.index.0);
    let indexes: Vec<u16> = members.iter().map(|member| index(&member.backend)).collect();
    let mut table = maglev::build(members, key.slots);
    // The set's own table, and then who stands in for those that are out of it: all other slots are as they were.
    if let Some(other) = key.unfit.as_ref().and_then(|unfit| unfit.replaced(members, &table)) {
        table = other;
    }
    for slot in &mut table {
        *slot = indexes.get(usize::from(*slot)).copied().unwrap_or_default();
    }
    if let Some(only) = key.only.and_then(|only| table.get(only).copied()) {
        table.fill(only);
    }
    table
}

/// Slots as a plain table holds them.
pub(super) fn pack(slots: &[u16]) -> Vec<u64> {
    let word = |slots: &[u16]| slots.iter().rev().fold(0, |word, slot| word << 16 | u64::from(*slot));
    slots.chunks_exact(SLOTS_PER_WORD).map(word).collect()
}
