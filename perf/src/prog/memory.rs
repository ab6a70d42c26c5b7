//! What the maps of an LB node with 10,000 VIPs on one node set cost, by the kernel's own account.

use anyhow::Result;
use lb::datapath::Balancer;
use serde::{Deserialize, Serialize};
use xdp_prog::abi::map;

/// CPUs that the goal counts on.
const GOAL_CPUS: usize = 64;
/// The design's goal, in bytes.
const GOAL_BYTES: u64 = 96 << 20;
/// Maps with a copy per possible CPU.
const PER_CPU: [&str; 4] = [map::COUNTERS, map::VIP_COUNTERS, map::BACKEND_COUNTERS, map::LIMITS];

/// Memory of all maps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// VIPs in the tables.
    pub(crate) vips: u32,
    /// Backends in the tables.
    pub(crate) backends: u32,
    /// Maps, largest first.
    pub(crate) maps: Vec<MapBytes>,
    /// All maps on this machine, in bytes.
    pub(crate) total_bytes: u64,
    /// Possible CPUs that the next figure is scaled to.
    pub(crate) scaled_to_cpus: usize,
    /// All maps with per-CPU ones scaled, in bytes.
    pub(crate) scaled_bytes: u64,
    /// The design's goal for that, in bytes.
    pub(crate) goal_bytes: u64,
}

/// Memory of one map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MapBytes {
    /// Its name.
    pub(crate) map: String,
    /// On this machine, in bytes.
    pub(crate) bytes: u64,
    /// Scaled, in bytes.
    pub(crate) scaled_bytes: u64,
}

/// Of a balancer with so many VIPs and backends, on a machine with so many possible CPUs.
pub(crate) fn measure(balancer: &Balancer, vips: u32, backends: u32, possible_cpus: usize) -> Result<Memory> {
    let maps: Vec<MapBytes> = balancer
        .memory()?
        .into_iter()
        .map(|one| MapBytes {
            map: one.map.to_owned(),
            bytes: one.bytes,
            scaled_bytes: if PER_CPU.contains(&one.map) {
                one.bytes / possible_cpus.max(1) as u64 * GOAL_CPUS as u64
            } else {
                one.bytes
            },
        })
        .collect();
    Ok(Memory {
        vips,
        backends,
        total_bytes: maps.iter().map(|map| map.bytes).sum(),
        scaled_to_cpus: GOAL_CPUS,
        scaled_bytes: maps.iter().map(|map| map.scaled_bytes).sum(),
        goal_bytes: GOAL_BYTES,
        maps,
    })
}
