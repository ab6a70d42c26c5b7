//! A plan in the making: each write is recorded and carried out on the shadow image at once, and can be undone.

use std::collections::{BTreeMap, BTreeSet};

use xdp_prog::abi::BackendIndex;

use super::{
    image::Image,
    write::{MapId, Write},
};
use crate::match_table::Place;

pub(super) struct Draft<'a> {
    image: &'a mut Image,
    /// Lines that a packet may still be using although they say *unresolved*: no grace period has passed since.
    in_use: &'a mut BTreeSet<BackendIndex>,
    /// Ways whose entry has been copied elsewhere, and the word that clears them.
    copied: BTreeMap<(MapId, Place), u32>,
    /// Ways that a packet may still be reading although they are cleared.
    vacated: BTreeSet<(MapId, Place)>,
    writes: Vec<Write>,
    /// The writes that would undo the recorded ones, except for segments.
    undo: Vec<Write>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(image: &'a mut Image, in_use: &'a mut BTreeSet<BackendIndex>) -> Self {
        Self {
            image,
            in_use,
            copied: BTreeMap::new(),
            vacated: BTreeSet::new(),
            writes: Vec::new(),
            undo: Vec::new(),
        }
    }

    pub(super) fn image(&self) -> &Image {
        self.image
    }

    /// Stores a word, unless it stands there already.
    pub(super) fn store(&mut self, map: MapId, index: u32, word: u32, value: u64) {
        let before = self.image.load(map, index, word);
        if before != value {
            self.undo.push(Write::Store {
                map,
                index,
                word,
                value: before,
            });
            self.image.store(map, index, word, value);
            self.writes.push(Write::Store {
                map,
                index,
                word,
                value,
            });
        }
    }

    /// Fills memory that no packet reads.
    pub(super) fn fill(&mut self, map: MapId, index: u32, word: u32, values: Box<[u64]>) {
        let before = self
            .image
            .words(map, index)
            .get(word as usize..word as usize + values.len())
            .unwrap_or_default();
        self.undo.push(Write::Fill {
            map,
            index,
            word,
            values: before.into(),
        });
        let write = Write::Fill {
            map,
            index,
            word,
            values,
        };
        self.image.apply(&write);
        self.writes.push(write);
    }

    pub(super) fn add_segment(&mut self) {
        let write = Write::AddSegment(self.image.segments());
        self.image.apply(&write);
        self.undo.push(write.clone());
        self.writes.push(write);
    }

    /// A write that the image does not show.
    pub(super) fn zero(&mut self, write: Write) {
        self.writes.push(write);
    }

    /// A grace period, unless nothing has happened since the last one.
    pub(super) fn grace(&mut self) {
        self.vacated.clear();
        self.in_use.clear();
        if !matches!(self.writes.last(), Some(Write::Grace)) {
            self.writes.push(Write::Grace);
        }
    }

    /// Clears a way by this word of its bucket.
    pub(super) fn vacate(&mut self, map: MapId, place: Place, word: u32) {
        self.store(map, place.bucket, word, 0);
        self.vacated.insert((map, place));
    }

    /// Notes that the entry in a way stands elsewhere too: it may be cleared by this word when nobody can miss both.
    pub(super) fn copied(&mut self, map: MapId, place: Place, word: u32) {
        self.copied.insert((map, place), word);
    }

    /// Clears the originals of copied entries: a packet may have looked for the copy before it was there, so it must still find
    /// the original.
    pub(super) fn clear_copied(&mut self) {
        if !self.copied.is_empty() {
            self.grace();
        }
        for ((map, place), word) in std::mem::take(&mut self.copied) {
            self.vacate(map, place, word);
        }
    }

    /// Makes sure that a way is free, and that nobody reads what stood in it.
    pub(super) fn occupy(&mut self, map: MapId, place: Place) {
        if self.copied.contains_key(&(map, place)) {
            self.clear_copied();
        }
        if self.vacated.contains(&(map, place)) {
            self.grace();
        }
    }

    /// Notes that a line has become unresolved.
    pub(super) fn retire_line(&mut self, index: BackendIndex) {
        self.in_use.insert(index);
    }

    pub(super) fn line_in_use(&self, index: BackendIndex) -> bool {
        self.in_use.contains(&index)
    }

    pub(super) fn finish(self) -> Vec<Write> {
        self.writes
    }

    /// Makes the image what it was.
    pub(super) fn roll_back(mut self) {
        while let Some(write) = self.undo.pop() {
            match write {
                Write::AddSegment(_) => self.image.drop_segment(),
                write => {
                    self.image.apply(&write);
                }
            }
        }
    }
}
