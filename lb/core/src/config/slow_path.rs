//! The slow path: whether there is one, how its sockets work, and how much it may do and hold.
//!
//! Never unbounded: every key has a most, and its memory is said beside it.

use std::{collections::BTreeMap, ops::RangeInclusive};

use xdp_prog::{
    abi::MAX_QUEUES,
    verdict::{Fate, Verdict},
};

use super::{
    problem::Problem,
    read::{At, Fields},
    words::Quoted,
};
use crate::{
    desired::Rate,
    plan::rates,
    slow::{Bounds, Budgets, FragmentBounds, HoldBounds, Kind},
};

/// Longest [`SlowPathConfig::busy_poll_us`], in microseconds.
pub const MAX_BUSY_POLL_US: u32 = 1000;
/// Largest number of a CPU in [`SlowPathConfig::cpus`]: Linux counts up to 8,192 (`NR_CPUS`).
pub const MAX_CPU: u32 = 8191;
/// Bytes of a frame of [`SlowPathConfig::frames_per_queue`].
pub const FRAME_BYTES: u32 = 4096;
/// Fewest [`SlowPathConfig::frames_per_queue`]: 1 MiB per receive queue.
pub const MIN_FRAMES_PER_QUEUE: u32 = 256;
/// Most [`SlowPathConfig::frames_per_queue`]: 128 MiB per receive queue.
pub const MAX_FRAMES_PER_QUEUE: u32 = 32_768;
/// Most packets per second of any budget, and most of a burst: more than a slow path can do, and little enough that the fast
/// path's arithmetic cannot overflow.
pub const MAX_SLOW_RATE: u32 = 10_000_000;
/// Most [`FragmentBounds::datagrams`].
pub const MAX_FRAGMENT_DATAGRAMS: u32 = 65_536;
/// Least [`FragmentBounds::bytes`]: one datagram of the largest size.
pub const MIN_FRAGMENT_BYTES: u64 = 65_536;
/// Most [`FragmentBounds::bytes`]: 256 MiB.
pub const MAX_FRAGMENT_BYTES: u64 = 256 << 20;
/// Most [`HoldBounds::frames`]: of [`FRAME_BYTES`] at most, so 64 MiB per receive queue.
pub const MAX_HELD_FRAMES: u32 = 16_384;
/// Shortest timeout of fragments and held frames, in milliseconds.
pub const MIN_SLOW_TIMEOUT_MS: u32 = 10;
/// Longest timeout of fragments and held frames, in milliseconds: what hosts wait for fragments (RFC 8200 4.5).
pub const MAX_SLOW_TIMEOUT_MS: u32 = 60_000;
const TIMEOUTS_MS: RangeInclusive<u32> = MIN_SLOW_TIMEOUT_MS..=MAX_SLOW_TIMEOUT_MS;

/// How frames get between the driver and a slow-path socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XskMode {
    /// Copied, with any driver.
    #[default]
    Copy,
    /// In place, with drivers that can.
    ZeroCopy,
}

impl XskMode {
    /// As configuration and output write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::ZeroCopy => "zero_copy",
        }
    }
}

/// `slow_path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowPathConfig {
    /// Off: what the fast path does not do is dropped and counted.
    pub enabled: bool,
    /// How frames get to the sockets.
    pub mode: XskMode,
    /// How long a worker's system call polls the driver, in microseconds, 0 to [`MAX_BUSY_POLL_US`]; 0: it sleeps until frames come.
    pub busy_poll_us: u32,
    /// CPUs that workers are pinned to, round robin; each once, empty: not pinned.
    pub cpus: Vec<u32>,
    /// Frames of [`FRAME_BYTES`] per receive queue, a power of two in [`MIN_FRAMES_PER_QUEUE`] to [`MAX_FRAMES_PER_QUEUE`].
    pub frames_per_queue: u32,
    /// Answers per second to one source: an IPv4 address or a /64 of IPv6. 1 to [`MAX_SLOW_RATE`].
    pub replies_per_source: u32,
    /// What is taken, by kind.
    pub limits: Budgets,
    /// Bounds of virtual reassembly.
    pub fragments: FragmentBounds,
    /// Bounds of what waits for a next hop.
    pub hold: HoldBounds,
}

impl Default for SlowPathConfig {
    /// On, copying, sleeping, not pinned; 2,048 frames (8 MiB) per receive queue; 100 answers a second to a source.
    fn default() -> Self {
        Self {
            enabled: true,
            mode: XskMode::default(),
            busy_poll_us: 0,
            cpus: Vec::new(),
            frames_per_queue: 2048,
            replies_per_source: 100,
            limits: Budgets::default(),
            fragments: FragmentBounds::default(),
            hold: HoldBounds::default(),
        }
    }
}

impl SlowPathConfig {
    /// What the slow path's core is told of it.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            budgets: self.limits,
            replies_per_source: self.replies_per_source,
            fragments: self.fragments,
            hold: self.hold,
        }
    }
}

/// What the fast path hands over of each slow verdict on each CPU, as the program counts: `(verdict, tokens a jiffy, most tokens)`,
/// in [`xdp_prog::limit::TOKEN`] per packet. A verdict brings what the kinds that it may be take together on the whole node: any
/// CPU may be the only one that packets arrive on. `hz` is jiffies a second. Empty while the slow path is off.
pub fn xdp_budgets(config: &SlowPathConfig, hz: u32) -> Vec<(Verdict, u64, u64)> {
    let slow = Verdict::ALL
        .iter()
        .filter(|verdict| config.enabled && verdict.fate() == Fate::Slow);
    slow.map(|verdict| {
        let kinds = Kind::of(*verdict).iter().map(|kind| config.limits[*kind]);
        let sum = kinds.reduce(|sum, rate| Rate {
            per_second: sum.per_second.saturating_add(rate.per_second),
            burst: sum.burst.saturating_add(rate.burst),
        });
        let (rate, burst) = rates(sum, hz);
        (*verdict, rate, burst)
    })
    .collect()
}

/// `slow_path`.
pub(super) fn slow_path(at: &At<'_>) -> Option<SlowPathConfig> {
    let default = SlowPathConfig::default();
    at.fields(|fields| {
        let enabled = fields.or("enabled", default.enabled, |at| at.bool());
        let mode = fields.or("mode", default.mode, |at| mode(&at));
        let busy_poll_us = within(fields, "busy_poll_us", default.busy_poll_us, 0..=MAX_BUSY_POLL_US);
        let cpus = fields.or("cpus", default.cpus, |at| cpus(&at));
        let frames_per_queue = fields.or("frames_per_queue", default.frames_per_queue, |at| frames_per_queue(&at));
        let replies_key = "replies_per_source_per_second";
        let replies_per_source = within(fields, replies_key, default.replies_per_source, 1..=MAX_SLOW_RATE);
        let limits = fields.or("limits", default.limits, |at| limits(&at));
        let fragments = fields.or("fragments", default.fragments, |at| fragments(&at));
        let hold = fields.or("hold", default.hold, |at| hold(&at));
        Some(SlowPathConfig {
            enabled: enabled?,
            mode: mode?,
            busy_poll_us: busy_poll_us?,
            cpus: cpus?,
            frames_per_queue: frames_per_queue?,
            replies_per_source: replies_per_source?,
            limits: limits?,
            fragments: fragments?,
            hold: hold?,
        })
    })
}

/// An optional number within bounds.
fn within<T: Into<u64> + TryFrom<i128> + Copy + PartialOrd>(
    fields: &mut Fields<'_>,
    key: &'static str,
    default: T,
    bounds: RangeInclusive<T>,
) -> Option<T> {
    fields.or(key, default, |at| at.within(*bounds.start(), *bounds.end()))
}

fn mode(at: &At<'_>) -> Option<XskMode> {
    match at.text()? {
        "copy" => Some(XskMode::Copy),
        "zero_copy" => Some(XskMode::ZeroCopy),
        other => at.fail(Problem::NotOneOf {
            value: Quoted::new(other),
            allowed: &["copy", "zero_copy"],
        }),
    }
}

fn cpus(at: &At<'_>) -> Option<Vec<u32>> {
    let items = at.list()?;
    if items.is_empty() {
        return at.fail(Problem::EmptyList {
            hint: "remove the key and workers run where the kernel puts them",
        });
    }
    if items.len() > MAX_QUEUES {
        return at.fail(Problem::TooManyCpus { count: items.len() });
    }
    let mut first: BTreeMap<u32, String> = BTreeMap::new();
    let cpus: Vec<Option<u32>> = items
        .iter()
        .map(|item| {
            let cpu = item.within(0, MAX_CPU)?;
            match first.insert(cpu, item.spot().to_string()) {
                Some(first) => item.fail(Problem::DuplicateCpu { cpu, first }),
                None => Some(cpu),
            }
        })
        .collect();
    cpus.into_iter().collect()
}

fn frames_per_queue(at: &At<'_>) -> Option<u32> {
    let (value, least, most) = (at.integer()?, MIN_FRAMES_PER_QUEUE, MAX_FRAMES_PER_QUEUE);
    match u32::try_from(value) {
        Ok(frames) if frames.is_power_of_two() && (least..=most).contains(&frames) => Some(frames),
        Ok(_) | Err(_) => at.fail(Problem::NotAPowerOfTwo { value, least, most }),
    }
}

fn limits(at: &At<'_>) -> Option<Budgets> {
    let default = Budgets::default();
    at.fields(|fields| {
        let rates = Kind::ALL.map(|kind| fields.or(kind.name(), default[kind], |at| at.fields(|fields| rate(fields))));
        let rates = rates.into_iter().collect::<Option<Vec<Rate>>>()?;
        <[Rate; Kind::ALL.len()]>::try_from(rates).ok().map(Budgets::from)
    })
}

/// As much as a second brings may come at once, unless it says otherwise.
fn rate(fields: &mut Fields<'_>) -> Option<Rate> {
    let per_second = fields.required("per_second").and_then(|at| at.within(1, MAX_SLOW_RATE));
    let burst = fields.or("burst", None, |at| at.within(1, MAX_SLOW_RATE).map(Some));
    let (per_second, burst) = (per_second?, burst?);
    Some(Rate {
        per_second,
        burst: burst.unwrap_or(per_second),
    })
}

fn fragments(at: &At<'_>) -> Option<FragmentBounds> {
    let default = FragmentBounds::default();
    at.fields(|fields| {
        let datagrams = within(fields, "datagrams", default.datagrams, 1..=MAX_FRAGMENT_DATAGRAMS);
        let bytes = within(fields, "bytes", default.bytes, MIN_FRAGMENT_BYTES..=MAX_FRAGMENT_BYTES);
        let timeout_ms = within(fields, "timeout_ms", default.timeout_ms, TIMEOUTS_MS);
        Some(FragmentBounds {
            datagrams: datagrams?,
            bytes: bytes?,
            timeout_ms: timeout_ms?,
        })
    })
}

fn hold(at: &At<'_>) -> Option<HoldBounds> {
    let default = HoldBounds::default();
    at.fields(|fields| {
        let frames = within(fields, "frames", default.frames, 1..=MAX_HELD_FRAMES);
        let most = frames.unwrap_or(MAX_HELD_FRAMES);
        let per_backend = within(fields, "per_backend", default.per_backend.min(most), 1..=most);
        let timeout_ms = within(fields, "timeout_ms", default.timeout_ms, TIMEOUTS_MS);
        Some(HoldBounds {
            frames: frames?,
            per_backend: per_backend?,
            timeout_ms: timeout_ms?,
        })
    })
}
