//! Slot memory: the lookup tables' words, in segments that are made as they are needed.
//!
//! Never decides where a table lies. Arrays cannot grow, so the memory is an array of maps of equal segments; a segment
//! is published to the program, all slots `NONE`, by putting it into the outer array.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use aya::maps::{ArrayOfMaps, MapData};
use xdp_prog::abi::{MAX_SEGMENTS, SEGMENT_WORDS, map};

use super::{
    DatapathError, Generation,
    mapped::{Mapped, Reader, map_error},
    pins, syscall,
};

/// All segments of `LOOKUP_TABLES`.
#[derive(Debug)]
pub struct SlotMemory {
    outer: ArrayOfMaps<MapData, MapData>,
    segments: Vec<Mapped>,
    readers: Segments,
    limit: usize,
    /// The generation that new segments join.
    pins: Option<PathBuf>,
}

/// All segments for those who only read, by position; those made later appear in it.
pub(crate) type Segments = Arc<[OnceLock<Reader<u64>>]>;

impl SlotMemory {
    /// Slot memory of at most `limit` segments.
    pub(crate) fn new(outer: ArrayOfMaps<MapData, MapData>, limit: u32) -> Self {
        Self {
            outer,
            segments: Vec::new(),
            readers: (0..MAX_SEGMENTS).map(|_| OnceLock::new()).collect(),
            limit: (limit as usize).min(MAX_SEGMENTS),
            pins: None,
        }
    }

    /// The slot memory of a generation, whose outer array is `handle` too. Segments that were pinned and not published yet are not
    /// part of it.
    ///
    /// # Errors
    ///
    /// When the outer array names a segment that is not pinned: it cannot be had.
    pub(crate) fn adopt(
        outer: ArrayOfMaps<MapData, MapData>,
        handle: BorrowedFd<'_>,
        limit: u32,
        generation: &Generation,
    ) -> Result<Self, DatapathError> {
        let mut memory = Self::new(outer, limit);
        let failed = |call, source| DatapathError::Map {
            map: map::LOOKUP_TABLES,
            call,
            source,
        };
        let published = |position| {
            let id = syscall::lookup_u32(handle, position);
            id.map_err(|source| failed("BPF_MAP_LOOKUP_ELEM", source))
        };
        for (position, path) in generation.segments()? {
            let data = MapData::from_pin(&path).map_err(|error| map_error(map::LOOKUP_TABLES, "BPF_OBJ_GET", error))?;
            let info = data.info();
            let info = info.map_err(|error| map_error(map::LOOKUP_TABLES, "BPF_OBJ_GET_INFO_BY_FD", error))?;
            if position == memory.segments() && published(position)? == Some(info.id()) {
                memory.take_in(Mapped::new(map::LOOKUP_TABLES, data, size_of::<u64>())?)?;
            }
        }
        if (memory.segments() as usize) < MAX_SEGMENTS && published(memory.segments())?.is_some() {
            let why = format!("segment {} is in use and not pinned", memory.segments());
            return Err(failed("BPF_MAP_LOOKUP_ELEM", io::Error::other(why)));
        }
        memory.pins = Some(generation.directory().to_owned());
        Ok(memory)
    }

    /// Has segments that are made from now on join a generation.
    pub(crate) fn pin_in(&mut self, generation: Option<PathBuf>) {
        self.pins = generation;
    }

    /// Segments that there are.
    pub fn segments(&self) -> u32 {
        u32::try_from(self.segments.len()).unwrap_or(u32::MAX)
    }

    /// Makes the next segment (1 MiB, all slots `NONE`), publishes it, and returns its position.
    ///
    /// # Errors
    ///
    /// [`DatapathError::SlotMemoryFull`], and those of making, mapping and publishing a map.
    pub fn add_segment(&mut self) -> Result<u32, DatapathError> {
        let position = self.segments();
        if self.segments.len() >= self.limit {
            return Err(DatapathError::SlotMemoryFull { segments: position });
        }
        let words = u32::try_from(SEGMENT_WORDS).unwrap_or(u32::MAX);
        let segment = Mapped::create(map::LOOKUP_TABLES, words)?;
        if let Some(generation) = &self.pins {
            // First: what packets may read is never without a name by which it can be had again.
            pins::pin_segment(generation, position, segment.data().fd().as_fd())?;
        }
        self.outer
            .set(position, segment.data(), 0)
            .map_err(|error| map_error(map::LOOKUP_TABLES, "BPF_MAP_UPDATE_ELEM", error))?;
        self.take_in(segment)?;
        Ok(position)
    }

    fn take_in(&mut self, segment: Mapped) -> Result<(), DatapathError> {
        if let Some(place) = self.readers.get(self.segments.len()) {
            // Never set before: positions only grow.
            let _set = place.set(segment.reader()?);
        }
        self.segments.push(segment);
        Ok(())
    }

    /// All segments for those who only read.
    pub(crate) fn readers(&self) -> Segments {
        Arc::clone(&self.readers)
    }

    /// Writes one word of slot memory; `word` counts through all segments.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`] beyond the segments that there are.
    pub fn store(&self, word: u32, value: u64) -> Result<(), DatapathError> {
        let words = SEGMENT_WORDS as u32;
        self.segment(word / words)?.store(word % words, 0, value)
    }

    /// Reads one word of slot memory; `word` counts through all segments.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`] beyond the segments that there are.
    pub fn load(&self, word: u32) -> Result<u64, DatapathError> {
        let words = SEGMENT_WORDS as u32;
        self.segment(word / words)?.load(word % words, 0)
    }

    /// One segment, as an array of [`SEGMENT_WORDS`] entries of one word.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`] beyond the segments that there are.
    pub fn segment(&self, position: u32) -> Result<&Mapped, DatapathError> {
        self.segments.get(position as usize).ok_or(DatapathError::OutOfBounds {
            map: map::LOOKUP_TABLES,
            index: position,
            word: 0,
            entries: self.segments(),
            words: SEGMENT_WORDS as u32,
        })
    }
}
