//! The flow table: which backend a flow was given while its slot was in transit.
//!
//! Never evicts a record that lives: what finds no room is not recorded, and the caller must send it where it would be found without
//! a record. Never resized while it is used.
//!
//! A flow may stand in one of two neighbouring buckets. It goes into the second only when no way of the first was ever free since, so
//! a look-up that finds a way of the first unused (0) need not look further: nobody sets a way back to 0 while flows are looked up.
//!
//! A flow is known by all 64 bits of its seeded hash: [`FlowKey`] takes twelve for the bucket and the rest as fingerprint, after a
//! bijection keyed by a secret of the node's own. So another flow is taken for it with probability 2^-64 for each pair, or, in the
//! nanoseconds between the two stores of a new record, 2^-20 for who shares the half that stood there before.

use crate::{
    abi::{
        BackendLine, FLOW_SYN_WAYS, FLOW_WAYS, FlowBucket, FlowLives, FlowRecord, FlowState, FlowTail, FlowWord,
        LineMeta,
    },
    hash,
    machine::{opaque, word},
};

/// Memory of the flow table, and who is asked whether a backend lives.
pub trait FlowTable {
    /// A bucket; `None` past the end of the map.
    fn flow_bucket(&self, index: u32) -> Option<*mut FlowBucket>;
    /// Backend line.
    fn backend(&self, index: u32) -> Option<*const BackendLine>;
    /// Told of a flow that found no room.
    fn unrecorded(&self, packet: Unrecorded);
    /// Whether nothing may be written: who only asks where a flow would go is told so, as if what can be recorded had been.
    #[inline(always)]
    fn is_passive(&self) -> bool {
        false
    }
}

/// What found no room in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unrecorded {
    /// A SYN.
    Syn,
    /// A datagram in the learning window, which must be longer now.
    Datagram,
}

/// Where a flow stands in the table, and by what it is known there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    bucket: u32,
    /// Upper 20 bits of the fingerprint, in place.
    high: u64,
    low: u32,
}

impl FlowKey {
    /// From the flow's hash, in a table of `mask + 1` buckets, at most 2^32.
    #[inline(always)]
    pub const fn new(hash: u64, secret: u64, mask: u64) -> Self {
        // A bijection: no two hashes share bucket and fingerprint.
        let hash = hash::mix(hash ^ secret);
        let hash = hash ^ hash >> 32;
        Self {
            bucket: (hash & mask) as u32,
            high: hash >> FlowWord::FINGERPRINT << FlowWord::FINGERPRINT,
            low: (hash >> 12) as u32,
        }
    }

    /// Its first bucket.
    pub const fn bucket(self) -> u32 {
        self.bucket
    }
}

/// What the table has for a flow.
#[derive(Clone, Copy)]
pub struct Found {
    /// The record of the flow, or a way that it may have, or null.
    at: *mut FlowRecord,
    /// What stood there.
    word: FlowWord,
    /// Whether it is the flow's own and its backend lives.
    pub is_record: bool,
}

impl Found {
    /// Where the flow lives; meaningful if [`Self::is_record`].
    #[inline(always)]
    pub const fn backend(&self) -> u16 {
        self.word.backend()
    }

    /// What is known of the flow; meaningful if [`Self::is_record`].
    #[inline(always)]
    pub const fn state(&self) -> u64 {
        self.word.state()
    }

    /// The sequence number that the record was made with; only if [`Self::is_record`].
    #[inline(always)]
    pub fn initial_sequence(&self) -> u32 {
        // SAFETY: `at` points to a record of the map, as `find` set it.
        FlowTail(unsafe { word(&raw const (*self.at).tail) }).initial_sequence()
    }
}

/// Looks for a flow's living record, or else for a way that it may be recorded in; `syn_alone` says that nothing but a SYN speaks for
/// the flow.
#[inline(always)]
pub fn find<T: FlowTable>(table: &T, key: FlowKey, now: u32, lives: FlowLives, syn_alone: bool) -> Found {
    let mut free = Found {
        at: core::ptr::null_mut(),
        word: FlowWord(0),
        is_record: false,
    };
    // The compiler does not see the counts, so it unrolls nothing; the verifier does.
    let mut choice = opaque(0);
    while choice < 2 {
        let Some(bucket) = table.flow_bucket(key.bucket ^ choice as u32) else {
            return free;
        };
        let (mut way, mut syns, mut unused, mut here) = (opaque(0), opaque(0), opaque(0), free);
        while way < FLOW_WAYS as u64 {
            // SAFETY: a bucket of the map, and the way is below their number.
            let at = unsafe { (&raw mut (*bucket).records).cast::<FlowRecord>().add(way as usize) };
            // SAFETY: as above; words are aligned.
            let record = FlowWord(unsafe { word(&raw const (*at).word) });
            let expired = record.0 == 0 || record.is_expired(now, lives);
            if !expired {
                // SAFETY: as above.
                let tail = FlowTail(unsafe { word(&raw const (*at).tail) });
                if (record.0 ^ key.high) >> FlowWord::FINGERPRINT == 0 && tail.low() == key.low {
                    return Found {
                        at,
                        word: record,
                        is_record: lives_on(table, record.backend()),
                    };
                }
                if record.state() == FlowState::Syn as u64 {
                    syns += 1;
                }
            } else if here.at.is_null() {
                here = Found {
                    at,
                    word: record,
                    is_record: false,
                };
            }
            if record.0 == 0 {
                unused = opaque(1);
            }
            way = opaque(way + 1);
        }
        if !syn_alone || syns < FLOW_SYN_WAYS {
            free = here;
        }
        if unused != 0 {
            return free;
        }
        choice = opaque(choice + 1);
    }
    free
}

/// Whether a backend is one that flows may live at: known, and not dead.
#[inline(always)]
fn lives_on<T: FlowTable>(table: &T, backend: u16) -> bool {
    match table.backend(u32::from(backend)) {
        // SAFETY: a line of the map, aligned.
        Some(line) => LineMeta(unsafe { word(&raw const (*line).meta) }).has(LineMeta::ALIVE),
        None => false,
    }
}

/// Records a flow in the way that was found for it; `false` if there was none, or somebody was faster.
#[inline(always)]
pub fn record<T: FlowTable>(
    table: &T,
    found: &Found,
    key: FlowKey,
    backend: u16,
    state: FlowState,
    initial_sequence: u32,
    now: u32,
) -> bool {
    if found.at.is_null() {
        return false;
    }
    if table.is_passive() {
        return true;
    }
    // SAFETY: `at` points to a record of the map, as `find` set it.
    unsafe {
        if !swap(found.at, found.word, FlowWord::new(key.high, backend, state, now)) {
            return false;
        }
        (&raw mut (*found.at).tail).write_volatile(FlowTail::new(key.low, initial_sequence).0);
    }
    true
}

/// Notes a packet of a recorded flow. Writes nothing where nothing is new, and lets be what somebody else changed meanwhile.
#[inline(always)]
pub fn renew<T: FlowTable>(table: &T, found: &Found, state: FlowState, now: u32) {
    let renewed = found.word.renewed(state, now);
    if renewed != found.word && !table.is_passive() {
        // SAFETY: `at` points to a record of the map, as `find` set it.
        unsafe { swap(found.at, found.word, renewed) };
    }
}

/// Compare-and-swap of a record's first word.
///
/// # Safety
///
/// `at` points to a live, aligned record.
#[inline(always)]
unsafe fn swap(at: *mut FlowRecord, before: FlowWord, after: FlowWord) -> bool {
    // SAFETY: the caller's promise.
    let word = unsafe { &raw mut (*at).word };
    #[cfg(target_arch = "bpf")]
    {
        // The kernel's VM has the instruction; the compiler does not offer it for this target.
        let mut found = before.0;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64(r1 + 0, r0, r2)",
                inout("r0") found,
                in("r1") word,
                in("r2") after.0,
                options(nostack),
            );
        }
        found == before.0
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        let word = unsafe { AtomicU64::from_ptr(word) };
        word.compare_exchange(before.0, after.0, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}
