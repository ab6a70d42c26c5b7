//! A packet that reads the maps word by word while they are written: each read may see a later moment than the one before, up
//! to the end of the next grace period. What holds for every such packet holds for every prefix of a plan.

use std::{collections::BTreeMap, net::IpAddr};

use lb_core::{
    desired::{Desired, VipKey},
    plan::{Image, MapId, Planner, Write, rates},
};
use xdp_prog::abi::{KeyV4, KeyV6, LineMeta, SEGMENT_UNITS, SetRef, VipMeta};

/// The maps at every moment of a plan: moment 0 is before the first write.
pub(crate) struct History {
    base: Image,
    changes: BTreeMap<(MapId, u32, u32), Vec<(usize, u64)>>,
    /// Moments at which a grace period begins.
    graces: Vec<usize>,
    moments: usize,
}

impl History {
    pub(crate) fn new(base: Image, writes: &[Write]) -> Self {
        let mut history = Self {
            base,
            changes: BTreeMap::new(),
            graces: Vec::new(),
            moments: writes.len(),
        };
        for (write, moment) in writes.iter().zip(1..) {
            match write {
                Write::Store {
                    map,
                    index,
                    word,
                    value,
                } => history.note(*map, *index, *word, moment, *value),
                Write::Fill {
                    map,
                    index,
                    word,
                    values,
                } => {
                    // Only ranges run on into the next elements, of four words.
                    for (offset, value) in values.iter().enumerate() {
                        let offset = *word + offset as u32;
                        let (index, word) = if *map == MapId::Ranges {
                            (index + offset / 4, offset % 4)
                        } else {
                            (*index, offset)
                        };
                        history.note(*map, index, word, moment, *value);
                    }
                }
                Write::Grace => history.graces.push(moment),
                Write::AddSegment(_)
                | Write::ZeroVipCounter(_)
                | Write::ZeroBackendCounter(_)
                | Write::ZeroLimits(_)
                | Write::ForgetDatagrams(_) => {}
            }
        }
        history
    }

    fn note(&mut self, map: MapId, index: u32, word: u32, moment: usize, value: u64) {
        self.changes
            .entry((map, index, word))
            .or_default()
            .push((moment, value));
    }

    pub(crate) fn moments(&self) -> usize {
        self.moments
    }

    fn load(&self, map: MapId, index: u32, word: u32, moment: usize) -> u64 {
        let changes = self
            .changes
            .get(&(map, index, word))
            .map(Vec::as_slice)
            .unwrap_or_default();
        match changes.partition_point(|(at, _)| *at <= moment) {
            0 => self.base.load(map, index, word),
            after => changes[after - 1].1,
        }
    }
}

/// A packet on its way through the program, from `moment` on.
pub(crate) struct Reader<'a> {
    history: &'a History,
    moment: usize,
    /// The last moment that it can see: the grace period that it holds up.
    end: usize,
    random: u64,
}

impl<'a> Reader<'a> {
    /// With `random` 0 it sees one moment only.
    pub(crate) fn new(history: &'a History, moment: usize, random: u64) -> Self {
        let end = history
            .graces
            .iter()
            .find(|grace| **grace > moment)
            .map_or(history.moments, |grace| grace - 1);
        Self {
            history,
            moment,
            end,
            random,
        }
    }

    pub(crate) fn load(&mut self, map: MapId, index: u32, word: u32) -> u64 {
        if self.random != 0 {
            // xorshift64; every other read time passes.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            if self.random & 1 == 1 {
                self.moment += (self.random >> 8) as usize % (self.end - self.moment + 1);
            }
        }
        self.history.load(map, index, word, self.moment)
    }
}

/// What a packet to a VIP met.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) meta: VipMeta,
    pub(crate) backend: u16,
    pub(crate) line: Option<[u64; 8]>,
    pub(crate) options: Option<[u64; 5]>,
}

/// The program's reads, in the program's order.
pub(crate) fn walk(reader: &mut Reader<'_>, planner: &Planner, key: &VipKey, slot: u32) -> Option<Seen> {
    let meta = VipMeta(find(reader, planner, key)?);
    let options = meta.has(VipMeta::OPTIONS).then(|| {
        let mut options = [0; 5];
        for word in [4, 0, 1, 2, 3] {
            options[word as usize] = reader.load(MapId::VipOptions, meta.vip().0, word);
        }
        options
    });
    let slot = slot % meta.slots() as u32;
    let unit = meta.unit().0;
    let position = unit % SEGMENT_UNITS as u32 * 256 + slot;
    let word = reader.load(MapId::LookupTables, unit / SEGMENT_UNITS as u32, position / 4);
    let backend = (word >> (position % 4 * 16)) as u16;
    let line = (backend != 0).then(|| {
        let mut line = [0; 8];
        for word in 0..8 {
            line[word as usize] = reader.load(MapId::Backends, u32::from(backend), word);
            if line[0] & LineMeta::RESOLVED == 0 {
                break;
            }
        }
        line
    });
    Some(Seen {
        meta,
        backend,
        line,
        options,
    })
}

fn find(reader: &mut Reader<'_>, planner: &Planner, key: &VipKey) -> Option<u64> {
    let (config, protocol) = (planner.config(), key.protocol.number());
    match key.address {
        IpAddr::V4(address) => {
            let key = KeyV4::new(address, protocol, key.port);
            let [first, second, third] = key.buckets(config.match_salt, config.match_mask_v4);
            let overflow = VipMeta(reader.load(MapId::VipsV4, first, 4)).has(VipMeta::OVERFLOW);
            for bucket in [Some(first), overflow.then_some(second), overflow.then_some(third)]
                .into_iter()
                .flatten()
            {
                for way in 0..4 {
                    if reader.load(MapId::VipsV4, bucket, way) == key.0 {
                        return Some(reader.load(MapId::VipsV4, bucket, 4 + way));
                    }
                }
            }
        }
        IpAddr::V6(address) => {
            let key = KeyV6::new(address, protocol, key.port);
            let [first, second, third] = key.buckets(config.match_salt, config.match_mask_v6);
            let overflow = VipMeta(reader.load(MapId::VipsV6, first, 3)).has(VipMeta::OVERFLOW);
            for bucket in [Some(first), overflow.then_some(second), overflow.then_some(third)]
                .into_iter()
                .flatten()
            {
                for way in 0..2 {
                    if reader.load(MapId::VipsV6, bucket, way * 4 + 2) == key.tail
                        && reader.load(MapId::VipsV6, bucket, way * 4 + 1) == key.low
                        && reader.load(MapId::VipsV6, bucket, way * 4) == key.high
                    {
                        return Some(reader.load(MapId::VipsV6, bucket, way * 4 + 3));
                    }
                }
            }
        }
    }
    None
}

/// A state of the world and the planner that reached it.
pub(crate) struct State<'a> {
    pub(crate) planner: &'a Planner,
    pub(crate) desired: &'a Desired,
}

/// Whatever a packet to `key` saw while `before` became `after`, it was right in one of the two.
pub(crate) fn check(before: &State<'_>, after: &State<'_>, key: &VipKey, seen: Option<&Seen>) {
    let (old, new) = (before.planner.vip(key), after.planner.vip(key));
    let Some(seen) = seen else {
        assert!(
            old.is_none() || new.is_none(),
            "{key} is gone between two states that both have it"
        );
        return;
    };
    assert!(
        old.is_some() || new.is_some(),
        "{key} is found although neither state has it"
    );
    let vips = [old, new].map(|vip| vip.map(|vip| vip.index));
    assert!(vips.contains(&Some(seen.meta.vip())), "{key} counts as another VIP");
    let flags = [VipMeta::CLAMP_MSS, VipMeta::CLIENT_AFFINITY].map(|flag| seen.meta.has(flag));
    let mut vips = [before, after]
        .into_iter()
        .filter_map(|state| state.desired.vips.get(key));
    assert!(
        vips.any(|vip| [vip.clamp_mss, vip.client_affinity] == flags),
        "{key}: clamps and spreads as in neither state"
    );
    check_backend(before, after, key, seen);
    check_options(before, after, key, seen);
}

fn check_backend(before: &State<'_>, after: &State<'_>, key: &VipKey, seen: &Seen) {
    let states = [before, after];
    if seen.backend == 0 {
        let weightless = |state: &&State<'_>| {
            state
                .desired
                .vips
                .get(key)
                .is_some_and(|vip| vip.set.members.iter().all(|member| member.weight == 0))
        };
        assert!(
            states.iter().any(weightless),
            "{key} has no backend, although it has in both states"
        );
        return;
    }
    let index = xdp_prog::abi::BackendIndex(seen.backend);
    let named = |state: &&&State<'_>| {
        let id = state.planner.backend_at(index);
        let takes = |member: &lb_core::desired::Member| member.weight > 0 && Some(&member.backend) == id;
        state
            .desired
            .vips
            .get(key)
            .is_some_and(|vip| vip.set.members.iter().any(takes))
    };
    assert!(
        states.iter().any(|state| named(&state)),
        "{key} goes to a backend of neither state"
    );

    let line = seen.line.expect("a backend has a line");
    let meta = LineMeta(line[0]);
    let lines = states.map(|state| {
        let view = state.planner.image().view(state.planner.config());
        let line = view.backends[usize::from(seen.backend)];
        let words = [&[line.meta, line.destination_mac, line.source_mac][..], &line.outer].concat();
        state.planner.backend_at(index).map(|_| words)
    });
    let mut lines = lines.iter().flatten();
    if !meta.has(LineMeta::RESOLVED) {
        // Unresolved for a moment is safe: such packets are held or dropped by name, where the line changes.
        let same = lines.clone().count() == 2
            && lines
                .clone()
                .all(|other| *other == lines.clone().next().unwrap().clone());
        let unresolved = lines.clone().any(|other| other[0] == line[0]);
        assert!(!same || unresolved, "{key}: an unchanged line says unresolved");
        assert!(meta.0 == 0 || unresolved);
        return;
    }
    let tag = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    let rest = |words: &[u64]| -> Vec<u64> {
        let way = [words[0] & !(0xffff << 16), words[1] & tag, words[2] & tag];
        [&way[..], &words[3..]].concat()
    };
    // MAC addresses and MTU may be of either moment; the interface, tags and outer header belong together, unless one word
    // alone says all of the change.
    let together = lines.clone().any(|other| rest(other) == rest(&line));
    let each = (0..8).all(|word| lines.clone().any(|other| other[word] == line[word]));
    assert!(each, "{key}: a word of a line is of neither state");
    let alone = lines.clone().count() == 2 && {
        let (a, b) = (lines.next().unwrap(), lines.next().unwrap());
        (0..8).filter(|word| a[*word] != b[*word]).count() == 1
    };
    assert!(together || alone, "{key}: a torn line");
}

fn check_options(before: &State<'_>, after: &State<'_>, key: &VipKey, seen: &Seen) {
    let vips = [before, after].map(|state| state.desired.vips.get(key));
    let open = |vip: &&lb_core::desired::Vip| {
        vip.allowed_sources.is_none() && vip.limits == lb_core::desired::Limits::default()
    };
    let Some(options) = seen.options else {
        assert!(vips.iter().flatten().any(open), "{key}: options are skipped");
        return;
    };
    let expected: Vec<[u64; 5]> = [before, after]
        .iter()
        .filter_map(|state| {
            let vip = state.desired.vips.get(key)?;
            let (packet_rate, packet_burst) = rates(vip.limits.packets, 250);
            let (syn_rate, syn_burst) = rates(vip.limits.syns, 250);
            let index = state.planner.vip(key)?.index.0;
            let allowed = match vip.allowed_sources {
                Some(_) => state.planner.image().load(MapId::VipOptions, index, 4),
                None => SetRef::ABSENT.0,
            };
            Some([packet_rate, packet_burst, syn_rate, syn_burst, allowed])
        })
        .collect();
    for word in 0..5 {
        let off = [1, 3].contains(&word) && options[word - 1] == 0;
        let known = expected.iter().any(|other| other[word] == options[word]);
        assert!(off || known, "{key}: option {word} is of neither state");
    }
    for rate in [0, 2] {
        assert!(
            options[rate] == 0 || options[rate + 1] != 0,
            "{key}: a limit with the burst of none drops everything"
        );
    }
}
