//! What a benchmark found, as JSON (all of it) and as a table for people (`table`).

mod table;

use serde::{Deserialize, Serialize};

pub(crate) use table::write_table;

use crate::{
    machine::Machine,
    prog::{Build, Live, Memory},
    stats::Summary,
};

/// The design's goal for the balancer's machine code, in bytes.
const CODE_GOAL: u32 = 6_000;

/// Everything that `vipline-perf prog` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What it was measured on.
    pub(crate) machine: Machine,
    /// How much was measured.
    pub(crate) effort: Effort,
    /// The program with the features that are on by default.
    pub(crate) program: Option<ProgramFacts>,
    /// What little programs cost.
    pub(crate) floors: Vec<Floor>,
    /// What the balancer costs.
    pub(crate) rows: Vec<Measured>,
    /// Packets per second over veth.
    pub(crate) live: Vec<Live>,
    /// Build times of lookup tables.
    pub(crate) builds: Vec<Build>,
    /// Memory of the maps.
    pub(crate) memory: Option<Memory>,
    /// Rows that are not reported, and why.
    pub(crate) refused: Vec<Refused>,
    /// Whether the benchmark was stopped before its end.
    pub(crate) interrupted: bool,
}

/// How much was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Effort {
    /// The CPU on which everything ran.
    pub(crate) cpu: usize,
    /// Pairs of runs (floor and program) of each row.
    pub(crate) runs: u32,
    /// Packets of each run with hot caches.
    pub(crate) repeat: u32,
    /// Packets of each run to cold caches.
    pub(crate) burst: u32,
}

/// What the kernel says of the loaded balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgramFacts {
    /// Machine code, in bytes.
    pub(crate) jited_bytes: u32,
    /// eBPF code after the verifier dropped what is dead, in bytes.
    pub(crate) xlated_bytes: u32,
    /// Instructions that the verifier walked through.
    pub(crate) verified_insns: u32,
    /// The design's goal for the machine code, in bytes.
    pub(crate) goal_bytes: u32,
}

/// What a little program costs over bare `XDP_TX`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Floor {
    /// What it does.
    pub(crate) name: String,
    /// ns per packet over bare `XDP_TX`.
    pub(crate) over_tx_ns: Summary,
    /// ns per packet of bare `XDP_TX`, with the wrapper and the kernel's loop.
    pub(crate) tx_ns: Summary,
}

/// What the balancer costs under certain packets and tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Heading.
    pub(crate) group: String,
    /// Packets.
    pub(crate) name: String,
    /// Flows.
    pub(crate) flows: String,
    /// VIPs in the match tables.
    pub(crate) vips: u32,
    /// Backends of each VIP.
    pub(crate) backends: u32,
    /// Slots of each lookup table.
    pub(crate) slots: usize,
    /// Lookup tables of a family: 1 where all VIPs share one.
    pub(crate) tables: u32,
    /// What was done to the caches.
    pub(crate) caches: String,
    /// What every packet came to.
    pub(crate) verdict: String,
    /// Packets through the balancer; all came to the verdict.
    pub(crate) packets: u64,
    /// ns per packet over bare `XDP_TX`.
    pub(crate) over_tx_ns: Summary,
    /// ns per packet of bare `XDP_TX`, with the wrapper and the kernel's loop.
    pub(crate) tx_ns: Summary,
    /// The design's goal, in ns over bare `XDP_TX`.
    pub(crate) goal_ns: Option<f64>,
    /// Whether the median meets it.
    pub(crate) met: Option<bool>,
    /// Machine code with this row's features, in bytes.
    pub(crate) jited_bytes: u32,
}

/// A row that is not reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// Its title.
    pub(crate) row: String,
    /// Why.
    pub(crate) reason: String,
}

impl ProgramFacts {
    /// With the goal beside it.
    pub(crate) fn new(facts: &lb::datapath::ProgramFacts) -> Self {
        Self {
            jited_bytes: facts.jited_len,
            xlated_bytes: facts.xlated_len,
            verified_insns: facts.verified_insns,
            goal_bytes: CODE_GOAL,
        }
    }
}

impl Report {
    /// Nothing measured yet.
    pub(crate) fn new(machine: Machine, effort: Effort) -> Self {
        Self {
            machine,
            effort,
            program: None,
            floors: Vec::new(),
            rows: Vec::new(),
            live: Vec::new(),
            builds: Vec::new(),
            memory: None,
            refused: Vec::new(),
            interrupted: false,
        }
    }

    /// Whether nothing was measured, and nothing refused.
    pub(crate) fn is_empty(&self) -> bool {
        self.floors.is_empty()
            && self.rows.is_empty()
            && self.live.is_empty()
            && self.builds.is_empty()
            && self.memory.is_none()
            && self.refused.is_empty()
    }
}
