//! What a set of maps was made for, beside them: the constants of the program that they belong to, and their sizes.
//!
//! Never read by a program. Holds the seed of the flow hash, as the program's own constants do: a secret, for root only.

use lb_core::config::Capacity;
use xdp_prog::abi::Config;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{DatapathError, Generation, PinError, mapped::Mapped};

/// Name of the pin.
pub(crate) const RECORD: &str = "RECORD";
/// Version of the layout below.
const FORMAT: u64 = 1;
const CONFIG_WORDS: usize = size_of::<Config>() / 8;
/// Format, constants, sizes.
const WORDS: usize = 1 + CONFIG_WORDS + 4;

/// What a generation was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The program's constants.
    pub config: Config,
    /// Sizes of the maps.
    pub capacity: Capacity,
}

impl Record {
    /// Writes it down.
    pub(crate) fn write(&self) -> Result<Mapped, DatapathError> {
        let mut words = vec![FORMAT];
        // Made of words.
        words.extend(self.config.as_bytes().chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_ne_bytes(bytes)
        }));
        let Capacity {
            vips,
            backends,
            table_segments,
            ranges,
        } = self.capacity;
        words.extend([vips, backends, table_segments, ranges].map(u64::from));
        let map = Mapped::create(RECORD, WORDS as u32)?;
        map.fill(0, &words)?;
        Ok(map)
    }

    /// Reads that of a generation; `None` if it is of another format.
    ///
    /// # Errors
    ///
    /// When it is not pinned.
    pub fn read(generation: &Generation) -> Result<Option<Self>, DatapathError> {
        let map = Mapped::open(RECORD, &generation.map(RECORD))?;
        if map.entries() as usize != WORDS || map.load(0, 0)? != FORMAT {
            return Ok(None);
        }
        let words: Result<Vec<u64>, _> = (1..WORDS as u32).map(|index| map.load(index, 0)).collect();
        let words = words?;
        let (config, sizes) = words.split_at(CONFIG_WORDS);
        let Ok(config) = Config::read_from_bytes(config.as_bytes()) else {
            return Ok(None);
        };
        let size = |position: usize| sizes.get(position).and_then(|word| u32::try_from(*word).ok());
        let (Some(vips), Some(backends), Some(table_segments), Some(ranges)) = (size(0), size(1), size(2), size(3))
        else {
            return Ok(None);
        };
        let capacity = Capacity {
            vips,
            backends,
            table_segments,
            ranges,
        };
        Ok(Some(Self { config, capacity }))
    }
}

/// A map that is pinned and is not what a record says.
pub(crate) fn differs(generation: &Generation, name: &str) -> DatapathError {
    let source = std::io::Error::other("another size than the generation was made for");
    PinError::Call {
        call: "BPF_OBJ_GET_INFO_BY_FD",
        path: generation.map(name),
        source,
    }
    .into()
}
