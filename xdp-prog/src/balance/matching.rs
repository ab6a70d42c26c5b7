//! The match table, searched: the same for both families.
//!
//! Never looks into more than one cache line unless that one says that something of it stands elsewhere.

use crate::{
    abi::{BucketV4, BucketV6, CHOICES, EntryV6, KeyV4, KeyV6, VipMeta, WAYS_V4, WAYS_V6},
    machine::{BalancerTables, Constants, MatchTables, opaque, word},
};

/// What the match table has for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// A VIP claims it.
    Vip(VipMeta),
    /// It is for a VIP address, and that is all; with the address entry's word.
    Address(VipMeta),
    /// It is not for us.
    Nothing,
}

impl Match {
    /// Bits that no [`VipMeta`] has say which: [`KIND_VIP`] or [`KIND_ADDRESS`]; a word of 0 is [`Self::Nothing`].
    const KIND_SHIFT: u32 = 62;

    /// From one word, as a subprogram returns it.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        // The sign, and whether there is anything: without the constants, which are ten bytes of machine code each.
        if (word as i64) < 0 {
            Self::Address(VipMeta(word))
        } else if word != 0 {
            Self::Vip(VipMeta(word))
        } else {
            Self::Nothing
        }
    }
}

/// A key of one family and the table that it stands in.
pub trait Key: Copy {
    /// A cache line of the table.
    type Bucket;
    /// Buckets of the table minus one.
    fn mask<C: Constants>(constants: &C) -> u64;
    /// The bucket that all keys of the address share.
    fn home(self, salt: u64, mask: u64) -> u32;
    /// The bucket of one of [`CHOICES`].
    fn bucket_of(self, choice: u64, salt: u64, mask: u64) -> u32;
    /// A bucket of the table.
    fn bucket<M: MatchTables>(machine: &M, index: u32) -> Option<*const Self::Bucket>;
    /// Entries of a bucket.
    const WAYS: usize;
    /// What an entry of a bucket has for the key.
    ///
    /// # Safety
    ///
    /// `bucket` is a live bucket of the table, and `way` below [`Self::WAYS`].
    unsafe fn in_way(self, bucket: *const Self::Bucket, way: usize) -> Option<VipMeta>;
    /// What a bucket has for the key.
    ///
    /// # Safety
    ///
    /// `bucket` is a live bucket of the table.
    #[inline(always)]
    unsafe fn in_bucket(self, bucket: *const Self::Bucket) -> Option<VipMeta> {
        let mut way = 0;
        while way < Self::WAYS {
            // SAFETY: the caller's promise.
            if let Some(found) = unsafe { self.in_way(bucket, way) } {
                return Some(found);
            }
            way += 1;
        }
        None
    }
    /// The word that carries [`VipMeta::OVERFLOW`].
    ///
    /// # Safety
    ///
    /// `bucket` is a live bucket of the table.
    unsafe fn overflow_word(bucket: *const Self::Bucket) -> VipMeta;
    /// [`overflow`], as the machine calls it.
    fn overflow<M: BalancerTables>(machine: &M, key: Option<Self>, address: Self) -> u64;
}

/// Looks for `key`, and for the address entry where it is not there.
#[inline(always)]
pub(super) fn find<K: Key, M: BalancerTables>(machine: &M, key: K, address: K) -> Match {
    let (salt, mask) = hashing::<K, M>(machine);
    let Some(bucket) = K::bucket(machine, address.home(salt, mask)) else {
        return Match::Nothing;
    };
    // SAFETY: a pointer from a map lookup.
    if let Some(found) = unsafe { key.in_bucket(bucket) } {
        return Match::Vip(found);
    }
    // SAFETY: as above.
    if unsafe { K::overflow_word(bucket) }.has(VipMeta::OVERFLOW) {
        return Match::from_word(K::overflow(machine, Some(key), address));
    }
    // SAFETY: as above.
    unsafe { address.in_bucket(bucket) }.map_or(Match::Nothing, Match::Address)
}

/// The long way of the same: looks into all buckets of `key`, as what it is looked for (the upper bits of [`Match`]'s word), and then
/// into those of `address`. One loop and not six copies of its body. Returns [`Match`]'s word.
#[inline(always)]
pub fn overflow<K: Key, M: MatchTables>(machine: &M, kind: u64, key: K, address: K) -> u64 {
    let (salt, mask) = hashing::<K, M>(machine);
    let (mut wanted, mut kind) = (key, opaque(kind));
    loop {
        // The compiler does not see the counts, so it neither peels nor unrolls the loops; the verifier does.
        let mut choice = opaque(0);
        while choice < CHOICES as u64 {
            if let Some(bucket) = K::bucket(machine, wanted.bucket_of(choice, salt, mask)) {
                let mut way = opaque(0);
                while way < K::WAYS as u64 {
                    // SAFETY: a pointer from a map lookup, and the way is below their number.
                    if let Some(found) = unsafe { wanted.in_way(bucket, way as usize) } {
                        return found.0 | kind << Match::KIND_SHIFT;
                    }
                    way = opaque(way + 1);
                }
            }
            choice = opaque(choice + 1);
        }
        if kind == KIND_ADDRESS {
            return 0;
        }
        (wanted, kind) = (address, opaque(KIND_ADDRESS));
    }
}

/// What [`overflow`] looks for first: a VIP.
pub const KIND_VIP: u64 = 1;
/// What it looks for then: an address entry.
pub const KIND_ADDRESS: u64 = 2;

/// Salt and mask of a family's table.
#[inline(always)]
fn hashing<K: Key, C: Constants>(constants: &C) -> (u64, u64) {
    // SAFETY: the configuration lives as long as the program.
    let salt = unsafe { word(&raw const (*constants.config()).match_salt) };
    (salt, K::mask(constants))
}

impl Key for KeyV4 {
    type Bucket = BucketV4;
    const WAYS: usize = WAYS_V4;

    #[inline(always)]
    fn mask<C: Constants>(constants: &C) -> u64 {
        // SAFETY: the configuration lives as long as the program.
        unsafe { word(&raw const (*constants.config()).match_mask_v4) }
    }

    #[inline(always)]
    fn home(self, salt: u64, mask: u64) -> u32 {
        self.home(salt, mask)
    }

    #[inline(always)]
    fn bucket_of(self, choice: u64, salt: u64, mask: u64) -> u32 {
        self.bucket_of(choice, salt, mask)
    }

    #[inline(always)]
    fn bucket<M: MatchTables>(machine: &M, index: u32) -> Option<*const BucketV4> {
        machine.bucket_v4(index)
    }

    #[inline(always)]
    unsafe fn in_way(self, bucket: *const BucketV4, way: usize) -> Option<VipMeta> {
        // SAFETY: the caller's promise; words are aligned.
        unsafe {
            let keys = (&raw const (*bucket).keys).cast::<u64>();
            if word(keys.add(way)) != self.0 {
                return None;
            }
            let metas = (&raw const (*bucket).metas).cast::<u64>();
            Some(VipMeta(word(metas.add(way))))
        }
    }

    #[inline(always)]
    unsafe fn overflow_word(bucket: *const BucketV4) -> VipMeta {
        // SAFETY: the caller's promise; words are aligned.
        VipMeta(unsafe { word(&raw const (*bucket).metas[0]) })
    }

    #[inline(always)]
    fn overflow<M: BalancerTables>(machine: &M, key: Option<Self>, address: Self) -> u64 {
        machine.overflow_v4(key, address)
    }
}

impl Key for KeyV6 {
    type Bucket = BucketV6;
    const WAYS: usize = WAYS_V6;

    #[inline(always)]
    fn mask<C: Constants>(constants: &C) -> u64 {
        // SAFETY: the configuration lives as long as the program.
        unsafe { word(&raw const (*constants.config()).match_mask_v6) }
    }

    #[inline(always)]
    fn home(self, salt: u64, mask: u64) -> u32 {
        self.home(salt, mask)
    }

    #[inline(always)]
    fn bucket_of(self, choice: u64, salt: u64, mask: u64) -> u32 {
        self.bucket_of(choice, salt, mask)
    }

    #[inline(always)]
    fn bucket<M: MatchTables>(machine: &M, index: u32) -> Option<*const BucketV6> {
        machine.bucket_v6(index)
    }

    #[inline(always)]
    unsafe fn in_way(self, bucket: *const BucketV6, way: usize) -> Option<VipMeta> {
        // SAFETY: the caller's promise; words are aligned. The tail is read first: it is written last, and a removal clears it,
        // so an entry whose tail fits was whole.
        unsafe {
            let entry = (&raw const (*bucket).entries).cast::<EntryV6>().add(way);
            let fits = word(&raw const (*entry).tail) == self.tail
                && word(&raw const (*entry).low) == self.low
                && word(&raw const (*entry).high) == self.high;
            fits.then(|| VipMeta(word(&raw const (*entry).meta)))
        }
    }

    #[inline(always)]
    unsafe fn overflow_word(bucket: *const BucketV6) -> VipMeta {
        // SAFETY: the caller's promise; words are aligned.
        VipMeta(unsafe { word(&raw const (*bucket).entries[0].meta) })
    }

    #[inline(always)]
    fn overflow<M: BalancerTables>(machine: &M, key: Option<Self>, address: Self) -> u64 {
        machine.overflow_v6(key, address)
    }
}
