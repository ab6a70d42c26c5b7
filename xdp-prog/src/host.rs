//! The packet logic on the host: the same instructions over ordinary memory, for tests and for `vipline explain`.
//!
//! Never counts into a live map: counters and token buckets are the machine's own, the buckets until it is dropped.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::BTreeMap,
    net::IpAddr,
    sync::atomic::AtomicU64,
};

use crate::{
    abi::{
        BackendIndex, BackendLine, BucketV4, BucketV6, Config, FlowBucket, KeyV4, KeyV6, LimitState, MAX_PORTS, Method,
        Range, SEGMENT_WORDS, Schedule, Traffic, VipIndex, VipMeta, VipOptions, feature,
    },
    balance::{
        self,
        matching::{self, KIND_ADDRESS, KIND_VIP},
        schedule::{self, About},
        transit::{self, Rest, Said},
        unusual,
    },
    decap,
    flows::{FlowTable, Unrecorded},
    machine::{BalancerTables, Constants, Frame, MatchTables, Ranges, Tables, take_turn, word},
    mss, ranges,
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
    /// `FLOWS`: words, eight of them a bucket. Written where the host records.
    pub flows: &'a [AtomicU64],
    /// `FLOW_MARKS`. Written where the host records.
    pub flow_marks: &'a [AtomicU64],
    /// `OPEN_FLOWS`. Written where the host records.
    pub open_flows: &'a [AtomicU64],
    /// `TURNS`. Written where the host records.
    pub turns: &'a [AtomicU64],
}

/// Where the packet logic finds its tables on the host: ordinary memory ([`View`]), or the live maps, mapped.
///
/// # Safety
///
/// Every pointer handed out points to a live, aligned value, for as long as the [`Host`] that was given this lives. Words may
/// change meanwhile as live maps do: by aligned 8-byte stores.
pub unsafe trait Memory {
    /// Read-only constants.
    fn config(&self) -> *const Config;
    /// Bucket of `VIPS_V4`; `None` past the end, here and below.
    fn bucket_v4(&self, index: u32) -> Option<*const BucketV4>;
    /// Bucket of `VIPS_V6`.
    fn bucket_v6(&self, index: u32) -> Option<*const BucketV6>;
    /// Word of a segment of `LOOKUP_TABLES`.
    fn slot_word(&self, segment: u32, word: u32) -> Option<*const u64>;
    /// Line of `BACKENDS`.
    fn backend(&self, index: u32) -> Option<*const BackendLine>;
    /// Entry of `VIP_OPTIONS`.
    fn options(&self, vip: u32) -> Option<*const VipOptions>;
    /// Entry of `RANGES`.
    fn range(&self, index: u32) -> Option<*const Range>;
    /// Word of `SETTINGS`.
    fn setting(&self, index: u32) -> Option<*const u64>;
    /// Bucket of `FLOWS`; writable, by atomic operations and the stores of [`crate::flows`].
    fn flow_bucket(&self, index: u32) -> Option<*mut FlowBucket>;
    /// Word of `FLOW_MARKS`; bits are set, by atomic operations.
    fn flow_marks(&self, word: u32) -> Option<*mut u64>;
    /// Word of `OPEN_FLOWS`; writable, by atomic additions.
    fn open_flows(&self, _backend: u32) -> Option<*mut u64> {
        None
    }
    /// Word of `TURNS`; writable, by atomic additions.
    fn turns(&self, _vip: u32) -> Option<*mut u64> {
        None
    }
    /// Word of slot memory as [`BalancerTables::activity`] has it.
    fn activity(&self, _segment: u32, _word: u32) -> Option<*mut u64> {
        None
    }
}

// SAFETY: elements of slices that are borrowed for longer than the host lives.
unsafe impl Memory for View<'_> {
    fn config(&self) -> *const Config {
        self.config
    }

    fn bucket_v4(&self, index: u32) -> Option<*const BucketV4> {
        at(self.vips_v4, index)
    }

    fn bucket_v6(&self, index: u32) -> Option<*const BucketV6> {
        at(self.vips_v6, index)
    }

    fn slot_word(&self, segment: u32, word: u32) -> Option<*const u64> {
        at(self.segments.get(segment as usize)?, word % SEGMENT_WORDS as u32)
    }

    fn backend(&self, index: u32) -> Option<*const BackendLine> {
        at(self.backends, index)
    }

    fn options(&self, vip: u32) -> Option<*const VipOptions> {
        at(self.options, vip)
    }

    fn range(&self, index: u32) -> Option<*const Range> {
        at(self.ranges, index)
    }

    fn setting(&self, index: u32) -> Option<*const u64> {
        at(self.settings, index)
    }

    fn flow_bucket(&self, index: u32) -> Option<*mut FlowBucket> {
        const WORDS: usize = size_of::<FlowBucket>() / 8;
        let first = (index as usize).checked_mul(WORDS)?;
        let words = self.flows.get(first..first + WORDS)?;
        // Atomics may be written through shared references; the pointer is that of the whole bucket.
        Some(words.as_ptr().cast_mut().cast())
    }

    fn flow_marks(&self, word: u32) -> Option<*mut u64> {
        self.flow_marks.get(word as usize).map(AtomicU64::as_ptr)
    }

    fn open_flows(&self, backend: u32) -> Option<*mut u64> {
        self.open_flows.get(backend as usize).map(AtomicU64::as_ptr)
    }

    fn turns(&self, vip: u32) -> Option<*mut u64> {
        self.turns.get(vip as usize).map(AtomicU64::as_ptr)
    }
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
    /// Where it goes; [`BackendIndex::NONE`] where there is no backend.
    pub backend: BackendIndex,
    /// What said so.
    pub by: Placed,
}

/// What said where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Its slot.
    Slot,
    /// The record of its flow, or of its client.
    Record,
    /// The VIP's scheduler: the flow is new.
    Scheduler,
}

/// A frame and the tables it meets.
pub struct Host<M> {
    memory: M,
    features: u64,
    buffer: Vec<u8>,
    start: usize,
    ingress_ifindex: u32,
    jiffies: u64,
    records: bool,
    unrecorded: Cell<[u64; 4]>,
    placed: Cell<Placed>,
    traffic: UnsafeCell<Traffic>,
    /// Token buckets by VIP, of those that have been asked for; boxed, so that they stay where they are.
    limits: RefCell<BTreeMap<u32, Box<UnsafeCell<LimitState>>>>,
    choice: Option<Choice>,
    port: Option<u32>,
}

impl<M: Memory> Host<M> {
    /// Over these tables; packets come in by interface `ingress_ifindex`.
    pub fn new(memory: M, ingress_ifindex: u32) -> Self {
        // SAFETY: the memory's promise.
        let features = unsafe { word(&raw const (*memory.config()).features) };
        Self {
            memory,
            features,
            buffer: Vec::new(),
            start: 0,
            ingress_ifindex,
            jiffies: 1,
            records: false,
            unrecorded: Cell::default(),
            placed: Cell::new(Placed::Slot),
            traffic: UnsafeCell::default(),
            limits: RefCell::default(),
            choice: None,
            port: None,
        }
    }

    /// Sets the clock, in jiffies.
    pub fn set_jiffies(&mut self, jiffies: u64) {
        self.jiffies = jiffies;
    }

    /// Has it record flows, and note where they go, as the program does; it only asks otherwise.
    pub fn record_flows(&mut self, records: bool) {
        self.records = records;
    }

    /// What found no room in the flow table, in the order of [`Unrecorded`].
    pub fn unrecorded(&self) -> [u64; 4] {
        self.unrecorded.get()
    }

    /// Switches features off, or on again with 0: for packets that the program has admitted already, whose tokens are taken.
    pub fn without(&mut self, features: u64) {
        // SAFETY: the memory's promise.
        self.features = unsafe { word(&raw const (*self.memory.config()).features) } & !features;
    }

    /// A backend's line as it is now, word by word; `None` past the end of the map.
    pub fn line(&self, backend: BackendIndex) -> Option<BackendLine> {
        let line = self.memory.backend(u32::from(backend.0))?;
        // SAFETY: the memory's promise.
        unsafe {
            let mut copy = BackendLine {
                meta: word(&raw const (*line).meta),
                destination_mac: word(&raw const (*line).destination_mac),
                source_mac: word(&raw const (*line).source_mac),
                outer: [0; 5],
            };
            for (position, outer) in copy.outer.iter_mut().enumerate() {
                *outer = word(&raw const (*line).outer[position]);
            }
            Some(copy)
        }
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
        self.placed.set(Placed::Slot);
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

/// Whether no packet from the network may have this source, as the program's feature `DROP_MARTIANS` has it.
pub fn is_martian(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => balance::is_martian_v4(u32::from_ne_bytes(source.octets())),
        IpAddr::V6(source) => {
            let bits = source.to_bits();
            balance::is_martian_v6([((bits >> 64) as u64).to_be(), (bits as u64).to_be()])
        }
    }
}

fn at<T>(slice: &[T], index: u32) -> Option<*const T> {
    slice.get(index as usize).map(std::ptr::from_ref)
}

// SAFETY: `start..end` is the buffer's own memory; it is only resized by `take`, between frames.
unsafe impl<M: Memory> Frame for Host<M> {
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

impl<M: Memory> Ranges for Host<M> {
    fn range(&self, index: u32) -> Option<*const Range> {
        self.memory.range(index)
    }
}

impl<M: Memory> Constants for Host<M> {
    fn config(&self) -> *const Config {
        self.memory.config()
    }
}

impl<M: Memory> MatchTables for Host<M> {
    fn bucket_v4(&self, index: u32) -> Option<*const BucketV4> {
        self.memory.bucket_v4(index)
    }

    fn bucket_v6(&self, index: u32) -> Option<*const BucketV6> {
        self.memory.bucket_v6(index)
    }
}

impl<M: Memory> Tables for Host<M> {
    fn features(&self) -> u64 {
        self.features
    }

    fn setting(&self, index: u32) -> Option<*const u64> {
        self.memory.setting(index)
    }

    fn set_contains(&self, set: u64, high: u64, low: u64) -> bool {
        ranges::contains(self, set, high, low)
    }
}

impl<M: Memory> FlowTable for Host<M> {
    fn flow_bucket(&self, index: u32) -> Option<*mut FlowBucket> {
        self.memory.flow_bucket(index)
    }

    fn flow_marks(&self, word: u32) -> Option<*mut u64> {
        self.memory.flow_marks(word)
    }

    fn backend(&self, index: u32) -> Option<*const BackendLine> {
        self.memory.backend(index)
    }

    fn unrecorded(&self, packet: Unrecorded) {
        let mut counts = self.unrecorded.get();
        counts[packet as usize] += 1;
        self.unrecorded.set(counts);
    }

    fn relied(&self) {
        self.placed.set(Placed::Record);
    }

    fn is_counting(&self) -> bool {
        self.features & feature::SCHEDULERS != 0
    }

    fn open_flows(&self, backend: u32) -> Option<*mut u64> {
        self.memory.open_flows(backend)
    }

    fn is_passive(&self) -> bool {
        !self.records
    }
}

impl<M: Memory> BalancerTables for Host<M> {
    fn overflow_v4(&self, key: Option<KeyV4>, address: KeyV4) -> u64 {
        match key {
            Some(key) => matching::overflow(self, KIND_VIP, key, address),
            None => matching::overflow(self, KIND_ADDRESS, address, address),
        }
    }

    fn overflow_v6(&self, key: Option<KeyV6>, address: KeyV6) -> u64 {
        match key {
            Some(key) => matching::overflow(self, KIND_VIP, key, address),
            None => matching::overflow(self, KIND_ADDRESS, address, address),
        }
    }

    fn slot_word(&self, segment: u32, word: u32) -> Option<*const u64> {
        self.memory.slot_word(segment, word)
    }

    fn activity(&self, segment: u32, word: u32) -> Option<*mut u64> {
        self.records.then(|| self.memory.activity(segment, word)).flatten()
    }

    fn transit(&mut self, hash: u64, meta: VipMeta, rest: Rest) -> Said {
        transit::run(self, hash, meta, rest)
    }

    fn client(&self, vip: u32, about: About) -> Said {
        schedule::client(self, vip, about)
    }

    fn pick(&self, vip: u32, slot: u16) -> u16 {
        // SAFETY: the memory's promise.
        let schedule = self
            .options(vip)
            .map(|options| unsafe { word(&raw const (*options).schedule) });
        if schedule.is_some_and(|schedule| Schedule(schedule).method() > Method::Slot as u64) {
            self.placed.set(Placed::Scheduler);
        }
        schedule::pick(self, vip, slot)
    }

    /// Whose turn it is, taken where flows are recorded.
    fn turn(&self, vip: u32) -> u64 {
        let turn = match self.memory.turns(vip) {
            None => 0,
            // SAFETY: the memory's promise.
            Some(at) if self.records => unsafe { take_turn(at) },
            // SAFETY: the memory's promise.
            Some(at) => unsafe { word(at) },
        };
        // SAFETY: the memory's promise.
        let secret = unsafe { word(&raw const (*self.memory.config()).flow_secret) };
        turn.wrapping_add(schedule::first_turn(secret, VipIndex(vip)))
    }

    fn options(&self, vip: u32) -> Option<*const VipOptions> {
        self.memory.options(vip)
    }

    fn limit_state(&self, vip: u32) -> Option<*mut LimitState> {
        Some(self.limits.borrow_mut().entry(vip).or_default().get())
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

    /// Never sheds: says what would be handed over.
    fn to_slow_path(&mut self, verdict: Verdict) -> Verdict {
        verdict
    }

    fn unusual(&mut self) -> Verdict {
        unusual::run(self)
    }

    fn clamp_mss(&mut self, l3: usize, most: u16) {
        // SAFETY: the buffer's own memory.
        unsafe { mss::clamp_syn(self.start() + l3, self.end(), most) };
    }

    fn decapsulate(&mut self) -> Verdict {
        decap::run(self)
    }

    fn chose(&mut self, vip: u32, slot: u32, backend: u32) {
        self.choice = Some(Choice {
            vip: VipIndex(vip),
            slot,
            backend: BackendIndex(backend as u16),
            by: self.placed.get(),
        });
    }
}
