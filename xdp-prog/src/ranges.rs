//! Is an address in a set of ranges? A binary search of fixed length without branches: the verifier sees one path instead of a
//! thousand, and a set of any size costs the same.

use crate::{
    abi::{MAX_SET_LOG2, SetRef},
    machine::{Ranges, opaque, word},
};

/// The lower half of an IPv4-mapped address (RFC 4291, 2.5.5.2) whose upper half is 0.
#[inline(always)]
pub const fn mapped_low(address_be: u32) -> u64 {
    0xffff_0000_0000 | u32::from_be(address_be) as u64
}

/// 1 where a <= b, else 0, without a branch: the borrow of b - a (Hacker's Delight, 2-12).
#[inline(always)]
pub(crate) fn at_most(a: u64, b: u64) -> u64 {
    1 ^ opaque((!b & a | (!b | a) & b.wrapping_sub(a)) >> 63)
}

/// 1 where (`a_high`, `a_low`) <= (`b_high`, `b_low`), else 0.
#[inline(always)]
fn at_most_wide(a_high: u64, a_low: u64, b_high: u64, b_low: u64) -> u64 {
    let high_below = 1 ^ at_most(b_high, a_high);
    high_below | at_most(a_high, b_high) & at_most(a_low, b_low)
}

/// Whether the address with these halves (IPv4: `0`, [`mapped_low`]) is in the set; an absent set contains nothing.
#[inline(always)]
pub fn contains<R: Ranges>(ranges: &R, set: u64, high: u64, low: u64) -> bool {
    let set = SetRef(set);
    if !set.is_present() {
        return false;
    }
    let len = set.padded_len();
    let mut position = 0;
    let mut step = MAX_SET_LOG2;
    while step > 0 {
        step -= 1;
        let candidate = position + (1 << step);
        let Some(range) = ranges.range(set.offset().wrapping_add(candidate & (len - 1))) else {
            return false;
        };
        // SAFETY: a pointer from a map lookup, words aligned.
        let below = unsafe {
            at_most_wide(
                word(&raw const (*range).first_high),
                word(&raw const (*range).first_low),
                high,
                low,
            )
        };
        let inside = at_most(u64::from(candidate) + 1, u64::from(len));
        position += (below & inside) as u32 * (1 << step);
    }
    let Some(range) = ranges.range(set.offset().wrapping_add(position & (len - 1))) else {
        return false;
    };
    // SAFETY: as above.
    unsafe {
        let after_first = at_most_wide(
            word(&raw const (*range).first_high),
            word(&raw const (*range).first_low),
            high,
            low,
        );
        let before_last = at_most_wide(
            high,
            low,
            word(&raw const (*range).last_high),
            word(&raw const (*range).last_low),
        );
        after_first & before_last == 1
    }
}

#[cfg(test)]
mod tests {
    use super::at_most;

    #[test]
    fn comparison_without_branches_agrees_with_the_operator() {
        let edges = [
            0,
            1,
            2,
            1 << 31,
            1 << 32,
            1 << 63,
            (1 << 63) + 1,
            u64::MAX - 1,
            u64::MAX,
        ];
        for a in edges {
            for b in edges {
                assert_eq!(at_most(a, b) == 1, a <= b, "{a} <= {b}");
            }
        }
    }
}
