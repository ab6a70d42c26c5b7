//! Options of a VIP, read only where its match entry says [`super::VipMeta::OPTIONS`], those of schedulers where it says
//! [`super::VipMeta::SCHEDULED`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Each word stands alone, so a change is a sequence of 8-byte stores in any order. A rate of 0 means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct VipOptions {
    /// Packets per jiffy and CPU, in 1/65,536 packet; 0: no limit.
    pub packet_rate: u64,
    /// Most packet tokens that a CPU can save up, in 1/65,536 packet.
    pub packet_burst: u64,
    /// SYNs per jiffy and CPU, in 1/65,536 packet; 0: no limit.
    pub syn_rate: u64,
    /// Most SYN tokens that a CPU can save up, in 1/65,536 packet.
    pub syn_burst: u64,
    /// [`super::SetRef`] of the sources that may use the VIP; 0: all.
    pub allowed_sources: u64,
    /// [`super::Schedule`]: who may take new flows.
    pub schedule: u64,
    /// How long a client's new flows go where its last ones went, in ticks; 0: as the schedule has it.
    pub affinity: u64,
    /// Room for what comes.
    pub reserved: u64,
}

const _: () = assert!(size_of::<VipOptions>() == 64);
