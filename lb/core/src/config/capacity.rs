//! How much the maps have room for: fixed when they are made, so a change replaces the program and its maps.
//!
//! Never grows by itself. Costs are per possible CPU (`/sys/devices/system/cpu/possible`), because counters are.

use xdp_prog::abi::{MAX_BACKENDS, MAX_BUCKETS, MAX_RANGES, MAX_SEGMENTS, WAYS_V4};

use super::read::At;

/// Most VIPs of [`Capacity::vips`]: half of what the largest IPv4 match table holds, because every VIP address takes an entry too
/// and a full table cannot be proven complete. One costs 16 B of counters per possible CPU and about 200 B of match tables;
/// with limits, source lists or schedulers in use 64 B of options (and 8 B of turns); with limits in use 32 B per possible CPU.
/// 131,072 VIPs on 64 CPUs: 137 MiB, with limits 401 MiB.
pub const MAX_CAPACITY_VIPS: u32 = (MAX_BUCKETS * WAYS_V4 / 2) as u32;
/// Most backends of [`Capacity::backends`]: line 0 says *no backend*. One costs 64 B and 16 B per possible CPU: 65,535 backends
/// on 64 CPUs are 68 MiB.
pub const MAX_CAPACITY_BACKENDS: u32 = (MAX_BACKENDS - 1) as u32;
/// Most segments of [`Capacity::table_segments`]: 256 MiB when all are in use.
pub const MAX_CAPACITY_SEGMENTS: u32 = MAX_SEGMENTS as u32;
/// Most ranges of [`Capacity::ranges`]: 2 MiB.
pub const MAX_CAPACITY_RANGES: u32 = MAX_RANGES as u32;

/// Room in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// VIPs, 1 to [`MAX_CAPACITY_VIPS`].
    pub vips: u32,
    /// Backends, 1 to [`MAX_CAPACITY_BACKENDS`]; the maps have one line more, see [`Self::backend_lines`].
    pub backends: u32,
    /// Segments of slot memory, 1 MiB each, 1 to [`MAX_CAPACITY_SEGMENTS`]; made as they are needed.
    pub table_segments: u32,
    /// Ranges of all source lists together, 32 B each, 1 to [`MAX_CAPACITY_RANGES`].
    pub ranges: u32,
}

impl Default for Capacity {
    /// 16,384 VIPs, 4,096 backends, 64 MiB of slot memory, 16,384 ranges: on 64 possible CPUs about 24 MiB, 57 MiB
    /// with limits in use, and the slot memory in use.
    fn default() -> Self {
        Self {
            vips: 16_384,
            backends: 4096,
            table_segments: 64,
            ranges: 16_384,
        }
    }
}

impl Capacity {
    /// The default in a cluster, 10,000 Services with three VIPs each and 5,000 dual-stack nodes: 32,768 VIPs, 16,384 backends,
    /// 64 MiB of slot memory, 16,384 ranges: on 64 possible CPUs about 60 MiB, and the slot memory in use.
    pub const KUBE: Self = Self {
        vips: 32_768,
        backends: 16_384,
        table_segments: 64,
        ranges: 16_384,
    };

    /// Entries of the backend maps: line 0 is *no backend*.
    pub const fn backend_lines(&self) -> u32 {
        self.backends + 1
    }
}

/// `capacity`.
pub(super) fn capacity(at: &At<'_>, default: Capacity) -> Option<Capacity> {
    at.fields(|fields| {
        let mut room = |key, default, most| fields.or(key, default, |at| at.within(1, most));
        let vips = room("vips", default.vips, MAX_CAPACITY_VIPS);
        let backends = room("backends", default.backends, MAX_CAPACITY_BACKENDS);
        let table_segments = room("table_segments", default.table_segments, MAX_CAPACITY_SEGMENTS);
        let ranges = room("ranges", default.ranges, MAX_CAPACITY_RANGES);
        Some(Capacity {
            vips: vips?,
            backends: backends?,
            table_segments: table_segments?,
            ranges: ranges?,
        })
    })
}
