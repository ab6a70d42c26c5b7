//! What the packet logic needs from where it runs: the kernel (maps and helpers) or a test host (plain memory).
//!
//! Everything is inlined: in the kernel's build no call remains but the helpers named here.

use crate::{
    abi::{BucketV4, BucketV6, Config, KeyV4, KeyV6, LimitState, Range, Traffic, VipMeta, VipOptions},
    balance::{
        schedule::About,
        transit::{Rest, Said},
    },
    flows::FlowTable,
    verdict::Verdict,
};

/// The packet in hand.
///
/// # Safety
///
/// `start..end` is readable and writable memory of the packet's linear part until [`Frame::move_start`] succeeds; from then on
/// only what `start` and `end` say anew.
pub unsafe trait Frame {
    /// Address of the first byte.
    fn start(&self) -> usize;
    /// Address after the last byte of the linear part.
    fn end(&self) -> usize;
    /// Length with all fragments, in bytes. Costs a helper call.
    fn total_len(&self) -> usize;
    /// Whether the frame has `len` bytes; looks at the fragments only where the linear part is too short.
    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        len <= self.end() - self.start() || len <= self.total_len()
    }
    /// Moves the start by `delta` bytes (negative: room for a header). The one helper call of the fast path.
    fn move_start(&mut self, delta: i32) -> bool;
    /// Index of the interface that the packet came in by.
    fn ingress_ifindex(&self) -> u32;
}

/// Memory of the range sets.
pub trait Ranges {
    /// A range; `None` past the end of the map.
    fn range(&self, index: u32) -> Option<*const Range>;
}

/// Read-only constants.
pub trait Constants {
    /// Read-only constants.
    fn config(&self) -> *const Config;
}

/// The match tables.
pub trait MatchTables: Constants {
    /// Bucket of the IPv4 match table.
    fn bucket_v4(&self, index: u32) -> Option<*const BucketV4>;
    /// Bucket of the IPv6 match table.
    fn bucket_v6(&self, index: u32) -> Option<*const BucketV6>;
}

/// What both programs have: constants, settings, range sets.
pub trait Tables: Constants {
    /// [`Config::features`], read once per packet.
    fn features(&self) -> u64;
    /// A setting; `None` past the end of the map.
    fn setting(&self, index: u32) -> Option<*const u64>;
    /// Whether `address` (upper and lower half) is in the set that `set` (a [`crate::abi::SetRef`]) names. Kept out of line in
    /// the kernel's build: only features that are off by default pay for the call.
    fn set_contains(&self, set: u64, high: u64, low: u64) -> bool;
}

/// What the balancer has beside.
pub trait BalancerTables: Tables + MatchTables + FlowTable {
    /// [`crate::balance::matching::overflow`], out of line in the kernel's build: only buckets that overflowed
    /// pay for the call.
    fn overflow_v4(&self, key: Option<KeyV4>, address: KeyV4) -> u64;
    /// [`crate::balance::matching::overflow`], likewise.
    fn overflow_v6(&self, key: Option<KeyV6>, address: KeyV6) -> u64;
    /// Word of slot memory.
    fn slot_word(&self, segment: u32, word: u32) -> Option<*const u64>;
    /// A word of slot memory that the packet path writes: [`crate::abi::Activity`]. `None` where it is not to be written.
    fn activity(&self, segment: u32, word: u32) -> Option<*mut u64>;
    /// Options of a VIP.
    fn options(&self, vip: u32) -> Option<*const VipOptions>;
    /// This CPU's token buckets of a VIP.
    fn limit_state(&self, vip: u32) -> Option<*mut LimitState>;
    /// This CPU's counters of a VIP.
    fn vip_traffic(&self, vip: u32) -> Option<*mut Traffic>;
    /// This CPU's counters of a backend.
    fn backend_traffic(&self, backend: u32) -> Option<*mut Traffic>;
    /// Coarse time: jiffies since boot.
    fn jiffies(&self) -> u64;
    /// Sends the packet out of `PORTS[port]`; false where there is none.
    fn redirect(&mut self, port: u32) -> bool;
    /// Gives the packet to the slow path with the reason in front of it. Returns the verdict, or [`Verdict::DropSlowBudget`] over
    /// its budget, or [`Verdict::DropNoSlowPath`] where no socket takes it.
    fn to_slow_path(&mut self, verdict: Verdict) -> Verdict;
    /// [`crate::balance::unusual::run`] for a packet that is not plain IP. Out of line in the kernel's build: only such packets pay
    /// for the call.
    fn unusual(&mut self) -> Verdict;
    /// [`crate::balance::transit::run`]. Out of line in the kernel's build: only VIPs in transit or with a scheduler pay for the call.
    fn transit(&mut self, hash: u64, meta: VipMeta, rest: Rest) -> Said;
    /// [`crate::balance::schedule::client`]. Out of line in the kernel's build, as all that only new flows of VIPs with a scheduler need.
    fn client(&self, vip: u32, about: About) -> Said;
    /// [`crate::balance::schedule::pick`], likewise.
    fn pick(&self, vip: u32, slot: u16) -> u16;
    /// The number of a VIP's turn, which is taken by that; who only asks does not take it.
    fn turn(&self, vip: u32) -> u64;
    /// [`crate::mss::clamp_syn`], out of line in the kernel's build. `l3` is the offset of the IP header.
    fn clamp_mss(&mut self, l3: usize, most: u16);
    /// The worker side for an LB node that is a worker node too ([`crate::decap::run`]). Out of line in the kernel's build: only
    /// tunnel packets pay for the call.
    fn decapsulate(&mut self) -> Verdict;
    /// Told which VIP claims the packet, for captures; nothing without.
    #[inline(always)]
    fn claimed(&mut self, _vip: u32) {}
    /// Told what was chosen, for `explain` and captures; nothing without.
    #[inline(always)]
    fn chose(&mut self, _vip: u32, _slot: u32, _backend: u32) {}
}

/// Reads a word that user space may be writing: one load, never torn.
///
/// # Safety
///
/// `at` points to a live, aligned word.
#[inline(always)]
pub unsafe fn word(at: *const u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { at.read_volatile() }
}

/// Adds to a word that others add to at the same time; `u64::MAX` takes one away.
///
/// # Safety
///
/// `at` points to a live, aligned word that is changed by atomic operations alone.
#[inline(always)]
pub unsafe fn add(at: *mut u64, value: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise. The compiler does not offer the instruction for this target.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) at, in(reg) value, options(nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(at) }.fetch_add(value, Ordering::Relaxed);
    }
}

/// Sets bits of a word that others set bits of at the same time.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub unsafe fn set_bits(at: *mut u64, bits: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise. The compiler does not offer the instruction for this target.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) at, in(reg) bits, options(nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(at) }.fetch_or(bits, Ordering::Relaxed);
    }
}

/// As [`add`] of 1; what was there before.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub unsafe fn take_turn(at: *mut u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = 1_u64;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) at, inout(reg) value, options(nostack));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(at) }.fetch_add(1, Ordering::Relaxed)
    }
}

/// Loads a header field.
///
/// # Safety
///
/// `at..at + size_of::<T>()` lies inside the packet, as a comparison with [`Frame::end`] has shown.
#[inline(always)]
pub unsafe fn load<T: Copy>(at: usize) -> T {
    let at = at as *const T;
    // SAFETY: in bounds by the caller's promise. The kernel's VM allows unaligned packet access and the compiler splits
    // `read_unaligned` into bytes for this target, so the kernel's build loads as if aligned.
    #[cfg(target_arch = "bpf")]
    return unsafe { at.read_volatile() };
    // SAFETY: in bounds by the caller's promise.
    #[cfg(not(target_arch = "bpf"))]
    return unsafe { at.read_unaligned() };
}

/// Stores a header field.
///
/// # Safety
///
/// As for [`load`].
#[inline(always)]
pub unsafe fn store<T: Copy>(at: usize, value: T) {
    let at = at as *mut T;
    // SAFETY: as in `load`.
    #[cfg(target_arch = "bpf")]
    unsafe {
        at.write_volatile(value);
    }
    // SAFETY: in bounds by the caller's promise.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        at.write_unaligned(value);
    }
}

/// The value, with the compiler kept from knowing anything about it: what was computed without branches stays so.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: moves a register to itself (an empty statement would share its line with the next instruction, which the
        // kernel refuses in line information).
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// Whether a feature (or one of several) is compiled in, so to speak: a constant to the verifier, which drops the other way. One
/// instruction, of which nothing is left; the compiler would make three, of which two are.
#[inline(always)]
pub fn is_on<const FEATURES: u64>(machine: &(impl Tables + ?Sized)) -> bool {
    #[cfg(target_arch = "bpf")]
    {
        // SAFETY: looks at a register and jumps.
        unsafe {
            core::arch::asm!(
                "if {0} & {1} goto {2}",
                in(reg) machine.features(),
                const FEATURES,
                label { return true },
                options(nomem, nostack),
            );
        }
        false
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        machine.features() & FEATURES != 0
    }
}
