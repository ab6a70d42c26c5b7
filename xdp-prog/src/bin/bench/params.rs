//! What the benchmark asks of its wrapper: one value of words, shared by the eBPF half and by `vipline-perf` (which includes
//! this file by path, as the library is no place for it).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of every frame: Ethernet, IPv6, TCP. An IPv4 frame carries 20 B of payload.
pub(crate) const FRAME_LEN: usize = 74;
/// Flow numbers in `FLOW_IDS`.
pub(crate) const FLOW_IDS: usize = 1 << 15;

/// Random lines that the wrapper reads before each packet where it pollutes the caches: the work of a machine that does more
/// than this.
pub(crate) const TOUCHED_LINES: usize = 64;

/// How the next flow is chosen.
pub(crate) mod choice {
    /// `sequence & flow_mask`; with a mask of all ones, no flow ever comes twice.
    pub(crate) const SEQUENCE: u64 = 0;
    /// A random number `& flow_mask`.
    pub(crate) const RANDOM: u64 = 1;
    /// `FLOW_IDS[sequence]`: any mix that user space can write down.
    pub(crate) const TABLE: u64 = 2;
}

/// What runs after the wrapper; the position in `TARGETS`.
pub(crate) mod target {
    /// `return XDP_TX`: what everything is measured against.
    pub(crate) const FLOOR_TX: u32 = 0;
    /// The headers read, then `XDP_TX`.
    pub(crate) const FLOOR_READ: u32 = 1;
    /// The headers read, the head moved by 20 B, 34 B written, then `XDP_TX`.
    pub(crate) const FLOOR_WRITE: u32 = 2;
    /// What is measured.
    pub(crate) const PROGRAM: u32 = 3;
    /// Number of targets.
    pub(crate) const COUNT: usize = PROGRAM as usize + 1;
}

/// Bits of [`Params::kind`], and the value that says *all kinds, at random*.
pub(crate) mod kind {
    /// UDP, else TCP.
    pub(crate) const UDP: u64 = 1;
    /// IPv6, else IPv4.
    pub(crate) const V6: u64 = 2;
    /// One of the four for each packet, at random.
    pub(crate) const MIXED: u64 = 4;
}

/// The one value of `PARAMS`. The last three words are the wrapper's own to change.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Params {
    /// See [`target`].
    pub(crate) target: u64,
    /// See [`choice`].
    pub(crate) choice: u64,
    /// Number of flows minus one.
    pub(crate) flow_mask: u64,
    /// What `sequence` grows by: odd, so that it meets every flow.
    pub(crate) stride: u64,
    /// Number of destinations, up to 131,072: VIP 0 to `vips - 1`.
    pub(crate) vips: u64,
    /// Destination 0, host order.
    pub(crate) vip_v4: u64,
    /// Upper half of destination 0, host order; the lower half is the VIP's number.
    pub(crate) vip_v6: u64,
    /// See [`kind`].
    pub(crate) kind: u64,
    /// Flags of a TCP header.
    pub(crate) tcp_flags: u64,
    /// Cache lines of `POLLUTION` to choose from, minus one; 0: leave the caches alone.
    pub(crate) pollution_mask: u64,
    /// Position in the sequence.
    pub(crate) sequence: u64,
    /// State of the random numbers; never 0.
    pub(crate) random: u64,
    /// Packets that the wrapper has made.
    pub(crate) packets: u64,
}
