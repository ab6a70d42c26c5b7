//! The packet logic on the host: the same instructions over ordinary memory, for tests and for `vipline explain`.
//!
//! Never counts into a live map: counters and token buckets are the machine's own.

use std::cell::UnsafeCell;

use crate::{
    abi::{
        BackendIndex, BackendLine, BucketV4, BucketV6, Config, KeyV4, KeyV6, LimitState, MAX_PORTS, Range,
        SEGMENT_WORDS, Traffic, VipIndex, VipOptions,
    },
    balance::{
        self,
        matching::{self, Match},
    },
    decap,
    machine::{BalancerTables, Constants, Frame, MatchTables, Ranges, Tables},
    ranges,
    verdict::Verdict,
};

/// Room in front of a frame, as the kernel gives it (`XDP_PACKET_HEADROOM`).
const HEADROOM: usize = 256;
/// Part of the headroom that the kernel keeps for itself (`sizeof(struct xdp_frame)`).
const RESERVED_HEADROOM: usize = 40;

/// Views of all maps. A slice that is shorter than the map it stands for answers as the map's end does.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Read-only constants.
    pub config: &'a Config,
    /// `VIPS_V4`.
    pub vips_v4: &'a [BucketV4],
    /// `VIPS_V6`.
    pub vips_v6: &'a [BucketV6],
    /// `LOOKUP_TABLES`: each segment's words.
    pub segments: Vec<&'a [u64]>,
    /// `BACKENDS`.
    pub backends: &'a [BackendLine],
    /// `VIP_OPTIONS`.
    pub options: &'a [VipOptions],
    /// `RANGES`.
    pub ranges: &'a [Range],
    /// `SETTINGS`.
    pub settings: &'a [u64],
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was decided.
    pub verdict: Verdict,
    /// The frame as it left.
    pub frame: Vec<u8>,
    /// What was chosen, where a VIP claimed the packet and a slot was read.
    pub choice: Option<Choice>,
    /// Position in `PORTS` of a redirect.
    pub port: Option<u32>,
}

/// A choice of the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which VIP.
    pub vip: VipIndex,
    /// Slot of its lookup table.
    pub slot: u32,
    /// What the slot held; [`BackendIndex::NONE`] where there is no backend.
    pub backend: BackendIndex,
}

/// A frame and the tables it meets.
pub struct Host<'a> {
    view: View<'a>,
    buffer: Vec<u8>,
    start: usize,
    ingress_ifindex: u32,
    jiffies: u64,
    traffic: UnsafeCell<Traffic>,
    limits: UnsafeCell<LimitState>,
    choice: Option<Choice>,
    port: Option<u32>,
}

impl<'a> Host<'a> {
    /// Over these tables; packets come in by interface `ingress_ifindex`.
    pub fn new(view: View<'a>, ingress_ifindex: u32) -> Self {
        Self {
            view,
            buffer: Vec::new(),
            start: 0,
            ingress_ifindex,
            jiffies: 1,
            traffic: UnsafeCell::default(),
            limits: UnsafeCell::default(),
            choice: None,
            port: None,
        }
    }

    /// Sets the clock, in jiffies.
    pub fn set_jiffies(&mut self, jiffies: u64) {
        self.jiffies = jiffies;
    }

    /// What the balancer does with a frame.
    pub fn balance(&mut self, frame: &[u8]) -> Outcome {
        self.take(frame);
        let verdict = balance::run(self);
        self.outcome(verdict)
    }

    /// What the worker side does with a frame.
    pub fn unwrap_tunnel(&mut self, frame: &[u8]) -> Outcome {
        self.take(frame);
        let verdict = decap::run(self);
        self.outcome(verdict)
    }

    fn take(&mut self, frame: &[u8]) {
        self.buffer.clear();
        self.buffer.resize(HEADROOM, 0);
        self.buffer.extend_from_slice(frame);
        self.start = HEADROOM;
        self.choice = None;
        self.port = None;
    }

    fn outcome(&self, verdict: Verdict) -> Outcome {
        let frame = self.buffer.get(self.start..).unwrap_or_default().to_vec();
        Outcome {
            verdict,
            frame,
            choice: self.choice,
            port: self.port,
        }
    }
}

fn at<T>(slice: &[T], index: u32) -> Option<*const T> {
    slice.get(index as usize).map(std::ptr::from_ref)
}

// SAFETY: `start..end` is the buffer's own memory; it is only resized by `take`, between frames.
unsafe impl Frame for Host<'_> {
    fn start(&self) -> usize {
        self.buffer.as_ptr().expose_provenance() + self.start
    }

    fn end(&self) -> usize {
        self.buffer.as_ptr().expose_provenance() + self.buffer.len()
    }

    fn total_len(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn move_start(&mut self, delta: i32) -> bool {
        // As `bpf_xdp_adjust_head`: not into the kernel's part of the headroom, and an Ethernet header must remain.
        match self.start.checked_add_signed(delta as isize) {
            Some(start) if start >= RESERVED_HEADROOM && start + 14 <= self.buffer.len() => {
                self.start = start;
                true
            }
            _ => false,
        }
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
    }
}

impl Ranges for Host<'_> {
    fn range(&self, index: u32) -> Option<*const Range> {
        at(self.view.ranges, index)
    }
}

impl Constants for Host<'_> {
    fn config(&self) -> *const Config {
        self.view.config
    }
}

impl MatchTables for Host<'_> {
    fn bucket_v4(&self, index: u32) -> Option<*const BucketV4> {
        at(self.view.vips_v4, index)
    }

    fn bucket_v6(&self, index: u32) -> Option<*const BucketV6> {
        at(self.view.vips_v6, index)
    }
}

impl Tables for Host<'_> {
    fn features(&self) -> u64 {
        self.view.config.features
    }

    fn setting(&self, index: u32) -> Option<*const u64> {
        at(self.view.settings, index)
    }

    fn set_contains(&self, set: u64, high: u64, low: u64) -> bool {
        ranges::contains(self, set, high, low)
    }
}

impl BalancerTables for Host<'_> {
    fn overflow_v4(&self, key: Option<KeyV4>, address: KeyV4) -> Match {
        matching::overflow(self, key, address)
    }

    fn overflow_v6(&self, key: Option<KeyV6>, address: KeyV6) -> Match {
        matching::overflow(self, key, address)
    }

    fn slot_word(&self, segment: u32, word: u32) -> Option<*const u64> {
        at(self.view.segments.get(segment as usize)?, word % SEGMENT_WORDS as u32)
    }

    fn backend(&self, index: u32) -> Option<*const BackendLine> {
        at(self.view.backends, index)
    }

    fn options(&self, vip: u32) -> Option<*const VipOptions> {
        at(self.view.options, vip)
    }

    fn limit_state(&self, _vip: u32) -> Option<*mut LimitState> {
        Some(self.limits.get())
    }

    fn vip_traffic(&self, _vip: u32) -> Option<*mut Traffic> {
        Some(self.traffic.get())
    }

    fn backend_traffic(&self, _backend: u32) -> Option<*mut Traffic> {
        Some(self.traffic.get())
    }

    fn jiffies(&self) -> u64 {
        self.jiffies
    }

    fn redirect(&mut self, port: u32) -> bool {
        self.port = Some(port);
        (port as usize) < MAX_PORTS
    }

    fn to_slow_path(&mut self, _verdict: Verdict) -> bool {
        true
    }

    fn decapsulate(&mut self) -> Verdict {
        decap::run(self)
    }

    fn chose(&mut self, vip: u32, slot: u32, backend: u32) {
        self.choice = Some(Choice {
            vip: VipIndex(vip),
            slot,
            backend: BackendIndex(backend as u16),
        });
    }
}
