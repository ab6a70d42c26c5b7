//! Slot memory: the lookup tables' words, in segments that are made as they are needed.
//!
//! Never decides where a table lies. Arrays cannot grow, so the memory is an array of maps of equal segments; a segment
//! is published to the program, all slots `NONE`, by putting it into the outer array.

use std::{
    io,
    os::fd::AsFd as _,
    sync::{Arc, OnceLock},
};

use aya::maps::{Array, ArrayOfMaps, IterableMap as _, MapData, MapError};
use xdp_prog::abi::{MAX_SEGMENTS, SEGMENT_WORDS, map};

use super::{
    DatapathError,
    advice::{Advice, Capability, MMAPABLE},
    mapped::{Mapped, Reader, map_error},
};

/// include/uapi/linux/bpf.h; must be the same as in the program's definition of the inner map.
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// All segments of `LOOKUP_TABLES`.
#[derive(Debug)]
pub struct SlotMemory {
    outer: ArrayOfMaps<MapData, MapData>,
    segments: Vec<Mapped>,
    readers: Segments,
    limit: usize,
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
        }
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
        let segment = Array::<MapData, u64>::create(words, BPF_F_MMAPABLE)
            .map_err(|error| creation_error(map::LOOKUP_TABLES, error))?;
        // The one handle to a new array is inside its typed wrapper; a descriptor of our own is as good.
        let data = segment
            .map()
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| DatapathError::Map {
                map: map::LOOKUP_TABLES,
                call: "fcntl(F_DUPFD_CLOEXEC)",
                source,
            })?;
        let data =
            MapData::from_fd(data).map_err(|error| map_error(map::LOOKUP_TABLES, "BPF_OBJ_GET_INFO_BY_FD", error))?;
        let segment = Mapped::new(map::LOOKUP_TABLES, data, size_of::<u64>())?;
        self.outer
            .set(position, segment.data(), 0)
            .map_err(|error| map_error(map::LOOKUP_TABLES, "BPF_MAP_UPDATE_ELEM", error))?;
        if let Some(place) = self.readers.get(position as usize) {
            // Never set before: positions only grow.
            let _set = place.set(segment.reader()?);
        }
        self.segments.push(segment);
        Ok(position)
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

/// A failed creation with what to do about it; `map` is for errors that do not name it.
pub(crate) fn creation_error(map: &str, error: MapError) -> DatapathError {
    let (map, source) = match error {
        MapError::CreateError { name, io_error } => (name, io_error),
        other => (map.to_owned(), io::Error::new(io::ErrorKind::InvalidInput, other)),
    };
    let advice = Advice::for_call(&source, &[Capability::Bpf], Some(MMAPABLE));
    DatapathError::MapCreate { map, source, advice }
}
