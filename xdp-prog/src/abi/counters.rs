//! Per-CPU values: the program of one CPU writes, user space reads and sums.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Packets and bytes forwarded. Bytes are those of the IP packet as the client sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the first byte of the IP header to the last of the payload.
    pub bytes: u64,
}

/// Token buckets of a VIP on one CPU: tokens in 1/65,536 packet, and the jiffy they were last filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LimitState {
    /// Tokens for packets.
    pub packet_tokens: u64,
    /// Jiffy at which they were filled.
    pub packet_jiffy: u64,
    /// Tokens for SYNs.
    pub syn_tokens: u64,
    /// Jiffy at which they were filled.
    pub syn_jiffy: u64,
}

/// Flows that found no room in the flow table, on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowCounts {
    /// SYNs, sent to where flows without a record live.
    pub syns: u64,
    /// Datagrams in a learning window, which lasts longer for it.
    pub datagrams: u64,
    /// New flows of VIPs with a scheduler, sent by their slot instead.
    pub scheduled: u64,
    /// Clients that an affinity is not remembered of, sent by their slot instead.
    pub clients: u64,
}

const _: () = assert!(size_of::<FlowCounts>() == 32);
const _: () = assert!(size_of::<Traffic>() == 16 && size_of::<LimitState>() == 32);
