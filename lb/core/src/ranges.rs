//! Address ranges as the program searches them: CIDR lists merged into sorted, disjoint ranges.
//!
//! Never says where a set stands in the `RANGES` map; that is the planner's. Two lists that cover the same addresses give equal
//! sets, so the planner can share them.

use std::net::IpAddr;

use ipnet::IpNet;
use xdp_prog::abi::{MAX_SET_RANGES, Range, number};

/// First number of the IPv4-mapped block `::ffff:0:0/96`, where IPv4 addresses stand.
const MAPPED_FIRST: u128 = 0xffff_0000_0000;
/// Last number of it.
const MAPPED_LAST: u128 = 0xffff_ffff_ffff;

/// A set of addresses of both families: sorted, disjoint ranges with a gap between each two. At most [`MAX_SET_RANGES`] fit the
/// program's search: whoever builds a set from outside input checks [`RangeSet::len`].
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// The addresses that any of `cidrs` contains, in any order and with any overlap. Host bits are ignored.
    ///
    /// An IPv6 network never takes in IPv4 addresses, although those stand as `::ffff:a.b.c.d`: `::/0` is all of IPv6 and none
    /// of IPv4, and a network inside `::ffff:0:0/96` is empty (such sources are martians on the wire, RFC 4038 4.2).
    pub fn from_cidrs(cidrs: &[IpNet]) -> Self {
        Self::merged(cidrs.iter().flat_map(spans).flatten().collect())
    }

    /// Exactly `addresses`.
    pub fn from_addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self::merged(
            addresses
                .into_iter()
                .map(number)
                .map(|address| (address, address))
                .collect(),
        )
    }

    /// The set that [`Self::padded`] gave; `None` if it is none.
    pub fn from_padded(padded: &[Range]) -> Option<Self> {
        let mut ranges = padded.to_vec();
        ranges.dedup();
        if ranges == [Range::PADDING] {
            ranges.clear();
        }
        let set = Self { ranges };
        let whole = set.ranges.iter().all(|range| first(range) <= last(range));
        let apart = set.ranges.windows(2).all(|pair| last(&pair[0]) < first(&pair[1]));
        (whole && apart && set.padded() == padded).then_some(set)
    }

    /// The ranges, without padding.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Ranges after merging, padding not counted.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether it contains no address at all.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the program can search it: at most [`MAX_SET_RANGES`] ranges.
    pub fn fits(&self) -> bool {
        self.len() <= MAX_SET_RANGES
    }

    /// log2 of the padded length, as [`xdp_prog::abi::SetRef::new`] wants it.
    pub fn padded_log2(&self) -> u32 {
        self.padded_len().trailing_zeros()
    }

    /// Ranges that the set takes in the map: a power of two, 1 for an empty set.
    pub fn padded_len(&self) -> usize {
        self.len().next_power_of_two()
    }

    /// What goes into the map: the ranges, filled up to a power of two with the last one again; an empty set is one
    /// [`Range::PADDING`].
    ///
    /// Not with more padding: that begins at `ffff:…:ffff`, which is an address, and the search would land on the padding instead
    /// of the range that ends there.
    pub fn padded(&self) -> Vec<Range> {
        let mut padded = self.ranges.clone();
        padded.resize(self.padded_len(), self.ranges.last().copied().unwrap_or(Range::PADDING));
        padded
    }

    /// Whether an address is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = number(address);
        let after = self.ranges.partition_point(|range| first(range) <= address);
        after
            .checked_sub(1)
            .and_then(|at| self.ranges.get(at))
            .is_some_and(|range| address <= last(range))
    }

    fn merged(mut spans: Vec<(u128, u128)>) -> Self {
        spans.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::new();
        for (first, last) in spans {
            match merged.last_mut() {
                // Neighbours merge as well as overlaps: fewer ranges, and one form for one set.
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                Some(_) | None => merged.push((first, last)),
            }
        }
        Self {
            ranges: merged
                .into_iter()
                .map(|(first, last)| Range::new(first, last))
                .collect(),
        }
    }
}

/// The spans of numbers that a network covers: IPv6 networks may lie on both sides of the IPv4-mapped block.
fn spans(cidr: &IpNet) -> [Option<(u128, u128)>; 2] {
    let (first, last) = (number(cidr.network()), number(cidr.broadcast()));
    match cidr {
        IpNet::V4(_) => [Some((first, last)), None],
        IpNet::V6(_) => [
            (first < MAPPED_FIRST).then(|| (first, last.min(MAPPED_FIRST - 1))),
            (last > MAPPED_LAST).then(|| (first.max(MAPPED_LAST + 1), last)),
        ],
    }
}

fn first(range: &Range) -> u128 {
    u128::from(range.first_high) << 64 | u128::from(range.first_low)
}

fn last(range: &Range) -> u128 {
    u128::from(range.last_high) << 64 | u128::from(range.last_low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xdp_prog::{
        abi::{Config, SetRef},
        host::{Host, View},
    };

    use super::*;

    fn set(cidrs: &[&str]) -> RangeSet {
        RangeSet::from_cidrs(&cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect::<Vec<IpNet>>())
    }

    /// Networks that are likely to overlap, touch, and reach the ends and the IPv4-mapped block.
    fn networks() -> impl Strategy<Value = Vec<IpNet>> {
        let v4 = (
            prop_oneof![Just(0), Just(u32::MAX), Just(0x0a00_0000), any::<u32>()],
            0..=255u32,
            0..=32u8,
        )
            .prop_map(|(base, low, length)| IpNet::new(IpAddr::V4((base ^ low).into()), length).unwrap());
        let v6 = (
            prop_oneof![
                Just(0),
                Just(u128::MAX),
                Just(MAPPED_FIRST),
                Just(0x2001_0db8 << 96),
                any::<u128>()
            ],
            0..=255u128,
            0..=128u8,
        )
            .prop_map(|(base, low, length)| IpNet::new(IpAddr::V6((base ^ low).into()), length).unwrap());
        proptest::collection::vec(prop_oneof![v4, v6], 0..40)
    }

    /// Addresses in, at the edges of, and far from the networks.
    fn probes(networks: &[IpNet], random: &[u128]) -> Vec<IpAddr> {
        let v6 = |bits: u128| IpAddr::V6(bits.into());
        let mut probes: Vec<IpAddr> = random
            .iter()
            .flat_map(|bits| [v6(*bits), IpAddr::V4((*bits as u32).into())])
            .collect();
        for network in networks {
            for edge in [network.network(), network.broadcast()] {
                match edge {
                    IpAddr::V4(edge) => {
                        let bits = edge.to_bits();
                        probes.extend(
                            [bits, bits.wrapping_add(1), bits.wrapping_sub(1)].map(|bits| IpAddr::V4(bits.into())),
                        );
                    }
                    IpAddr::V6(edge) => {
                        let bits = edge.to_bits();
                        probes.extend([bits, bits.wrapping_add(1), bits.wrapping_sub(1)].map(v6));
                    }
                }
            }
        }
        // An IPv4-mapped IPv6 address is an IPv4 address to the program, so it is no probe for IPv6 networks.
        probes.retain(|probe| !matches!(probe, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()));
        probes
    }

    #[test]
    fn neighbours_and_overlaps_become_one_range() {
        assert_eq!(
            set(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.128/25"]),
            set(&["10.0.0.0/23"])
        );
        assert_eq!(set(&["0.0.0.0/1", "128.0.0.0/1"]).len(), 1);
        assert_eq!(set(&["10.0.0.0/24", "10.0.2.0/24"]).len(), 2);
    }

    #[test]
    fn all_of_ipv6_is_none_of_ipv4() {
        let v6 = set(&["::/0"]);
        assert!(v6.contains("::1".parse().unwrap()) && v6.contains("ffff::".parse().unwrap()));
        assert!(!v6.contains("192.0.2.1".parse().unwrap()));
        assert_eq!(v6.len(), 2);
        assert!(set(&["::ffff:192.0.2.0/120"]).is_empty());
        assert_eq!(set(&["::/0", "0.0.0.0/0"]).ranges(), [Range::new(0, u128::MAX)]);
    }

    #[test]
    fn an_empty_set_takes_one_range_that_contains_nothing() {
        let empty = RangeSet::default();
        assert_eq!((empty.padded_len(), empty.padded_log2()), (1, 0));
        assert_eq!(empty.padded(), [Range::PADDING]);
    }

    #[test]
    fn a_set_is_filled_up_to_the_next_power_of_two() {
        let three = set(&["10.0.0.0/24", "10.0.2.0/24", "10.0.4.0/24"]);
        assert_eq!((three.padded_len(), three.padded_log2()), (4, 2));
        assert_eq!(three.padded()[..3], *three.ranges());
        assert_eq!(three.padded()[3], three.ranges()[2]);
        assert_eq!(SetRef::new(0, three.padded_log2()).padded_len(), 4);
    }

    #[test]
    fn addresses_are_ranges_of_one() {
        let set = RangeSet::from_addresses(["192.0.2.2", "192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap()));
        assert_eq!(set.len(), 2);
        assert!(set.contains("192.0.2.2".parse().unwrap()) && !set.contains("192.0.2.3".parse().unwrap()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_set_contains_what_one_of_its_networks_contains(networks in networks(), random: [u128; 8]) {
            let set = RangeSet::from_cidrs(&networks);
            for probe in probes(&networks, &random) {
                let naive = networks.iter().any(|network| network.contains(&probe));
                prop_assert_eq!(set.contains(probe), naive, "{}", probe);
            }
        }

        /// The set stands somewhere in the map, with other sets around it.
        #[test]
        fn the_program_finds_in_a_padded_set_what_the_set_contains(networks in networks(), random: [u128; 8], offset in 0..9_u32) {
            let set = RangeSet::from_cidrs(&networks);
            let everything = Range::new(0, u128::MAX);
            let mut map = vec![everything; offset as usize];
            map.extend(set.padded());
            map.resize(map.len() + 3, everything);
            let view = View {
                config: &Config::EMPTY,
                vips_v4: &[],
                vips_v6: &[],
                segments: Vec::new(),
                backends: &[],
                options: &[],
                ranges: &map,
                settings: &[],
                flows: &[],
                flow_marks: &[],
                open_flows: &[],
                turns: &[],
            };
            let host = Host::new(view, 1);
            let place = SetRef::new(offset, set.padded_log2());
            for probe in probes(&networks, &random) {
                let halves = number(probe);
                let found = xdp_prog::ranges::contains(&host, place.0, (halves >> 64) as u64, halves as u64);
                prop_assert_eq!(found, set.contains(probe), "{}", probe);
            }
        }

        #[test]
        fn ranges_are_sorted_and_apart_and_the_order_of_networks_does_not_matter(networks in networks()) {
            let set = RangeSet::from_cidrs(&networks);
            for pair in set.ranges().windows(2) {
                prop_assert!(last(&pair[0]) + 1 < first(&pair[1]));
            }
            prop_assert!(set.ranges().iter().all(|range| first(range) <= last(range)));
            prop_assert_eq!(RangeSet::from_padded(&set.padded()), Some(set.clone()));
            let mut reversed = networks;
            reversed.reverse();
            prop_assert_eq!(RangeSet::from_cidrs(&reversed), set);
        }
    }
}
