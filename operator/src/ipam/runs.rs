//! A set of addresses, kept as its runs.
//!
//! Never looks at each address of a run.

use std::{collections::BTreeMap, net::IpAddr, ops::Bound};

use super::range::{Range, after, before};

/// A set of single addresses, kept as its maximal runs, so that the end of a run is found in O(log runs).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs(BTreeMap<IpAddr, IpAddr>);

impl Runs {
    /// The last address of the run that an address is in.
    pub(super) fn end_of(&self, address: IpAddr) -> Option<IpAddr> {
        let (_, &last) = self.0.range(..=address).next_back()?;
        (address <= last).then_some(last)
    }

    /// Puts an address in.
    pub(super) fn insert(&mut self, address: IpAddr) {
        if self.end_of(address).is_some() {
            return;
        }
        let last = after(address).and_then(|next| self.0.remove(&next)).unwrap_or(address);
        let previous = before(address).and_then(|previous| {
            let (&first, &end) = self.0.range(..=previous).next_back()?;
            (end == previous).then_some(first)
        });
        self.0.insert(previous.unwrap_or(address), last);
    }

    /// Takes an address out.
    pub(super) fn remove(&mut self, address: IpAddr) {
        let Some((&first, &last)) = self.0.range(..=address).next_back() else {
            return;
        };
        if last < address {
            return;
        }
        self.0.remove(&first);
        if first < address
            && let Some(end) = before(address)
        {
            self.0.insert(first, end);
        }
        if address < last
            && let Some(start) = after(address)
        {
            self.0.insert(start, last);
        }
    }

    /// All runs, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range> {
        self.0.iter().filter_map(|(&first, &last)| Range::new(first, last))
    }

    /// Number of addresses in a range that are in the set, and how many of them end in .0 or .255.
    pub(super) fn count(&self, range: Range) -> (u128, u128) {
        let start = self
            .0
            .range(..=range.first())
            .next_back()
            .map_or(range.first(), |(&first, _)| first);
        let runs = self.0.range((Bound::Included(start), Bound::Included(range.last())));
        runs.filter_map(|(&first, &last)| Range::new(first, last)?.intersection(range))
            .fold((0, 0), |(all, edges), run| (all + run.size(), edges + run.edges()))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv4Addr};

    use ipnet::IpNet;
    use proptest::prelude::{any, prop, proptest};

    use super::{IpAddr, Range, Runs};
    use crate::ipam::range::{blocks, is_edge, merge};

    /// Around the ends of the family, and where addresses are edges.
    fn address(number: u8) -> IpAddr {
        let number = u32::from(number);
        let bits = match number % 3 {
            0 => number / 3,
            1 => u32::MAX - number / 3,
            _ => 0x0a00_00d0 + number / 3,
        };
        Ipv4Addr::from_bits(bits).into()
    }

    proptest! {
        #[test]
        fn runs_are_what_a_plain_set_is(changes in prop::collection::vec((any::<u8>(), any::<bool>()), 0..200), ends: (u8, u8)) {
            let mut runs = Runs::default();
            let mut plain = BTreeSet::new();
            for (number, put) in changes {
                let address = address(number);
                if put {
                    runs.insert(address);
                    plain.insert(address);
                } else {
                    runs.remove(address);
                    plain.remove(&address);
                }
                assert_eq!(runs.end_of(address).is_some(), put);
            }
            let singles: Vec<Range> = plain.iter().filter_map(|&address| Range::new(address, address)).collect();
            assert_eq!(runs.iter().collect::<Vec<_>>(), merge(singles.clone()), "each run is maximal");
            let nets: Vec<IpNet> = plain.iter().map(|&address| address.into()).collect();
            assert_eq!(blocks(singles), IpNet::aggregate(&nets), "the fewest blocks, too");
            let (one, other) = (address(ends.0), address(ends.1));
            let range = Range::new(one.min(other), one.max(other)).unwrap();
            let within = plain.iter().filter(|address| range.contains(**address));
            let edges = within.clone().filter(|address| is_edge(**address)).count();
            assert_eq!(runs.count(range), (within.count() as u128, edges as u128));
        }
    }
}
