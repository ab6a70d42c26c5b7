//! Match entries: placed, moved, published, retargeted, removed — each word by word, in the order the program relies on.

use std::net::IpAddr;

use xdp_prog::abi::{CHOICES, KeyV4, KeyV6, VipMeta};

use super::{draft::Draft, write::MapId};
use crate::{
    desired::VipKey,
    match_table::{Full, MatchKey, MatchTable, Move, Place},
};

/// A key of either match table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EntryKey {
    V4(KeyV4),
    V6(KeyV6),
}

impl EntryKey {
    pub(super) fn vip(key: &VipKey) -> Self {
        Self::new(key.address, key.protocol.number(), key.port)
    }

    pub(super) fn address(address: IpAddr) -> Self {
        Self::new(address, 0, 0)
    }

    fn new(address: IpAddr, protocol: u8, port: u16) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(KeyV4::new(address, protocol, port)),
            IpAddr::V6(address) => Self::V6(KeyV6::new(address, protocol, port)),
        }
    }
}

/// Both match tables.
#[derive(Clone, Debug)]
pub(super) struct Entries {
    v4: MatchTable<KeyV4>,
    v6: MatchTable<KeyV6>,
}

impl Entries {
    pub(super) fn new(salt: u64, mask_v4: u64, mask_v6: u64) -> Self {
        Self {
            v4: MatchTable::new(salt, mask_v4),
            v6: MatchTable::new(salt, mask_v6),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Finds a place for a new key and moves published entries out of its way. The key itself is published later.
    pub(super) fn insert(&mut self, draft: &mut Draft<'_>, key: EntryKey) -> Result<(), Full> {
        match key {
            EntryKey::V4(key) => {
                let moves = self.v4.insert(key)?;
                moves.iter().for_each(|step| relocate(draft, self.v4.hashing(), step));
            }
            EntryKey::V6(key) => {
                let moves = self.v6.insert(key)?;
                moves.iter().for_each(|step| relocate(draft, self.v6.hashing(), step));
            }
        }
        Ok(())
    }

    /// Takes an entry away: packets no longer find it.
    pub(super) fn remove(&mut self, draft: &mut Draft<'_>, key: EntryKey) {
        match key {
            EntryKey::V4(key) => self
                .v4
                .remove(key)
                .into_iter()
                .for_each(|place| clear::<KeyV4>(draft, place)),
            EntryKey::V6(key) => self
                .v6
                .remove(key)
                .into_iter()
                .for_each(|place| clear::<KeyV6>(draft, place)),
        }
    }

    /// Makes an inserted entry visible, or gives a visible one another meaning by one store.
    pub(super) fn publish(&self, draft: &mut Draft<'_>, key: EntryKey, meta: VipMeta) {
        match key {
            EntryKey::V4(key) => self
                .v4
                .find(key)
                .into_iter()
                .for_each(|place| write(draft, self.v4.hashing(), place, key, meta.0)),
            EntryKey::V6(key) => self
                .v6
                .find(key)
                .into_iter()
                .for_each(|place| write(draft, self.v6.hashing(), place, key, meta.0)),
        }
    }

    /// Notes that a key stands in a way; `false`, and nothing has changed, where it stands elsewhere too, or may not.
    pub(super) fn found(&mut self, key: EntryKey, place: Place) -> bool {
        match key {
            EntryKey::V4(key) => self.v4.found(key, place),
            EntryKey::V6(key) => self.v6.found(key, place),
        }
    }

    /// Buckets in which packets look for a key, in their order.
    pub(super) fn choices(&self, key: EntryKey) -> [u32; CHOICES] {
        match key {
            EntryKey::V4(key) => {
                let (salt, mask) = self.v4.hashing();
                key.choices(salt, mask)
            }
            EntryKey::V6(key) => {
                let (salt, mask) = self.v6.hashing();
                key.choices(salt, mask)
            }
        }
    }

    pub(super) fn commit(&mut self) {
        self.v4.commit();
        self.v6.commit();
    }

    pub(super) fn roll_back(&mut self) {
        self.v4.roll_back();
        self.v6.roll_back();
    }
}

/// Where an entry's words are.
trait Words: MatchKey {
    const MAP: MapId;
    /// Words of the key with their positions in the bucket. The last one publishes the entry, and clearing it removes the entry.
    fn key_words(self, way: u32) -> impl DoubleEndedIterator<Item = (u32, u64)> + Clone;
    /// Position of the word that says what the entry means.
    fn meta_word(way: u32) -> u32;
    /// Position of the last of the key's words.
    fn last_word(way: u32) -> u32;
}

/// Position of the word that carries [`VipMeta::OVERFLOW`].
fn overflow_word<K: Words>() -> u32 {
    K::meta_word(0)
}

impl Words for KeyV4 {
    const MAP: MapId = MapId::VipsV4;
    fn key_words(self, way: u32) -> impl DoubleEndedIterator<Item = (u32, u64)> + Clone {
        [(way, self.0)].into_iter()
    }
    fn meta_word(way: u32) -> u32 {
        Self::WAYS as u32 + way
    }
    fn last_word(way: u32) -> u32 {
        way
    }
}

impl Words for KeyV6 {
    const MAP: MapId = MapId::VipsV6;
    fn key_words(self, way: u32) -> impl DoubleEndedIterator<Item = (u32, u64)> + Clone {
        [(way * 4, self.high), (way * 4 + 1, self.low), (way * 4 + 2, self.tail)].into_iter()
    }
    fn meta_word(way: u32) -> u32 {
        way * 4 + 3
    }
    fn last_word(way: u32) -> u32 {
        way * 4 + 2
    }
}

/// Meta first, key last: whoever finds the key finds its meaning. Where the key stands already, that is one store. Before an entry
/// stands in another bucket than its first, the first one says that there is such a thing; it goes on saying so, which costs a look.
fn write<K: Words>(draft: &mut Draft<'_>, (salt, mask): (u64, u64), place: Place, key: K, meta: u64) {
    draft.occupy(K::MAP, place);
    let [first, ..] = key.choices(salt, mask);
    if place.bucket != first {
        let word = draft.image().load(K::MAP, first, overflow_word::<K>());
        draft.store(K::MAP, first, overflow_word::<K>(), word | VipMeta::OVERFLOW);
    }
    let kept = match K::meta_word(place.way) == overflow_word::<K>() {
        true => draft.image().load(K::MAP, place.bucket, overflow_word::<K>()) & VipMeta::OVERFLOW,
        false => 0,
    };
    draft.store(K::MAP, place.bucket, K::meta_word(place.way), meta | kept);
    for (word, value) in key.key_words(place.way) {
        draft.store(K::MAP, place.bucket, word, value);
    }
}

fn clear<K: Words>(draft: &mut Draft<'_>, place: Place) {
    draft.vacate(K::MAP, place, K::last_word(place.way));
}

/// Both copies are equal until the original is cleared, so it does not matter which a packet finds.
fn relocate<K: Words>(draft: &mut Draft<'_>, hashing: (u64, u64), step: &Move<K>) {
    let image = draft.image();
    let stands = |(word, value): (u32, u64)| image.load(K::MAP, step.from.bucket, word) == value;
    // An entry of this plan that is not published yet is only published where it stands in the end.
    if step.key.key_words(step.from.way).all(stands) {
        let meta = image.load(K::MAP, step.from.bucket, K::meta_word(step.from.way));
        write(draft, hashing, step.to, step.key, meta & !VipMeta::OVERFLOW);
        draft.copied(K::MAP, step.from, K::last_word(step.from.way));
    }
}
