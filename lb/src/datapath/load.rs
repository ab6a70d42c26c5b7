//! From the objects that the build script made to loaded programs with their maps.
//!
//! Never attaches, and never writes a table: a program that has just been loaded passes everything, since its tables
//! are empty.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{Map, MapData, MapError, perf::PerfEventArray},
};
use lb_core::{config::Capacity, plan::Image};
use xdp_prog::abi::{
    BackendLine, BucketV4, BucketV6, Config, FlowBucket, MAX_BACKENDS, MAX_BUCKETS, MAX_FLOW_BUCKETS, MAX_QUEUES,
    MAX_RANGES, MAX_VERDICTS, MAX_VIPS, Range, SlowBudget, VipOptions, feature, map,
};

use super::{
    Counters, DatapathError, Generation, LiveTables, Mapped, Passed, PerCpu, Plain, Ports, Program, Record, SlotMemory,
    Sockets, VerdictCounters, live,
    mapped::{creation_error, map_error},
    passed::CARRIED,
    pins::segment_name,
    record::{self, RECORD},
};

const LB: &str = "lb";
static LB_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb"));
const DECAP: &str = "decap";
static DECAP_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));

/// Maps of the balancer that a generation keeps, and that the next program works on. Not the sample rings, which are their reader's.
const KEPT: [&str; 22] = [
    map::VIPS_V4,
    map::VIPS_V6,
    map::LOOKUP_TABLES,
    map::BACKENDS,
    map::VIP_OPTIONS,
    map::RANGES,
    map::SETTINGS,
    map::FLOWS,
    map::FLOW_MARKS,
    map::FLOW_COUNTS,
    map::OPEN_FLOWS,
    map::TURNS,
    map::COUNTERS,
    map::VIP_COUNTERS,
    map::BACKEND_COUNTERS,
    map::LIMITS,
    map::PORTS,
    map::XSKS,
    map::XSK_INDEX,
    map::SLOW_BUDGETS,
    map::SLOW_STATES,
    map::CAPTURES,
];

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
    /// Marks of their buckets, 64 in a word: the program sets them.
    pub flow_marks: Mapped,
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
    /// Handles on the maps of [`KEPT`].
    kept: Vec<(&'static str, OwnedFd)>,
    record: Mapped,
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
        Self::make(config, capacity, None)
    }

    /// As [`Self::load`], on the maps of a generation that was made for the same, as they are.
    ///
    /// # Errors
    ///
    /// Also when a map is not pinned, or is not what the record says.
    pub fn adopt(record: &Record, generation: &Generation) -> Result<Self, DatapathError> {
        Self::make(&record.config, &record.capacity, Some(generation))
    }

    fn make(config: &Config, capacity: &Capacity, from: Option<&Generation>) -> Result<Self, DatapathError> {
        let on = |features: u64, entries: u32| if config.features & features != 0 { entries } else { 1 };
        let vips = capacity.vips.clamp(1, MAX_VIPS as u32);
        let lines = capacity.backend_lines().min(MAX_BACKENDS as u32);
        let flow_buckets = buckets(config.flow_mask, MAX_FLOW_BUCKETS);
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
            (map::FLOWS, on(feature::TRANSIT, flow_buckets)),
            (map::FLOW_MARKS, on(feature::TRANSIT, flow_buckets.div_ceil(64))),
            (map::XSK_INDEX, on(feature::SLOW_PATH, MAX_QUEUES as u32)),
            (map::XSKS, on(feature::SLOW_PATH, MAX_QUEUES as u32)),
        ];
        let mut maps = Maps::make(LB, LB_OBJECT, config, &entries, from)?;
        let kept = maps.handles()?;
        let vips_v4 = maps.mapped::<BucketV4>(map::VIPS_V4)?;
        let vips_v6 = maps.mapped::<BucketV6>(map::VIPS_V6)?;
        let outer = maps.take(map::LOOKUP_TABLES)?;
        let slots = match (from, kept.iter().find(|(name, _)| *name == map::LOOKUP_TABLES)) {
            (Some(from), Some((_, handle))) => SlotMemory::adopt(outer, handle.as_fd(), capacity.table_segments, from)?,
            (Some(_) | None, Some(_) | None) => SlotMemory::new(outer, capacity.table_segments),
        };
        let backends = maps.mapped::<BackendLine>(map::BACKENDS)?;
        let vip_options = maps.mapped::<VipOptions>(map::VIP_OPTIONS)?;
        let ranges = maps.mapped::<Range>(map::RANGES)?;
        let settings = maps.mapped::<u64>(map::SETTINGS)?;
        let flows = maps.mapped::<FlowBucket>(map::FLOWS)?;
        let flow_marks = maps.mapped::<u64>(map::FLOW_MARKS)?;
        let open_flows = maps.mapped::<u64>(map::OPEN_FLOWS)?;
        let turns = maps.mapped::<u64>(map::TURNS)?;
        let (passed, record) = match from {
            Some(from) => (
                Passed::open(vips, lines, from)?,
                Mapped::open(RECORD, &from.map(RECORD))?,
            ),
            None => {
                let record = Record {
                    config: *config,
                    capacity: *capacity,
                };
                (Passed::new(vips, lines)?, record.write()?)
            }
        };
        let passed = Arc::new(passed);
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
            flow_marks: flow_marks.reader()?,
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
            flow_marks,
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
            ports: Ports::adopt(maps.take(map::PORTS)?)?,
            sockets: Arc::new(Mutex::new(Sockets::adopt(
                maps.take(map::XSKS)?,
                maps.take(map::XSK_INDEX)?,
            )?)),
            slow_budgets: maps.mapped::<SlowBudget>(map::SLOW_BUDGETS)?,
            samples: maps.take(map::SAMPLES)?,
            on_grace: None,
            program: Program::load(LB, "vipline_lb", maps.ebpf)?,
            kept,
            record,
        })
    }
}

impl Balancer {
    /// What a generation keeps, by the name of its pin.
    pub(super) fn pinnable(&self) -> Result<Vec<(String, BorrowedFd<'_>)>, DatapathError> {
        let kept = self.kept.iter().map(|(name, map)| ((*name).to_owned(), map.as_fd()));
        let mut all: Vec<(String, BorrowedFd<'_>)> = kept.collect();
        all.push((RECORD.to_owned(), self.record.data().fd().as_fd()));
        if let Some(map) = self.counters.passed.map() {
            all.push((CARRIED.to_owned(), map.data().fd().as_fd()));
        }
        for position in 0..self.slots.segments() {
            let segment = self.slots.segment(position)?;
            all.push((segment_name(position), segment.data().fd().as_fd()));
        }
        Ok(all)
    }

    /// All that a planner knows of the maps, as they are: see [`lb_core::plan::Planner::adopt`].
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`] when the maps were made for less.
    pub fn image(&self, record: &Record) -> Result<Image, DatapathError> {
        Image::read(
            &record.capacity,
            &record.config,
            self.slots.segments(),
            |map, index, word| self.word(map, index, word),
        )
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
        let mut maps = Maps::make(DECAP, DECAP_OBJECT, config, &entries, None)?;
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

/// Refuses a pinned map that is not there, or has not the entries that it should.
fn check_size(
    path: &PathBuf,
    generation: &Generation,
    name: &'static str,
    entries: &[(&'static str, u32)],
) -> Result<(), DatapathError> {
    let info = MapData::from_pin(path).and_then(|data| data.info());
    let info = info.map_err(|error| map_error(name, "BPF_OBJ_GET", error))?;
    match entries.iter().find(|(other, _)| *other == name) {
        Some((_, count)) if *count != info.max_entries() => Err(record::differs(generation, name)),
        Some(_) | None => Ok(()),
    }
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
        from: Option<&Generation>,
    ) -> Result<Self, DatapathError> {
        let config = Plain(*config);
        let mut loader = EbpfLoader::new();
        loader.override_global(map::CONFIG, &config, true);
        for &(name, count) in entries {
            loader.map_max_entries(name, count);
        }
        for (generation, name) in from.into_iter().flat_map(|from| KEPT.map(|name| (from, name))) {
            // aya would make and pin anew what is not there, and takes what is there for what it would have made.
            let path = generation.map(name);
            check_size(&path, generation, name, entries)?;
            loader.map_pin_path(name, path);
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

    /// Descriptors of our own of the maps that are kept.
    fn handles(&self) -> Result<Vec<(&'static str, OwnedFd)>, DatapathError> {
        let missing = |name| DatapathError::Incomplete {
            object: self.object,
            missing: name,
        };
        let handle = |name| {
            let data = match self.ebpf.map(name).ok_or_else(|| missing(name))? {
                Map::Array(data)
                | Map::PerCpuArray(data)
                | Map::ArrayOfMaps(data)
                | Map::HashMap(data)
                | Map::DevMap(data)
                | Map::XskMap(data) => data,
                _ => return Err(missing(name)),
            };
            let copied = data.fd().as_fd().try_clone_to_owned();
            let handle = copied.map_err(|source| DatapathError::Map {
                map: name,
                call: "fcntl(F_DUPFD_CLOEXEC)",
                source,
            })?;
            Ok((name, handle))
        };
        KEPT.into_iter().map(handle).collect()
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
