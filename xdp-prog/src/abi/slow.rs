//! What the fast path hands to the slow path, and how much of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the slow path takes of one verdict, per CPU. Each word stands alone. A burst of 0 means no limit, so what nobody has set
/// takes everything; a burst below one packet takes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SlowBudget {
    /// Packets per jiffy and CPU, in 1/65,536 packet.
    pub rate: u64,
    /// Most that a CPU can save up, in 1/65,536 packet; 0: no limit.
    pub burst: u64,
}

/// What became of a budget on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SlowState {
    /// Tokens, in 1/65,536 packet.
    pub tokens: u64,
    /// Jiffy at which they were filled.
    pub jiffy: u64,
    /// Packets that found none.
    pub shed: u64,
}

const _: () = assert!(size_of::<SlowBudget>() == 16 && size_of::<SlowState>() == 24);

/// Key in `XSK_INDEX` of an interface's receive queue.
#[inline(always)]
pub const fn socket_key(ifindex: u32, queue: u32) -> u64 {
    (ifindex as u64) << 32 | queue as u64
}
