//! The Internet checksum (RFC 1071) on words in whatever order they were loaded: one's-complement sums do not depend on byte
//! order, so nothing is swapped.

/// Adds a word's four 16-bit parts.
#[inline(always)]
pub const fn sum64(word: u64) -> u64 {
    (word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff) + (word >> 48)
}

/// Folds a sum of at most 2^32 to the checksum that goes into a header.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The checksum after one 16-bit field changed from `old` to `new` (RFC 1624, equation 3), all as loaded.
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish(!checksum as u64 + !old as u64 + new as u64)
}
