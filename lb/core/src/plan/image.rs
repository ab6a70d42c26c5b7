//! What the maps hold: the planner's shadow of them, in plain memory.
//!
//! Never changes by itself: only by the writes of a plan, the same that the daemon carries out on the live maps.

use xdp_prog::{
    abi::{
        BackendLine, BucketV4, BucketV6, Config, MAX_BACKENDS, MAX_BUCKETS, MAX_RANGES, MAX_VIPS, Range, SEGMENT_WORDS,
        SLOTS_PER_WORD, SlotWord, TableUnit, VipOptions, feature, setting,
    },
    host::View,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    tables::Table,
    transit,
    write::{MapId, Write},
};
use crate::config::Capacity;

/// All maps that the planner writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    vips_v4: Vec<BucketV4>,
    vips_v6: Vec<BucketV6>,
    segments: Vec<Vec<u64>>,
    backends: Vec<BackendLine>,
    vip_options: Vec<VipOptions>,
    ranges: Vec<Range>,
    settings: Vec<u64>,
}

impl Image {
    /// Maps as they are when the program has just been loaded: all zeroes, no segments. Where a feature is off, the map that
    /// only it needs has one element.
    pub fn empty(capacity: &Capacity, config: &Config) -> Self {
        let buckets = |mask: u64| (mask as usize).min(MAX_BUCKETS - 1) + 1;
        let options = config.features & (feature::LIMITS | feature::SOURCE_RANGES | feature::SCHEDULERS) != 0;
        let vips = if options {
            (capacity.vips as usize).clamp(1, MAX_VIPS)
        } else {
            1
        };
        let nothing = Range {
            first_high: 0,
            first_low: 0,
            last_high: 0,
            last_low: 0,
        };
        Self {
            vips_v4: vec![BucketV4::default(); buckets(config.match_mask_v4)],
            vips_v6: vec![BucketV6::default(); buckets(config.match_mask_v6)],
            segments: Vec::new(),
            backends: vec![BackendLine::default(); (capacity.backend_lines() as usize).min(MAX_BACKENDS)],
            vip_options: vec![VipOptions::default(); vips],
            ranges: vec![nothing; (capacity.ranges as usize).clamp(1, MAX_RANGES)],
            settings: vec![0; setting::COUNT as usize],
        }
    }

    /// Maps as they were found: made with this capacity and program configuration, with so many segments. `word` says what stands
    /// in a word of an element, which is asked for once.
    ///
    /// # Errors
    ///
    /// The first of `word`.
    pub fn read<E>(
        capacity: &Capacity,
        config: &Config,
        segments: u32,
        mut word: impl FnMut(MapId, u32, u32) -> Result<u64, E>,
    ) -> Result<Self, E> {
        let mut image = Self::empty(capacity, config);
        image.segments = vec![vec![0; SEGMENT_WORDS]; segments as usize];
        for (map, words) in MapId::ALL {
            let of_all = (image.words(map, 0).len() / words) as u32;
            // The words of a segment are its own.
            let elements = if map == MapId::LookupTables { segments } else { of_all };
            for index in 0..elements {
                let target = image.words_mut(map, index);
                for (target, position) in target.iter_mut().take(words).zip(0..) {
                    *target = word(map, index, position)?;
                }
            }
        }
        Ok(image)
    }

    /// The maps as the packet logic sees them on the host.
    pub fn view<'a>(&'a self, config: &'a Config) -> View<'a> {
        View {
            config,
            vips_v4: &self.vips_v4,
            vips_v6: &self.vips_v6,
            segments: self.segments.iter().map(Vec::as_slice).collect(),
            backends: &self.backends,
            options: &self.vip_options,
            ranges: &self.ranges,
            settings: &self.settings,
            flows: &[],
            flow_marks: &[],
            open_flows: &[],
            turns: &[],
        }
    }

    /// Carries out one write. `false`, and nothing has changed, where it goes beyond the maps' ends.
    pub fn apply(&mut self, write: &Write) -> bool {
        match write {
            Write::AddSegment(position) => {
                let next = *position as usize == self.segments.len();
                if next {
                    self.segments.push(vec![0; SEGMENT_WORDS]);
                }
                next
            }
            Write::Store {
                map,
                index,
                word,
                value,
            } => self.store(*map, *index, *word, *value),
            Write::Fill {
                map,
                index,
                word,
                values,
            } => {
                let words = self.words_mut(*map, *index);
                let target = words
                    .get_mut(*word as usize..)
                    .and_then(|words| words.get_mut(..values.len()));
                let fits = target.is_some();
                if let Some(target) = target {
                    target.copy_from_slice(values);
                }
                fits
            }
            Write::Grace
            | Write::ZeroVipCounter(_)
            | Write::ZeroBackendCounter(_)
            | Write::ZeroLimits(_)
            | Write::ForgetDatagrams(_) => true,
        }
    }

    /// One word; 0 beyond the maps' ends.
    pub fn load(&self, map: MapId, index: u32, word: u32) -> u64 {
        self.words(map, index).get(word as usize).copied().unwrap_or_default()
    }

    /// Words of an element and of all that follow it; of a segment only its own.
    pub fn words(&self, map: MapId, index: u32) -> &[u64] {
        let index = index as usize;
        match map {
            MapId::VipsV4 => words(&self.vips_v4, index),
            MapId::VipsV6 => words(&self.vips_v6, index),
            MapId::LookupTables => self.segments.get(index).map(Vec::as_slice).unwrap_or_default(),
            MapId::Backends => words(&self.backends, index),
            MapId::VipOptions => words(&self.vip_options, index),
            MapId::Ranges => words(&self.ranges, index),
            MapId::Settings => words(&self.settings, index),
        }
    }

    /// Words of the plain lookup table of `slots` slots at `unit`; empty where there is no such segment.
    pub fn table(&self, unit: TableUnit, slots: usize) -> &[u64] {
        let (segment, word) = unit.place();
        let words = self.words(MapId::LookupTables, segment);
        words
            .get(word as usize..word as usize + slots / SLOTS_PER_WORD)
            .unwrap_or_default()
    }

    pub(super) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// VIPs that there is room for options of.
    pub(super) fn option_entries(&self) -> u32 {
        self.vip_options.len() as u32
    }

    /// Whether a table lies within a segment that there is.
    pub(super) fn holds(&self, table: Table) -> bool {
        if table.is_wide {
            return transit::words(self, table).len() == table.slots;
        }
        self.table(table.unit, table.slots).len() == table.slots / SLOTS_PER_WORD
    }

    /// Where new flows of each slot of a table go.
    pub(super) fn targets(&self, table: Table) -> Vec<u16> {
        if table.is_wide {
            let words = transit::words(self, table);
            return words.into_iter().map(|word| SlotWord(word).cur()).collect();
        }
        slots_of(self.table(table.unit, table.slots)).collect()
    }

    pub(super) fn segments(&self) -> u32 {
        self.segments.len() as u32
    }

    pub(super) fn line(&self, index: u32) -> BackendLine {
        self.backends.get(index as usize).copied().unwrap_or_default()
    }

    pub(super) fn store(&mut self, map: MapId, index: u32, word: u32, value: u64) -> bool {
        let target = self.words_mut(map, index).get_mut(word as usize);
        let fits = target.is_some();
        if let Some(target) = target {
            *target = value;
        }
        fits
    }

    /// Takes an added segment back.
    pub(super) fn drop_segment(&mut self) {
        self.segments.pop();
    }

    fn words_mut(&mut self, map: MapId, index: u32) -> &mut [u64] {
        let index = index as usize;
        match map {
            MapId::VipsV4 => words_mut(&mut self.vips_v4, index),
            MapId::VipsV6 => words_mut(&mut self.vips_v6, index),
            MapId::LookupTables => self.segments.get_mut(index).map(Vec::as_mut_slice).unwrap_or_default(),
            MapId::Backends => words_mut(&mut self.backends, index),
            MapId::VipOptions => words_mut(&mut self.vip_options, index),
            MapId::Ranges => words_mut(&mut self.ranges, index),
            MapId::Settings => words_mut(&mut self.settings, index),
        }
    }
}

/// Slots of a table's words.
pub(super) fn slots_of(words: &[u64]) -> impl Iterator<Item = u16> {
    words
        .iter()
        .flat_map(|word| (0..SLOTS_PER_WORD).map(move |slot| (word >> (slot * 16)) as u16))
}

// Every type of the ABI is made of aligned words, so both casts always fit.
fn words<T: IntoBytes + Immutable>(entries: &[T], index: usize) -> &[u64] {
    let entries = entries.get(index..).unwrap_or_default();
    <[u64]>::ref_from_bytes(entries.as_bytes()).unwrap_or_default()
}

fn words_mut<T: FromBytes + IntoBytes>(entries: &mut [T], index: usize) -> &mut [u64] {
    let entries = entries.get_mut(index..).unwrap_or_default();
    <[u64]>::mut_from_bytes(entries.as_mut_bytes()).unwrap_or_default()
}
