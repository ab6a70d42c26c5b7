//! From the objects that the build script made to loaded programs with their maps.
//!
//! Never attaches, and never writes a table: a program that has just been loaded passes everything, since its tables
//! are empty.

use std::{
    io,
    sync::{Arc, Mutex},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{Map, MapData, MapError, perf::PerfEventArray},
};
use lb_core::config::Capacity;
use xdp_prog::abi::{
    BackendLine, BucketV4, BucketV6, Config, FlowBucket, MAX_BACKENDS, MAX_BUCKETS, MAX_FLOW_BUCKETS, MAX_QUEUES,
    MAX_RANGES, MAX_VERDICTS, MAX_VIPS, Range, SlowBudget, VipOptions, feature, map,
};

use super::{
    Counters, DatapathError, LiveTables, Mapped, Passed, PerCpu, Plain, Ports, Program, SlotMemory, Sockets,
    VerdictCounters, live, mapped::map_error, slots::creation_error,
};

const LB: &str = "lb";
static LB_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb"));
const DECAP: &str = "decap";
static DECAP_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));

/// The loaded balancer and its maps.
pub struct Balancer {
    /// The program.
    pub program: Program,
    /// Match table of IPv4 VIPs, [`BucketV4`].
    pub vips_v4: Mapped,
    /// Match table of IPv6 VIPs, [`BucketV6`].
    pub vips_v6: Mapped,
    /// Slot memory.
    pub slots: SlotMemory,
    /// Backend lines, [`BackendLine`].
    pub backends: Mapped,
    /// Options of VIPs, [`VipOptions`].
    pub vip_options: Mapped,
    /// Ranges, [`Range`].
    pub ranges: Mapped,
    /// Words that concern the whole node.
    pub settings: Mapped,
    /// Flow records, [`FlowBucket`]: the program writes them too.
    pub flows: Mapped,
    /// Open flows of VIPs with a scheduler by backend, one word each: the program adds to them.
    pub open_flows: Mapped,
    /// Turns by VIP, one word each: likewise.
    pub turns: Mapped,
    /// What was counted.
    pub counters: Counters,
    /// Interfaces to redirect to.
    pub ports: Ports,
    /// Slow-path sockets by interface and receive queue. Shared: workers that are restarted put theirs in by themselves.
    pub sockets: Arc<Mutex<Sockets>>,
    /// What the slow path takes, by verdict: [`SlowBudget`]. See [`Balancer::set_budget`].
    pub slow_budgets: Mapped,
    /// Sampled packets, each a [`xdp_prog::abi::SampleHeader`] and bytes of the frame: only under [`feature::CAPTURE`].
    pub samples: PerfEventArray<MapData>,
    pub(super) live: LiveTables,
    pub(super) on_grace: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Balancer {
    /// Loads the balancer with frozen constants and empty maps. Where a feature is off, maps that only it needs have
    /// one entry. Arrays cannot grow: more room is a new program that takes over ([`Program::take_over`]).
    ///
    /// # Errors
    ///
    /// [`DatapathError::MapCreate`], [`DatapathError::Verifier`] with the end of the verifier's log, or an object that
    /// this build does not fit.
    ///
    /// # Minimum kernel version
    ///
    /// 5.18, for XDP programs that take frames of several fragments.
    pub fn load(config: &Config, capacity: &Capacity) -> Result<Self, DatapathError> {
        let on = |features: u64, entries: u32| if config.features & features != 0 { entries } else { 1 };
        let vips = capacity.vips.clamp(1, MAX_VIPS as u32);
        let lines = capacity.backend_lines().min(MAX_BACKENDS as u32);
        let entries = [
            (map::VIPS_V4, buckets(config.match_mask_v4, MAX_BUCKETS)),
            (map::VIPS_V6, buckets(config.match_mask_v6, MAX_BUCKETS)),
            (map::BACKENDS, lines),
            (
                map::VIP_OPTIONS,
                on(feature::LIMITS | feature::SOURCE_RANGES | feature::SCHEDULERS, vips),
            ),
            (map::OPEN_FLOWS, on(feature::SCHEDULERS, lines)),
            (map::TURNS, on(feature::SCHEDULERS, vips)),
            (map::RANGES, range_entries(capacity.ranges)),
            (map::COUNTERS, MAX_VERDICTS as u32),
            (map::VIP_COUNTERS, vips),
            (map::BACKEND_COUNTERS, lines),
            (map::LIMITS, on(feature::LIMITS, vips)),
            (
                map::FLOWS,
                on(feature::TRANSIT, buckets(config.flow_mask, MAX_FLOW_BUCKETS)),
            ),
            (map::XSK_INDEX, on(feature::SLOW_PATH, MAX_QUEUES as u32)),
            (map::XSKS, on(feature::SLOW_PATH, MAX_QUEUES as u32)),
        ];
        let mut maps = Maps::make(LB, LB_OBJECT, config, &entries)?;
        let vips_v4 = maps.mapped::<BucketV4>(map::VIPS_V4)?;
        let vips_v6 = maps.mapped::<BucketV6>(map::VIPS_V6)?;
        let slots = SlotMemory::new(maps.take(map::LOOKUP_TABLES)?, capacity.table_segments);
        let backends = maps.mapped::<BackendLine>(map::BACKENDS)?;
        let vip_options = maps.mapped::<VipOptions>(map::VIP_OPTIONS)?;
        let ranges = maps.mapped::<Range>(map::RANGES)?;
        let settings = maps.mapped::<u64>(map::SETTINGS)?;
        let flows = maps.mapped::<FlowBucket>(map::FLOWS)?;
        let open_flows = maps.mapped::<u64>(map::OPEN_FLOWS)?;
        let turns = maps.mapped::<u64>(map::TURNS)?;
        let passed = Arc::new(Passed::new(vips, lines));
        let live = LiveTables::new(live::Tables {
            config: *config,
            vips_v4: vips_v4.reader()?,
            vips_v6: vips_v6.reader()?,
            segments: slots.readers(),
            backends: backends.reader()?,
            options: vip_options.reader()?,
            ranges: ranges.reader()?,
            settings: settings.reader()?,
            flows: flows.reader()?,
            open_flows: open_flows.reader()?,
            turns: turns.reader()?,
            passed: Arc::clone(&passed),
        });
        Ok(Self {
            live,
            vips_v4,
            vips_v6,
            slots,
            backends,
            vip_options,
            ranges,
            settings,
            flows,
            open_flows,
            turns,
            counters: Counters {
                verdicts: maps.verdicts()?,
                vips: PerCpu::new(map::VIP_COUNTERS, maps.take(map::VIP_COUNTERS)?)?,
                backends: PerCpu::new(map::BACKEND_COUNTERS, maps.take(map::BACKEND_COUNTERS)?)?,
                limits: PerCpu::new(map::LIMITS, maps.take(map::LIMITS)?)?,
                slow: PerCpu::new(map::SLOW_STATES, maps.take(map::SLOW_STATES)?)?,
                passed,
                flows: PerCpu::new(map::FLOW_COUNTS, maps.take(map::FLOW_COUNTS)?)?,
                capture: PerCpu::new(map::CAPTURES, maps.take(map::CAPTURES)?)?,
            },
            ports: Ports::new(maps.take(map::PORTS)?),
            sockets: Arc::new(Mutex::new(Sockets::new(
                maps.take(map::XSKS)?,
                maps.take(map::XSK_INDEX)?,
            ))),
            slow_budgets: maps.mapped::<SlowBudget>(map::SLOW_BUDGETS)?,
            samples: maps.take(map::SAMPLES)?,
            on_grace: None,
            program: Program::load(LB, "vipline_lb", maps.ebpf)?,
        })
    }
}

/// The loaded decapsulator and its maps.
pub struct Decapsulator {
    /// The program.
    pub program: Program,
    /// Ranges, [`Range`].
    pub ranges: Mapped,
    /// Words that concern the whole node.
    pub settings: Mapped,
    /// What was counted.
    pub counters: VerdictCounters,
}

impl Decapsulator {
    /// Loads the worker node's side with frozen constants, empty maps and room for `ranges` ranges.
    ///
    /// # Errors
    ///
    /// As [`Balancer::load`].
    pub fn load(config: &Config, ranges: u32) -> Result<Self, DatapathError> {
        let entries = [
            (map::RANGES, range_entries(ranges)),
            (map::COUNTERS, MAX_VERDICTS as u32),
        ];
        let mut maps = Maps::make(DECAP, DECAP_OBJECT, config, &entries)?;
        Ok(Self {
            ranges: maps.mapped::<Range>(map::RANGES)?,
            settings: maps.mapped::<u64>(map::SETTINGS)?,
            counters: maps.verdicts()?,
            program: Program::load(DECAP, "vipline_decap", maps.ebpf)?,
        })
    }
}

/// Buckets of a match table or the flow table from its mask, which the configuration made from a power of two.
fn buckets(mask: u64, most: usize) -> u32 {
    u32::try_from(mask.saturating_add(1))
        .unwrap_or(u32::MAX)
        .min(most as u32)
}

fn range_entries(ranges: u32) -> u32 {
    ranges.clamp(1, MAX_RANGES as u32)
}

/// An object with its maps made and its programs not yet loaded.
struct Maps {
    object: &'static str,
    ebpf: Ebpf,
}

impl Maps {
    fn make(
        object: &'static str,
        code: &[u8],
        config: &Config,
        entries: &[(&'static str, u32)],
    ) -> Result<Self, DatapathError> {
        let config = Plain(*config);
        let mut loader = EbpfLoader::new();
        loader.override_global(map::CONFIG, &config, true);
        for &(name, count) in entries {
            loader.map_max_entries(name, count);
        }
        let ebpf = loader.load(code).map_err(|error| match error {
            EbpfError::MapError(error @ MapError::CreateError { .. }) => creation_error(object, error),
            other => DatapathError::Object {
                object,
                source: Box::new(other),
            },
        })?;
        Ok(Self { object, ebpf })
    }

    fn take<M: TryFrom<Map, Error = MapError>>(&mut self, name: &'static str) -> Result<M, DatapathError> {
        let map = self.ebpf.take_map(name).ok_or(DatapathError::Incomplete {
            object: self.object,
            missing: name,
        })?;
        map.try_into().map_err(|error| map_error(name, "BPF_MAP_CREATE", error))
    }

    fn mapped<T>(&mut self, name: &'static str) -> Result<Mapped, DatapathError> {
        match self.ebpf.take_map(name) {
            Some(Map::Array(data)) => Mapped::new(name, data, size_of::<T>()),
            Some(_) => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "not an array");
                Err(DatapathError::Map {
                    map: name,
                    call: "BPF_MAP_CREATE",
                    source,
                })
            }
            None => Err(DatapathError::Incomplete {
                object: self.object,
                missing: name,
            }),
        }
    }

    fn verdicts(&mut self) -> Result<VerdictCounters, DatapathError> {
        Ok(VerdictCounters(PerCpu::new(map::COUNTERS, self.take(map::COUNTERS)?)?))
    }
}
