//! A sampled packet: what stands in front of its bytes in `SAMPLES`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// In front of a sample's bytes. The frame is as it left: encapsulated, where it was forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SampleHeader {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Number of the verdict.
    pub verdict: u64,
    /// Index of the VIP that claimed the packet; [`Self::NONE`] where none did.
    pub vip: u64,
    /// Position of the chosen backend; [`Self::NONE`] where no slot was read, 0 where the slot had no backend.
    pub backend: u64,
    /// Interface that the packet came in by.
    pub ifindex: u64,
    /// Its receive queue.
    pub queue: u64,
    /// Length of the frame as it came, in bytes.
    pub original_len: u64,
    /// Length of the frame as it left, in bytes.
    pub len: u64,
    /// Bytes of it that follow; the ring may add padding behind them.
    pub captured_len: u64,
}

impl SampleHeader {
    /// No VIP, no backend.
    pub const NONE: u64 = u64::MAX;
}

/// One CPU's capture: tokens, and what is known of the packet in hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CaptureState {
    /// Tokens, in 1/65,536 packet.
    pub tokens: u64,
    /// Jiffy at which they were filled.
    pub jiffy: u64,
    /// As [`SampleHeader::vip`].
    pub vip: u64,
    /// As [`SampleHeader::backend`].
    pub backend: u64,
    /// As [`SampleHeader::original_len`].
    pub original_len: u64,
    /// Packets that the settings asked for and the ring had no room for.
    pub lost: u64,
}

const _: () = assert!(size_of::<SampleHeader>() == 72 && size_of::<CaptureState>() == 48);
