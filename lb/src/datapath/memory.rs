//! What the maps cost. Never estimates: the kernel says what each map holds.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::PoisonError,
};

use aya::maps::MapData;
use xdp_prog::abi::map;

use super::{Balancer, DatapathError, passed::CARRIED};

/// Kernel memory of one map, in bytes, per-CPU copies of all possible CPUs included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapMemory {
    /// Name of the map.
    pub map: &'static str,
    /// Bytes, as the kernel accounts them.
    pub bytes: u64,
}

impl Balancer {
    /// Memory of all maps but the lists of at most 8 KiB (`PORTS`, `XSKS`, `SAMPLES` and the outer array of slot memory),
    /// largest first.
    ///
    /// # Errors
    ///
    /// When /proc does not say.
    ///
    /// # Minimum kernel version
    ///
    /// 6.4 for true figures; before, the kernel says less.
    pub fn memory(&self) -> Result<Vec<MapMemory>, DatapathError> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slots = 0;
        for position in 0..self.slots.segments() {
            slots += bytes(map::LOOKUP_TABLES, self.slots.segment(position)?.data())?;
        }
        let mut all = vec![MapMemory {
            map: map::LOOKUP_TABLES,
            bytes: slots,
        }];
        let carried = self.counters.passed.map().map(|map| (CARRIED, map.data()));
        for (map, data) in carried.into_iter().chain([
            (map::VIPS_V4, self.vips_v4.data()),
            (map::VIPS_V6, self.vips_v6.data()),
            (map::BACKENDS, self.backends.data()),
            (map::VIP_OPTIONS, self.vip_options.data()),
            (map::RANGES, self.ranges.data()),
            (map::SETTINGS, self.settings.data()),
            (map::FLOWS, self.flows.data()),
            (map::FLOW_MARKS, self.flow_marks.data()),
            (map::COUNTERS, self.counters.verdicts.0.data()),
            (map::VIP_COUNTERS, self.counters.vips.data()),
            (map::BACKEND_COUNTERS, self.counters.backends.data()),
            (map::LIMITS, self.counters.limits.data()),
            (map::SLOW_BUDGETS, self.slow_budgets.data()),
            (map::SLOW_STATES, self.counters.slow.data()),
            (map::CAPTURES, self.counters.capture.data()),
            (map::XSK_INDEX, sockets.index()),
        ]) {
            all.push(MapMemory {
                map,
                bytes: bytes(map, data)?,
            });
        }
        all.sort_by_key(|one| std::cmp::Reverse(one.bytes));
        Ok(all)
    }
}

fn bytes(map: &'static str, data: &MapData) -> Result<u64, DatapathError> {
    let path = format!("/proc/thread-self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
    let error = |source| DatapathError::Map {
        map,
        call: "read(fdinfo)",
        source,
    };
    let info = fs::read_to_string(path).map_err(error)?;
    let memory = info
        .lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    memory.ok_or_else(|| error(io::ErrorKind::InvalidData.into()))
}
