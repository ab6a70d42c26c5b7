//! Who owns which part of an array: blocks whose sizes are powers of two, each aligned to its own size (a buddy allocator).
//!
//! Never touches the memory it divides. It serves slot memory, in units, and the `RANGES` map, in ranges. Always gives the
//! lowest block of the smallest size that fits, so the same requests give the same places everywhere.

use std::collections::BTreeSet;

/// Free blocks by log2 of their size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Position of the first element of each free block; the index is log2 of its elements.
    free: Vec<BTreeSet<u32>>,
    /// Elements under management, in use or not.
    len: u32,
}

impl Blocks {
    /// Nothing to give yet; blocks have at most `1 << max_log2` elements.
    pub fn new(max_log2: u32) -> Self {
        Self {
            free: vec![BTreeSet::new(); max_log2 as usize + 1],
            len: 0,
        }
    }

    /// Elements under management, in use or not.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no elements under management.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Elements that nobody owns.
    pub fn free(&self) -> u32 {
        self.free
            .iter()
            .zip(0..)
            .map(|(blocks, log2)| (blocks.len() as u32) << log2)
            .sum()
    }

    /// Puts `count` elements more under management.
    pub fn grow(&mut self, count: u32) {
        let end = self.len + count;
        while self.len < end {
            let largest = self.free.len() as u32 - 1;
            let log2 = largest.min(self.len.trailing_zeros()).min((end - self.len).ilog2());
            self.release(self.len, log2);
            self.len += 1 << log2;
        }
    }

    /// Takes `1 << log2` elements; where they begin, or `None` when no block is as large.
    pub fn take(&mut self, log2: u32) -> Option<u32> {
        let found = (log2 as usize..self.free.len()).find(|log2| !self.free[*log2].is_empty())?;
        let first = self.free[found].pop_first()?;
        // The upper halves stay free.
        for log2 in log2 as usize..found {
            self.free[log2].insert(first + (1 << log2));
        }
        Some(first)
    }

    /// Takes the `1 << log2` elements at `first`, for who knows that they are in use; `false`, and nothing has changed, when they are
    /// not all free or no such block.
    pub fn take_at(&mut self, first: u32, log2: u32) -> bool {
        let log2 = log2 as usize;
        if log2 >= self.free.len() || first & ((1 << log2) - 1) != 0 {
            return false;
        }
        let around = |size: usize| first & !((1 << size) - 1);
        let Some(found) = (log2..self.free.len()).find(|size| self.free[*size].contains(&around(*size))) else {
            return false;
        };
        self.free[found].remove(&around(found));
        // Of every block that is halved on the way, the half without `first` stays free.
        for size in log2..found {
            self.free[size].insert(around(size) ^ 1 << size);
        }
        true
    }

    /// Gives back what [`Self::take`] gave for the same `log2`.
    pub fn release(&mut self, first: u32, log2: u32) {
        let (mut first, mut log2) = (first, log2 as usize);
        while log2 + 1 < self.free.len() && self.free[log2].remove(&(first ^ 1 << log2)) {
            first &= !(1 << log2);
            log2 += 1;
        }
        self.free[log2].insert(first);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xdp_prog::abi::SEGMENT_UNITS;

    use super::Blocks;

    #[test]
    fn the_lowest_place_is_given_first_and_blocks_are_aligned() {
        let mut blocks = Blocks::new(8);
        assert_eq!(blocks.take(0), None);
        blocks.grow(SEGMENT_UNITS as u32);
        assert_eq!(
            [0, 8, 0, 3, 0].map(|log2| blocks.take(log2)),
            [0, 256, 1, 8, 2].map(Some)
        );
    }

    #[test]
    fn a_segment_holds_eight_of_the_largest_tables() {
        let mut blocks = Blocks::new(8);
        blocks.grow(SEGMENT_UNITS as u32);
        let places: Vec<_> = std::iter::from_fn(|| blocks.take(8)).collect();
        assert_eq!(places, (0..8).map(|place| place * 256).collect::<Vec<_>>());
        blocks.grow(SEGMENT_UNITS as u32);
        assert_eq!(blocks.take(8), Some(2048));
    }

    #[test]
    fn a_length_that_is_no_power_of_two_is_used_to_the_end() {
        let mut blocks = Blocks::new(10);
        blocks.grow(1025 + 6);
        assert_eq!((blocks.len(), blocks.free()), (1031, 1031));
        assert_eq!(
            [10, 2, 1, 0, 0].map(|log2| blocks.take(log2)),
            [Some(0), Some(1024), Some(1028), Some(1030), None]
        );
    }

    fn requests() -> impl Strategy<Value = Vec<(u32, bool, prop::sample::Index)>> {
        proptest::collection::vec((0..=8u32, any::<bool>(), any::<prop::sample::Index>()), 0..200)
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_comes_back(requests in requests()) {
            let mut blocks = Blocks::new(8);
            blocks.grow(4096);
            let whole = blocks.clone();
            let mut owned: Vec<(u32, u32)> = Vec::new();
            for (log2, give_back, which) in requests {
                if give_back && !owned.is_empty() {
                    let (first, log2) = owned.swap_remove(which.index(owned.len()));
                    blocks.release(first, log2);
                } else if let Some(first) = blocks.take(log2) {
                    prop_assert_eq!(first % (1 << log2), 0);
                    prop_assert!(first + (1 << log2) <= 4096);
                    let apart = |(other, size): &(u32, u32)| first + (1 << log2) <= *other || other + (1 << size) <= first;
                    prop_assert!(owned.iter().all(apart));
                    owned.push((first, log2));
                }
                let used: u32 = owned.iter().map(|(_, log2)| 1 << log2).sum();
                prop_assert_eq!(blocks.free(), 4096 - used);
            }
            // Whoever knows who owns what has the same free blocks.
            let mut again = whole.clone();
            prop_assert!(owned.iter().all(|(first, log2)| again.take_at(*first, *log2)));
            prop_assert_eq!(&again, &blocks);
            prop_assert!(!owned.iter().any(|(first, log2)| again.take_at(*first, *log2)));
            prop_assert_eq!(&again, &blocks);
            owned.into_iter().for_each(|(first, log2)| blocks.release(first, log2));
            prop_assert_eq!(blocks, whole);
        }
    }
}
