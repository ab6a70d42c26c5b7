//! Arrays in user space's memory: how live maps are written.
//!
//! Never allocates positions and never decides an order of writes; that is the planner's. A store is one aligned 8-byte
//! write that a packet sees whole or not at all. `bpf_map_update_elem` would be a plain memcpy that a packet can see
//! torn.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::{Array, IterableMap as _, MapData, MapError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    DatapathError,
    advice::{Advice, Capability, MMAPABLE},
};

const WORD: usize = size_of::<u64>();
/// include/uapi/linux/bpf.h; must be the same as in the program's definition of the inner map of slot memory.
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// An array map made with `BPF_F_MMAPABLE`, seen as entries of aligned words.
///
/// # Minimum kernel version
///
/// 5.5.
#[derive(Debug)]
pub struct Mapped {
    map: &'static str,
    memory: Arc<Memory>,
    entries: u32,
    words: u32,
    data: MapData,
}

/// A mapping; it keeps the map alive too.
#[derive(Debug)]
struct Memory {
    start: NonNull<AtomicU64>,
    bytes: usize,
}

// SAFETY: the memory is only touched through atomics and word by word, and lives as long as the value.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `Mapped::new` with this length, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The entries of a live map for one who only reads: by pointer, word by word, as a packet does. Outlives the [`Mapped`] it is
/// from, and shares its memory.
#[derive(Debug)]
pub(crate) struct Reader<T> {
    memory: Arc<Memory>,
    entries: u32,
    entry: PhantomData<fn() -> T>,
}

impl<T> Reader<T> {
    /// Address of an entry, aligned to a word at least and good as long as `self`; `None` past the end of the map.
    pub(crate) fn entry(&self, index: u32) -> Option<*const T> {
        if index >= self.entries {
            return None;
        }
        let first = self.memory.start.as_ptr().cast_const().cast::<T>();
        // SAFETY: the mapping has `entries` values of this size, as `Mapped::reader` compared.
        Some(unsafe { first.add(index as usize) })
    }
}

impl Mapped {
    /// Maps an array whose values have `value_bytes` bytes; `map` is its name in errors.
    ///
    /// # Errors
    ///
    /// When the map has another shape, and mmap(2)'s.
    pub(crate) fn new(map: &'static str, data: MapData, value_bytes: usize) -> Result<Self, DatapathError> {
        let info = data
            .info()
            .map_err(|error| map_error(map, "BPF_OBJ_GET_INFO_BY_FD", error))?;
        if info.value_size() as usize != value_bytes {
            let expected = u32::try_from(value_bytes).unwrap_or(u32::MAX);
            return Err(DatapathError::Shape {
                map,
                found: info.value_size(),
                expected,
            });
        }
        let entries = info.max_entries();
        // The kernel rounds the elements of an array up to 8 bytes, and the mapping up to a page.
        let words = value_bytes.div_ceil(WORD);
        let bytes = entries as usize * words * WORD;
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory of ours.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                data.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        let failed = || DatapathError::Map {
            map,
            call: "mmap",
            source: io::Error::last_os_error(),
        };
        if memory == libc::MAP_FAILED {
            return Err(failed());
        }
        let start = NonNull::new(memory.cast()).ok_or_else(failed)?;
        let memory = Arc::new(Memory { start, bytes });
        let words = u32::try_from(words).unwrap_or(u32::MAX);
        Ok(Self {
            map,
            memory,
            entries,
            words,
            data,
        })
    }

    /// Makes an array of words that no program needs to know; `map` is its name in errors.
    ///
    /// # Errors
    ///
    /// bpf(2)'s and mmap(2)'s.
    pub(crate) fn create(map: &'static str, words: u32) -> Result<Self, DatapathError> {
        let array = Array::<MapData, u64>::create(words, BPF_F_MMAPABLE).map_err(|error| creation_error(map, error))?;
        // The one handle to a new array is inside its typed wrapper; a descriptor of our own is as good.
        let copied = array.map().fd().as_fd().try_clone_to_owned();
        let data = copied.map_err(|source| DatapathError::Map {
            map,
            call: "fcntl(F_DUPFD_CLOEXEC)",
            source,
        })?;
        let data = MapData::from_fd(data).map_err(|error| map_error(map, "BPF_OBJ_GET_INFO_BY_FD", error))?;
        Self::new(map, data, WORD)
    }

    /// A map of words that is pinned.
    ///
    /// # Errors
    ///
    /// When there is none such, and mmap(2)'s.
    pub(crate) fn open(map: &'static str, path: &Path) -> Result<Self, DatapathError> {
        let data = MapData::from_pin(path).map_err(|error| map_error(map, "BPF_OBJ_GET", error))?;
        Self::new(map, data, WORD)
    }

    /// A word of a map of words, for counting: as long as nobody else stores there.
    pub(crate) fn counter(&self, index: u32) -> Option<&AtomicU64> {
        self.word(index, 0).ok()
    }

    /// Entries of the map.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// 8-byte words of an entry.
    pub fn words(&self) -> u32 {
        self.words
    }

    /// The map itself, for tests and inspection.
    pub fn data(&self) -> &MapData {
        &self.data
    }

    /// Writes one word. What was stored before is seen by whoever sees this: packets observe stores in the order they
    /// were made.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`]; then nothing is written.
    pub fn store(&self, index: u32, word: u32, value: u64) -> Result<(), DatapathError> {
        self.word(index, word)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Writes one word if it is `from`; what stands there if it is not.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`]; then nothing is written.
    pub fn swap(&self, index: u32, word: u32, from: u64, to: u64) -> Result<Result<(), u64>, DatapathError> {
        let word = self.word(index, word)?;
        let swapped = word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        Ok(swapped.map(drop))
    }

    /// Reads one word.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`].
    pub fn load(&self, index: u32, word: u32) -> Result<u64, DatapathError> {
        Ok(self.word(index, word)?.load(Ordering::Acquire))
    }

    /// Writes one word if it is still what it was; whether it was. For words that packets write too.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`]; then nothing is written.
    pub fn replace(&self, index: u32, word: u32, before: u64, after: u64) -> Result<bool, DatapathError> {
        let word = self.word(index, word)?;
        let replaced = word.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed);
        Ok(replaced.is_ok())
    }

    /// Adds to a word that packets add to as well; it wraps.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`]; then nothing is written.
    pub fn add(&self, index: u32, word: u32, value: u64) -> Result<(), DatapathError> {
        self.word(index, word)?.fetch_add(value, Ordering::Relaxed);
        Ok(())
    }

    /// Sets bits of a word that packets set bits of as well.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`]; then nothing is written.
    pub fn set_bits(&self, index: u32, word: u32, bits: u64) -> Result<(), DatapathError> {
        self.word(index, word)?.fetch_or(bits, Ordering::Relaxed);
        Ok(())
    }

    /// Reads a whole entry, word by word: as a packet would see it, not a snapshot.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`], also when `T` has another size than an entry.
    pub fn read<T: FromBytes + IntoBytes>(&self, index: u32) -> Result<T, DatapathError> {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        if bytes.len() != self.words as usize * WORD {
            return Err(self.out_of_bounds(index, u32::try_from(bytes.len() / WORD).unwrap_or(u32::MAX)));
        }
        for (word, chunk) in (0..).zip(bytes.chunks_exact_mut(WORD)) {
            chunk.copy_from_slice(&self.load(index, word)?.to_ne_bytes());
        }
        Ok(value)
    }

    /// A handle for one who only reads.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`] when `T` has another size than an entry.
    pub(crate) fn reader<T: FromBytes + Immutable>(&self) -> Result<Reader<T>, DatapathError> {
        if size_of::<T>() != self.words as usize * WORD {
            return Err(self.out_of_bounds(0, u32::try_from(size_of::<T>() / WORD).unwrap_or(u32::MAX)));
        }
        Ok(Reader {
            memory: Arc::clone(&self.memory),
            entries: self.entries,
            entry: PhantomData,
        })
    }

    /// Writes consecutive words from the first of entry `index` on, as [`Mapped::fill_from`] does.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`]; then nothing is written.
    pub fn fill(&self, index: u32, values: &[u64]) -> Result<(), DatapathError> {
        self.fill_from(index, 0, values)
    }

    /// Writes consecutive words from there on, into the entries that follow where there are more than one takes: for
    /// memory that no packet reads yet.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`]; then nothing is written.
    pub fn fill_from(&self, index: u32, word: u32, values: &[u64]) -> Result<(), DatapathError> {
        self.word(index, word)?;
        let first = u64::from(index) * u64::from(self.words) + u64::from(word);
        let place = |position: usize| {
            let flat = first + position as u64;
            let index = u32::try_from(flat / u64::from(self.words)).unwrap_or(u32::MAX);
            (index, (flat % u64::from(self.words)) as u32)
        };
        if let Some(last) = values.len().checked_sub(1) {
            let (index, word) = place(last);
            self.word(index, word)?;
        }
        for (position, value) in values.iter().enumerate() {
            let (index, word) = place(position);
            self.store(index, word, *value)?;
        }
        Ok(())
    }

    fn word(&self, index: u32, word: u32) -> Result<&AtomicU64, DatapathError> {
        if index >= self.entries || word >= self.words {
            return Err(self.out_of_bounds(index, word));
        }
        let offset = index as usize * self.words as usize + word as usize;
        // SAFETY: `index` and `word` were just checked, so the word lies in the mapping, which is page-aligned and
        // lives as long as `self`; all access to it from here is atomic, and the kernel's side reads and writes whole
        // words.
        Ok(unsafe { self.memory.start.add(offset).as_ref() })
    }

    fn out_of_bounds(&self, index: u32, word: u32) -> DatapathError {
        DatapathError::OutOfBounds {
            map: self.map,
            index,
            word,
            entries: self.entries,
            words: self.words,
        }
    }
}

/// An aya error as ours: the system call's error, or the nearest that says the same.
pub(crate) fn map_error(map: &'static str, call: &'static str, error: MapError) -> DatapathError {
    let source = match error {
        MapError::SyscallError(inner) => inner.io_error,
        MapError::IoError(inner) => inner,
        other => io::Error::new(io::ErrorKind::InvalidInput, other),
    };
    DatapathError::Map { map, call, source }
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
