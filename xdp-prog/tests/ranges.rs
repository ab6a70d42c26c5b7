//! Range search against looking at every range.

use proptest::prelude::*;
use xdp_prog::{
    abi::{MAX_SET_RANGES, Range, SetRef},
    machine::Ranges,
    ranges::{contains, mapped_low},
};

struct Memory(Vec<Range>);

impl Ranges for Memory {
    fn range(&self, index: u32) -> Option<*const Range> {
        self.0.get(index as usize).map(std::ptr::from_ref)
    }
}

/// A set somewhere in memory, with other sets before and behind it.
struct Set {
    memory: Memory,
    reference: u64,
    ranges: Vec<(u128, u128)>,
}

impl Set {
    fn new(ranges: Vec<(u128, u128)>, offset: usize) -> Self {
        let everything = Range::new(0, u128::MAX);
        let mut memory = vec![everything; offset];
        let log2 = ranges.len().max(1).next_power_of_two().trailing_zeros();
        memory.extend(ranges.iter().map(|&(first, last)| Range::new(first, last)));
        memory.resize(offset + (1 << log2), Range::PADDING);
        memory.extend([everything; 3]);
        Self {
            memory: Memory(memory),
            reference: SetRef::new(offset as u32, log2).0,
            ranges,
        }
    }

    fn says(&self, address: u128) -> bool {
        contains(&self.memory, self.reference, (address >> 64) as u64, address as u64)
    }

    fn naively(&self, address: u128) -> bool {
        self.ranges
            .iter()
            .any(|&(first, last)| first <= address && address <= last)
    }

    fn check(&self, address: u128) {
        // Padding begins at the last of all addresses, and hides a range that ends there. It is a multicast address, which no
        // packet has as its source or destination here.
        if address == u128::MAX && !self.ranges.len().is_power_of_two() {
            return;
        }
        assert_eq!(
            self.says(address),
            self.naively(address),
            "{address:#034x} in {} ranges",
            self.ranges.len()
        );
    }

    fn check_edges(&self) {
        for &(first, last) in &self.ranges {
            for address in [
                first.wrapping_sub(1),
                first,
                first + (last - first) / 2,
                last,
                last.wrapping_add(1),
            ] {
                self.check(address);
            }
        }
        for address in [
            0,
            1,
            u128::from(u64::MAX),
            1 << 64,
            1 << 63,
            1 << 127,
            u128::MAX - 1,
            u128::MAX,
        ] {
            self.check(address);
        }
    }
}

/// Sorted, disjoint ranges from the ends that chance gives.
fn disjoint(mut ends: Vec<u128>) -> Vec<(u128, u128)> {
    ends.sort_unstable();
    ends.dedup();
    ends.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

/// Numbers that meet in their upper half, in their lower half, and at the borders of either.
fn number() -> impl Strategy<Value = u128> {
    let half = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(1_u64 << 63),
        0..100_u64,
        any::<u64>()
    ];
    (half.clone(), half).prop_map(|(high, low)| u128::from(high) << 64 | u128::from(low))
}

proptest! {
    #[test]
    fn search_agrees_with_looking_at_every_range(
        ends in proptest::collection::vec(number(), 0..80),
        others in proptest::collection::vec(number(), 40),
        offset in 0_usize..70,
    ) {
        let set = Set::new(disjoint(ends), offset);
        set.check_edges();
        for address in others {
            set.check(address);
        }
    }
}

#[test]
fn sets_of_every_size_up_to_the_bound_are_searched_whole() {
    for count in (0..70).chain([511, 512, 513, 1000, MAX_SET_RANGES - 1, MAX_SET_RANGES]) {
        let ranges = (0..count as u128)
            .map(|step| ((step * 5 + 2) << 61, ((step * 5 + 4) << 61) - 1))
            .collect();
        Set::new(ranges, 9).check_edges();
    }
}

#[test]
fn no_set_and_an_empty_set_contain_nothing() {
    let empty = Set::new(Vec::new(), 4);
    for address in [0, 1, 1 << 64, u128::MAX] {
        assert!(!empty.says(address));
        assert!(!contains(&empty.memory, 0, (address >> 64) as u64, address as u64));
    }
}

#[test]
fn the_whole_of_numbers_can_be_a_range() {
    let all = Set::new(vec![(0, u128::MAX)], 0);
    for address in [0, 1, 1 << 64, u128::MAX] {
        assert!(all.says(address));
    }
}

/// The word comes from a map that user space writes: whatever it says, the search ends and reads nothing that is not there.
#[test]
fn a_reference_that_no_one_of_us_wrote_does_no_harm() {
    let memory = Memory(vec![Range::new(0, u128::MAX); 8]);
    for log2 in [0, 3, 4, 10, 11, 31, 32, 63, 64, 255] {
        for offset in [0, 7, 8, u32::MAX] {
            let _ = contains(&memory, SetRef::new(offset, log2).0, 1, 2);
        }
    }
}

#[test]
fn an_ipv4_address_stands_where_its_mapped_form_does() {
    let address = std::net::Ipv4Addr::new(192, 0, 2, 80);
    let wire = u32::from_ne_bytes(address.octets());
    assert_eq!(u128::from(mapped_low(wire)), address.to_ipv6_mapped().to_bits());
}
