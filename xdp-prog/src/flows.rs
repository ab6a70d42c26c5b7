//! The flow table: which backend a flow was given while its slot was in transit.
//!
//! Never evicts a record that lives: what finds no room is not recorded, and the caller must send it where it would be found without
//! a record. Never resized while it is used.
//!
//! A flow may stand in one of two neighbouring buckets. It goes into the second only when no way of the first was ever free since, so
//! a look-up that finds a way of the first unused (0) need not look further: nobody sets a way back to 0 while flows are looked up.
//!
//! Most flows that are looked for have no record: they began before the change. A mark for each bucket says whether a flow whose first
//! bucket it is was ever recorded; all marks of half a million buckets are 64 KiB, where the buckets are 32 MiB, a miss of cache and
//! TLB for each look. A mark is set before the record and by nobody taken back, but for all marks at once while no record matters.
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
    machine::{add, opaque, set_bits, word},
};

/// Memory of the flow table, and who is asked whether a backend lives.
pub trait FlowTable {
    /// A bucket; `None` past the end of the map.
    fn flow_bucket(&self, index: u32) -> Option<*mut FlowBucket>;
    /// A word of marks, one bit for each of 64 buckets; `None` past the end of the map.
    fn flow_marks(&self, word: u32) -> Option<*mut u64>;
    /// Backend line.
    fn backend(&self, index: u32) -> Option<*const BackendLine>;
    /// Told of a flow that found no room.
    fn unrecorded(&self, packet: Unrecorded);
    /// Told that a record says where a packet goes.
    #[inline(always)]
    fn relied(&self) {}
    /// Whether flows of VIPs with a scheduler are counted.
    #[inline(always)]
    fn is_counting(&self) -> bool {
        false
    }
    /// Open flows of VIPs with a scheduler at a backend, for atomic additions; `None` where they are not counted.
    #[inline(always)]
    fn open_flows(&self, _backend: u32) -> Option<*mut u64> {
        None
    }
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
    /// A new flow of a VIP with a scheduler.
    Scheduled,
    /// A client whose affinity would be remembered.
    Client,
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

    /// The word of its mark, and the mark.
    #[inline(always)]
    const fn mark(self) -> (u32, u64) {
        mark_of(self.bucket)
    }
}

/// Where the mark of a bucket stands: word, and bit.
#[inline(always)]
pub const fn mark_of(bucket: u32) -> (u32, u64) {
    (bucket >> 6, 1 << (bucket & 63))
}

/// A way of the table, and what stood there: a flow's living record, as [`find`] returns it.
#[derive(Clone, Copy)]
pub struct Found {
    at: *mut FlowRecord,
    word: FlowWord,
}

impl Found {
    /// Where the flow lives.
    #[inline(always)]
    pub const fn backend(&self) -> u16 {
        self.word.backend()
    }

    /// What is known of the flow: the number of a [`FlowState`], whether or not it is scheduled.
    #[inline(always)]
    pub const fn state(&self) -> u64 {
        self.word.state() & !FlowState::SCHEDULED
    }

    /// The sequence number that the record was made with.
    #[inline(always)]
    pub fn initial_sequence(&self) -> u32 {
        // SAFETY: `at` points to a record of the map, as `find` set it.
        FlowTail(unsafe { word(&raw const (*self.at).tail) }).initial_sequence()
    }
}

/// Looks for a flow's living record.
#[inline(always)]
pub fn find<T: FlowTable>(table: &T, key: FlowKey, now: u32, lives: FlowLives) -> Option<Found> {
    let (index, mark) = key.mark();
    // SAFETY: a word of the map, aligned.
    if unsafe { word(table.flow_marks(index)?.cast_const()) } & mark == 0 {
        return None;
    }
    // The compiler does not see the count, so it makes no second copy; the verifier does.
    let mut choice = opaque(0);
    while choice < 2 {
        let bucket = table.flow_bucket(key.bucket ^ choice as u32)?;
        // Without branches: the verifier walks every way through them.
        let (mut hit, mut unused) = (0, 0);
        let mut way = 0;
        while way < FLOW_WAYS {
            // SAFETY: a bucket of the map, and the way is below their number.
            let (record, differs) = unsafe { compare(bucket, way, key) };
            hit |= opaque(is_zero(differs) * (way as u64 + 1));
            unused |= opaque(is_zero(record.0));
            way += 1;
        }
        if hit != 0 {
            // SAFETY: the way is below their number, and words are aligned.
            let at = unsafe { record_at(bucket, (opaque(hit - 1) & 3) as usize) };
            // SAFETY: as above.
            let record = FlowWord(unsafe { word(&raw const (*at).word) });
            if record.is_expired(now, lives) || !lives_on(table, record.backend()) {
                return None;
            }
            return Some(Found { at, word: record });
        }
        // A way that was never used: nobody had to go on to the second bucket.
        if unused != 0 {
            return None;
        }
        choice = opaque(choice + 1);
    }
    None
}

/// 1 for 0, and 0 for everything else, without a branch; opaque, or the compiler knows what it is and makes one, or a mask of the sign,
/// at which the verifier (since Linux 6.16) goes both ways.
#[inline(always)]
fn is_zero(value: u64) -> u64 {
    opaque(opaque(!(value | opaque(value.wrapping_neg()))) >> 63)
}

/// A way's word, and 0 if the record in it is the flow's own.
///
/// # Safety
///
/// `bucket` is a live bucket, and `way` below [`FLOW_WAYS`].
#[inline(always)]
unsafe fn compare(bucket: *mut FlowBucket, way: usize, key: FlowKey) -> (FlowWord, u64) {
    // SAFETY: the caller's promise; words are aligned.
    unsafe {
        let at = record_at(bucket, way);
        let record = FlowWord(word(&raw const (*at).word));
        let tail = FlowTail(word(&raw const (*at).tail));
        let differs = (record.0 ^ key.high) >> FlowWord::FINGERPRINT | (tail.0 >> 32 ^ key.low as u64);
        // A way that was never used is nobody's.
        (record, differs | is_zero(record.0))
    }
}

/// A way of a bucket.
///
/// # Safety
///
/// `bucket` is a live bucket, and `way` below [`FLOW_WAYS`].
#[inline(always)]
unsafe fn record_at(bucket: *mut FlowBucket, way: usize) -> *mut FlowRecord {
    // SAFETY: the caller's promise.
    unsafe { (&raw mut (*bucket).records).cast::<FlowRecord>().add(way) }
}

/// A way that a flow without a living record may have; `syn_alone` says that nothing but a SYN speaks for the flow. A record of the
/// flow itself that has expired or whose backend is dead is taken first: a flow stands in the table once.
#[inline(always)]
fn room<T: FlowTable>(table: &T, key: FlowKey, now: u32, lives: FlowLives, syn_alone: bool) -> Option<Found> {
    let mut choice = opaque(0);
    let mut free = None;
    while choice < 2 {
        let bucket = table.flow_bucket(key.bucket ^ choice as u32)?;
        // Without branches, as above. Ways are counted from 1; of free ones the last is taken.
        let (mut own, mut here, mut syns, mut unused) = (0, 0, 0, 0);
        let mut way = 0;
        while way < FLOW_WAYS {
            // SAFETY: a bucket of the map, and the way is below their number.
            let (record, differs) = unsafe { compare(bucket, way, key) };
            let number = way as u64 + 1;
            let never = is_zero(record.0);
            let is_free = never | record.expired(now, lives);
            own |= opaque(is_zero(differs) * number);
            here = opaque((here * (1 - is_free)) | (number * is_free));
            syns += opaque(is_zero(record.state() & !FlowState::SCHEDULED ^ FlowState::Syn as u64) & (1 - is_free));
            unused |= opaque(never);
            way += 1;
        }
        let fits = here != 0 && (!syn_alone || syns < FLOW_SYN_WAYS);
        if own != 0 || free.is_none() && fits {
            let number = if own != 0 { own } else { here };
            // SAFETY: the way is below their number.
            let at = unsafe { record_at(bucket, (opaque(number - 1) & 3) as usize) };
            // SAFETY: words are aligned.
            let word = FlowWord(unsafe { word(&raw const (*at).word) });
            free = Some(Found { at, word });
        }
        if own != 0 || unused != 0 {
            return free;
        }
        choice = opaque(choice + 1);
    }
    free
}

/// Whether a backend is one that flows may live at: known, and not dead.
#[inline(always)]
pub(crate) fn lives_on<T: FlowTable>(table: &T, backend: u16) -> bool {
    match table.backend(u32::from(backend)) {
        // SAFETY: a line of the map, aligned.
        Some(line) => LineMeta(unsafe { word(&raw const (*line).meta) }).has(LineMeta::ALIVE),
        None => false,
    }
}

/// Records a flow that has no living record; `false` if there is no room for it, or somebody was faster.
#[inline(always)]
pub fn record<T: FlowTable>(table: &T, key: FlowKey, new: New, now: u32, lives: FlowLives) -> bool {
    let Some(found) = room(table, key, now, lives, matches!(new.state, FlowState::Syn)) else {
        return false;
    };
    if table.is_passive() {
        return true;
    }
    let (index, mark) = key.mark();
    let Some(marks) = table.flow_marks(index) else {
        return false;
    };
    // SAFETY: a word of the map, aligned, whose bits are set in this way alone.
    unsafe {
        if word(marks.cast_const()) & mark == 0 {
            set_bits(marks, mark);
        }
    }
    let word = FlowWord::new(key.high, new.backend, new.state, new.tick).marked(new.mark);
    // SAFETY: `at` points to a record of the map, as `room` set it.
    unsafe {
        if !swap(found.at, found.word, word) {
            return false;
        }
        (&raw mut (*found.at).tail).write_volatile(FlowTail::new(key.low, new.initial_sequence).0);
    }
    count(table, found.word, word);
    true
}

/// Counts the flows of a way that changed hands: each change is one compare-and-swap, and who made it counts it, so that nothing is
/// counted twice or forgotten.
#[inline(always)]
fn count<T: FlowTable>(table: &T, before: FlowWord, after: FlowWord) {
    if !table.is_counting() {
        return;
    }
    if before.counts() != 0
        && let Some(open) = table.open_flows(u32::from(before.backend()))
    {
        // SAFETY: a word of the map, aligned, which is written in this way alone.
        unsafe { add(open, u64::MAX) };
    }
    if after.counts() != 0
        && let Some(open) = table.open_flows(u32::from(after.backend()))
    {
        // SAFETY: as above.
        unsafe { add(open, 1) };
    }
}

/// What a new record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct New {
    /// Where the flow lives.
    pub backend: u16,
    /// What is known of it.
    pub state: FlowState,
    /// [`FlowState::SCHEDULED`], or 0.
    pub mark: u64,
    /// When it counts from: now, but for a client's.
    pub tick: u32,
    /// The SYN's sequence number; 0 of UDP.
    pub initial_sequence: u32,
}

/// Notes a packet of a recorded flow; `true` if that is news, even if somebody else was faster. Writes nothing where nothing is new,
/// and lets be what somebody else changed meanwhile.
#[inline(always)]
pub fn renew<T: FlowTable>(table: &T, found: &Found, state: FlowState, now: u32) -> bool {
    table.relied();
    let renewed = found.word.renewed(state, now);
    if renewed != found.word && !table.is_passive() {
        // SAFETY: `at` points to a record of the map, as `find` set it.
        let is_ours = unsafe { swap(found.at, found.word, renewed) };
        if is_ours && renewed.counts() != found.word.counts() {
            count(table, found.word, renewed);
        }
    }
    renewed != found.word
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
