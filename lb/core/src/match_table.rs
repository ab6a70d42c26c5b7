//! Where the entries of a match table stand: buckets to choose from for each key, and a proof when there is no room.
//!
//! Never writes a map: it gives places and moves, and the planner turns them into an order of stores that a packet may observe
//! at any point.
//!
//! A key goes into the first of its buckets that has room, else entries are moved to another of their buckets along
//! the shortest chain that ends at a free way. The search for that chain ends only when every bucket that could be reached has
//! been looked at; by Berge's theorem there is then no placement of all these keys at all, however they were moved. So a
//! refusal is a proof, and so is success: each key stands in one of its buckets.

use std::collections::{BTreeSet, VecDeque};

use xdp_prog::abi::{CHOICES, KeyV4, KeyV6, MAX_BUCKETS, WAYS_V4, WAYS_V6};

/// A key of a match table.
pub trait MatchKey: Copy + Ord {
    /// Entries in a bucket.
    const WAYS: usize;
    /// Its buckets in the order in which the program looks into them; some may be the same.
    fn choices(self, salt: u64, mask: u64) -> [u32; CHOICES];
}

impl MatchKey for KeyV4 {
    const WAYS: usize = WAYS_V4;
    fn choices(self, salt: u64, mask: u64) -> [u32; CHOICES] {
        self.buckets(salt, mask)
    }
}

impl MatchKey for KeyV6 {
    const WAYS: usize = WAYS_V6;
    fn choices(self, salt: u64, mask: u64) -> [u32; CHOICES] {
        self.buckets(salt, mask)
    }
}

/// A place in a match table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which bucket.
    pub bucket: u32,
    /// Which entry of it.
    pub way: u32,
}

/// An entry that makes room for another. Moves are given in the order in which they can be made: each target is free by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move<K> {
    /// Which entry.
    pub key: K,
    /// Where it stood.
    pub from: Place,
    /// Where it stands then.
    pub to: Place,
}

/// No placement holds the table's keys and this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{buckets} buckets that hold each other's entries are full")]
pub struct Full {
    /// Buckets that the key could reach by moving others; all their ways are taken.
    pub buckets: usize,
}

/// Fewest buckets that a table is sized for: 4 KiB. In a few buckets, chance could well put too many keys into the same two.
pub const MIN_BUCKETS: usize = 64;

/// Buckets with room for `entries` entries at a load of at most 65 %, where chains of moves are rare and short: a power of two,
/// [`MIN_BUCKETS`] to [`MAX_BUCKETS`]. `ways` is [`WAYS_V4`] or [`WAYS_V6`].
pub const fn buckets_for(entries: usize, ways: usize) -> usize {
    let needed = entries.saturating_mul(100).div_ceil(65).div_ceil(ways);
    if needed >= MAX_BUCKETS {
        MAX_BUCKETS
    } else if needed <= MIN_BUCKETS {
        MIN_BUCKETS
    } else {
        needed.next_power_of_two()
    }
}

/// The masks of both match tables, IPv4's first, with room for `vips` VIPs of either family, each with an address of its own.
pub const fn masks_for(vips: u32) -> (u64, u64) {
    let entries = (vips as usize).saturating_mul(2);
    (
        buckets_for(entries, WAYS_V4) as u64 - 1,
        buckets_for(entries, WAYS_V6) as u64 - 1,
    )
}

/// Which key stands where.
#[derive(Clone, Debug)]
pub struct MatchTable<K> {
    salt: u64,
    mask: u64,
    ways: Vec<Option<K>>,
    len: usize,
    /// What [`Self::roll_back`] undoes: a way and what stood there.
    journal: Vec<(usize, Option<K>)>,
}

impl<K: MatchKey> MatchTable<K> {
    /// An empty table of `mask + 1` buckets.
    pub fn new(salt: u64, mask: u64) -> Self {
        let buckets = (mask as usize).min(MAX_BUCKETS - 1) + 1;
        Self {
            salt,
            mask,
            ways: vec![None; buckets * K::WAYS],
            len: 0,
            journal: Vec::new(),
        }
    }

    /// Salt and mask of [`MatchKey::choices`].
    pub fn hashing(&self) -> (u64, u64) {
        (self.salt, self.mask)
    }

    /// Keys in the table.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keys that there are places for.
    pub fn capacity(&self) -> usize {
        self.ways.len()
    }

    /// Where a key stands.
    pub fn find(&self, key: K) -> Option<Place> {
        key.choices(self.salt, self.mask)
            .into_iter()
            .find_map(|bucket| self.way_with(bucket, Some(key)))
    }

    /// Places a key that is not in the table; [`Self::find`] says where. Returns the moves that made room.
    ///
    /// # Errors
    ///
    /// [`Full`], and nothing has changed.
    pub fn insert(&mut self, key: K) -> Result<Vec<Move<K>>, Full> {
        let choices = key.choices(self.salt, self.mask);
        // Breadth first: the first free way found ends the shortest chain. `steps[i]` is a bucket and the step before it.
        let mut steps: Vec<(u32, Option<usize>)> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut queue = VecDeque::new();
        for bucket in choices {
            if seen.insert(bucket) {
                queue.push_back(steps.len());
                steps.push((bucket, None));
            }
        }
        while let Some(step) = queue.pop_front() {
            let bucket = steps[step].0;
            if let Some(free) = self.way_with(bucket, None) {
                let moves = self.make_room(&steps, step, free);
                let place = moves.last().map_or(free, |last| last.from);
                self.set(place, Some(key));
                return Ok(moves);
            }
            for resident in self.residents(bucket) {
                for other in resident.choices(self.salt, self.mask) {
                    if seen.insert(other) {
                        queue.push_back(steps.len());
                        steps.push((other, Some(step)));
                    }
                }
            }
        }
        Err(Full { buckets: seen.len() })
    }

    /// Notes that a key stands somewhere, for who found it there; `false`, and nothing has changed, where the way is taken or nobody
    /// would look for it there.
    pub fn found(&mut self, key: K, place: Place) -> bool {
        let index = place.bucket as usize * K::WAYS + place.way as usize;
        let free = (place.way as usize) < K::WAYS && self.ways.get(index).is_some_and(Option::is_none);
        let fits = free && key.choices(self.salt, self.mask).contains(&place.bucket) && self.find(key).is_none();
        if fits {
            self.set(place, Some(key));
        }
        fits
    }

    /// Removes a key; where it stood.
    pub fn remove(&mut self, key: K) -> Option<Place> {
        let place = self.find(key)?;
        self.set(place, None);
        Some(place)
    }

    /// Forgets what could be undone.
    pub fn commit(&mut self) {
        self.journal.clear();
    }

    /// Undoes everything since the last [`Self::commit`].
    pub fn roll_back(&mut self) {
        while let Some((index, before)) = self.journal.pop() {
            self.len = self.len + usize::from(before.is_some()) - usize::from(self.ways[index].is_some());
            self.ways[index] = before;
        }
    }

    /// Moves an entry of each bucket of the chain that ends at `step` into the next one, last first.
    fn make_room(&mut self, steps: &[(u32, Option<usize>)], step: usize, free: Place) -> Vec<Move<K>> {
        let mut moves = Vec::new();
        let (mut step, mut to) = (step, free);
        while let Some(before) = steps[step].1 {
            let leads_on = |key: &K| key.choices(self.salt, self.mask).contains(&to.bucket);
            let Some(key) = self.residents(steps[before].0).find(leads_on) else {
                break;
            };
            let Some(from) = self.way_with(steps[before].0, Some(key)) else {
                break;
            };
            self.set(from, None);
            self.set(to, Some(key));
            moves.push(Move { key, from, to });
            (step, to) = (before, from);
        }
        moves
    }

    fn residents(&self, bucket: u32) -> impl Iterator<Item = K> {
        let first = bucket as usize * K::WAYS;
        self.ways[first..first + K::WAYS].iter().copied().flatten()
    }

    fn way_with(&self, bucket: u32, content: Option<K>) -> Option<Place> {
        let first = bucket as usize * K::WAYS;
        let way = self.ways[first..first + K::WAYS]
            .iter()
            .position(|way| *way == content)?;
        Some(Place {
            bucket,
            way: way as u32,
        })
    }

    fn set(&mut self, place: Place, content: Option<K>) {
        let index = place.bucket as usize * K::WAYS + place.way as usize;
        self.len = self.len + usize::from(content.is_some()) - usize::from(self.ways[index].is_some());
        self.journal.push((index, self.ways[index]));
        self.ways[index] = content;
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn key(number: u32) -> KeyV4 {
        KeyV4::new(Ipv4Addr::from(number), 6, 80)
    }

    fn key_v6(number: u32) -> KeyV6 {
        KeyV6::new(u128::from(number).into(), 6, 80)
    }

    #[test]
    fn sizes_keep_the_load_under_65_percent() {
        for entries in 0..5000 {
            let buckets = buckets_for(entries, WAYS_V4);
            assert!(
                buckets.is_power_of_two() && entries * 100 <= buckets * WAYS_V4 * 65,
                "{entries}"
            );
        }
        assert_eq!(buckets_for(usize::MAX, WAYS_V6), MAX_BUCKETS);
        assert_eq!(masks_for(16_384), (16_383, 32_767));
    }

    #[test]
    fn tables_sized_for_their_entries_take_them_all() {
        for salt in 0..5 {
            for entries in [1, 3, 10, 100, 1000, 20_000] {
                let mut v4 = MatchTable::new(salt, buckets_for(entries, WAYS_V4) as u64 - 1);
                let mut v6 = MatchTable::new(salt, buckets_for(entries, WAYS_V6) as u64 - 1);
                for number in 0..entries as u32 {
                    v4.insert(key(number)).unwrap();
                    v6.insert(key_v6(number)).unwrap();
                }
                assert!((0..entries as u32).all(|number| v4.find(key(number)).is_some()));
                assert!((0..entries as u32).all(|number| v6.find(key_v6(number)).is_some()));
            }
        }
    }

    #[test]
    fn addresses_with_few_or_many_ports_fit_a_table_sized_for_them() {
        // All entries of an address share their first bucket; the other two depend on the whole key.
        for salt in 0..5 {
            for (addresses, ports) in [
                (16_384u32, 1u16),
                (8192, 2),
                (4096, 4),
                (2048, 7),
                (1024, 15),
                (64, 255),
                (10, 500),
                (1, 16_000),
            ] {
                let (mask_v4, mask_v6) = masks_for(16_384);
                let (mut v4, mut v6) = (MatchTable::new(salt, mask_v4), MatchTable::new(salt, mask_v6));
                for (address, port) in (0..addresses).flat_map(|address| (0..=ports).map(move |port| (address, port))) {
                    let protocol = if port == 0 { 0 } else { 6 };
                    v4.insert(KeyV4::new(Ipv4Addr::from(0xcb00_0000 + address), protocol, port))
                        .unwrap();
                    v6.insert(KeyV6::new((u128::from(address) | 0x2001 << 112).into(), protocol, port))
                        .unwrap();
                }
            }
        }
    }

    #[test]
    fn moves_lead_through_most_of_a_table_before_it_is_full() {
        // Four ways hold 97 % of random keys already with two choices (Dietzfelbinger et al. 2007), two ways 89 %.
        let mut v4 = MatchTable::new(1, 1023);
        let held = (0..).take_while(|number| v4.insert(key(*number)).is_ok()).count();
        assert!(held >= 4096 * 96 / 100, "{held} of 4096");
        let mut v6 = MatchTable::new(1, 1023);
        let held = (0..).take_while(|number| v6.insert(key_v6(*number)).is_ok()).count();
        assert!(held >= 2048 * 85 / 100, "{held} of 2048");
    }

    #[test]
    fn a_refusal_is_right_and_changes_nothing() {
        let mut table = MatchTable::new(7, 0);
        for number in 0..4 {
            assert_eq!(table.insert(key(number)), Ok(Vec::new()));
        }
        let before = table.ways.clone();
        assert_eq!(table.insert(key(4)), Err(Full { buckets: 1 }));
        assert_eq!(table.ways, before);
        assert_eq!((table.len(), table.capacity()), (4, 4));
    }

    fn operations() -> impl Strategy<Value = Vec<(u32, bool)>> {
        proptest::collection::vec((0..60u32, any::<bool>()), 0..150)
    }

    proptest! {
        #[test]
        fn moves_are_what_happens_and_each_target_is_free(operations in operations(), salt: u64) {
            let mut table = MatchTable::<KeyV6>::new(salt, 15);
            let mut model: BTreeMap<KeyV6, Place> = BTreeMap::new();
            for (number, insert) in operations {
                let key = key_v6(number);
                if insert && !model.contains_key(&key) {
                    table.commit();
                    let before = table.ways.clone();
                    match table.insert(key) {
                        Ok(moves) => {
                            for step in moves {
                                prop_assert!(model.values().all(|place| *place != step.to));
                                prop_assert_eq!(model.insert(step.key, step.to), Some(step.from));
                            }
                            let place = table.find(key).unwrap();
                            prop_assert!(model.values().all(|other| *other != place));
                            let undo = table.clone();
                            table.roll_back();
                            prop_assert_eq!(&table.ways, &before);
                            prop_assert_eq!(table.len(), model.len());
                            table = undo;
                            model.insert(key, place);
                        }
                        Err(_) => prop_assert_eq!(&table.ways, &before),
                    }
                } else if !insert {
                    prop_assert_eq!(table.remove(key), model.remove(&key));
                }
                prop_assert_eq!(table.len(), model.len());
                for (key, place) in &model {
                    prop_assert_eq!(table.find(*key), Some(*place));
                    prop_assert!(key.choices(salt, 15).contains(&place.bucket));
                }
            }
        }
    }
}
