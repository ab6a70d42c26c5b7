//! What the LB node's maps say, read beside the daemon: by the kernel's numbers of its program and maps.
//!
//! Never writes, and never asks the daemon: what it believes is not what packets meet. IPv4 only.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapInfo};
use lab::Netns;
use xdp_prog::abi::{
    Config, KeyV4, MAX_TABLE_SLOTS, MIN_TABLE_SLOTS, SLOTS_PER_WORD, SlotWord, VipMeta, WAYS_V4, WIDE_WORDS, map,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Protocol number of TCP.
const TCP: u8 = 6;
/// Words of a line of 64 bytes: a match bucket, a backend line.
type Line = [u64; 8];
/// Words of the program's constants.
const CONFIG_WORDS: usize = size_of::<Config>() / 8;
/// Where an IPv4 outer header's destination is in a backend line: behind three words, in the header's bytes 16 to 19.
const DESTINATION_WORD: usize = 5;

/// The maps of the program on an interface.
pub(crate) struct Maps {
    config: Config,
    vips: Array<MapData, Line>,
    tables: ArrayOfMaps<MapData, Array<MapData, u64>>,
    /// Segments of slot memory that were needed.
    segments: RefCell<BTreeMap<u32, Array<MapData, u64>>>,
    backends: Array<MapData, Line>,
}

impl Maps {
    /// Those of the program on `interface` in `ns`; `None` while there is none.
    pub(crate) fn of(ns: &Netns, interface: &str) -> Result<Option<Self>> {
        let text = ns.ip(&["-json", "link", "show", "dev", interface])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let Some(id) = links[0]["xdp"]["prog"]["id"].as_u64() else {
            return Ok(None);
        };
        let program = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .find(|program| u64::from(program.id()) == id);
        // A program that was replaced meanwhile is looked for again.
        let Some(ids) = program.and_then(|program| program.map_ids().ok().flatten()) else {
            return Ok(None);
        };
        let mut found = BTreeMap::new();
        for id in ids {
            if let Ok(info) = MapInfo::from_id(id) {
                found.insert(info.name_as_str().unwrap_or_default().to_owned(), id);
            }
        }
        let data = |name: &str| -> Result<MapData> {
            let fits = |known: &&String| known.as_str() == name || known.ends_with(name) && name.starts_with('.');
            let id = found.iter().find(|(known, _)| fits(known)).map(|(_, id)| *id);
            Ok(MapData::from_id(
                id.with_context(|| format!("no map {name} among {found:?}"))?,
            )?)
        };
        let constants: Array<MapData, [u64; CONFIG_WORDS]> = Map::Array(data(".rodata")?).try_into()?;
        let config = Config::read_from_bytes(constants.get(&0, 0)?.as_bytes()).ok();
        Ok(Some(Self {
            config: config.context("the program's constants are of another size")?,
            vips: Map::Array(data(map::VIPS_V4)?).try_into()?,
            tables: Map::ArrayOfMaps(data(map::LOOKUP_TABLES)?).try_into()?,
            segments: RefCell::default(),
            backends: Map::Array(data(map::BACKENDS)?).try_into()?,
        }))
    }

    /// What the match table says of a TCP VIP, found as the program finds it; `None` where it has none.
    pub(crate) fn vip(&self, at: SocketAddrV4) -> Result<Option<VipMeta>> {
        let key = KeyV4::new(*at.ip(), TCP, at.port());
        for bucket in key.buckets(self.config.match_salt, self.config.match_mask_v4) {
            let line = self.vips.get(&bucket, 0)?;
            let (keys, metas) = line.split_at(WAYS_V4);
            if let Some(way) = keys.iter().position(|other| *other == key.0) {
                // What is set in way 0 of a bucket is not the VIP's.
                return Ok(metas.get(way).map(|meta| VipMeta(meta & !VipMeta::OVERFLOW)));
            }
        }
        Ok(None)
    }

    /// Destinations of the outer headers of a VIP's packets, with the slots of each; none for a VIP without backends.
    pub(crate) fn spread(&self, vip: VipMeta) -> Result<BTreeMap<Ipv4Addr, usize>> {
        let mut backends = BTreeMap::<u16, usize>::new();
        let slots = vip.slots().clamp(MIN_TABLE_SLOTS, MAX_TABLE_SLOTS);
        let (segment, first) = vip.unit().place();
        let mut segments = self.segments.borrow_mut();
        let segment = match segments.entry(segment) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => new.insert(self.tables.get(&segment, 0)?),
        };
        if vip.has(VipMeta::TRANSIT) {
            // Where new flows go; older ones may live elsewhere.
            for slot in 0..slots {
                let word = segment.get(&(first + (slot * WIDE_WORDS) as u32), 0)?;
                *backends.entry(SlotWord(word).cur()).or_default() += 1;
            }
        } else {
            for word in 0..(slots / SLOTS_PER_WORD) as u32 {
                let word = segment.get(&(first + word), 0)?;
                for slot in 0..SLOTS_PER_WORD {
                    *backends.entry((word >> (16 * slot)) as u16).or_default() += 1;
                }
            }
        }
        let mut spread = BTreeMap::new();
        for (backend, slots) in backends.into_iter().filter(|(backend, _)| *backend != 0) {
            let line = self.backends.get(&u32::from(backend), 0)?;
            let destination = (line[DESTINATION_WORD] as u32).to_ne_bytes();
            *spread.entry(Ipv4Addr::from(destination)).or_default() += slots;
        }
        Ok(spread)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use lab::{End, Netns, Veth};
    use lb::datapath::AttachMode;
    use lb_core::schedule::Scheduler;

    use super::Maps;
    use crate::prog::tables::{Shape, VIP_V4};

    const PORT: u16 = 80;

    /// 300 VIPs of their own tables: entries in second and third buckets are among them.
    #[test]
    fn what_the_planner_wrote_is_read_back_from_outside() {
        if !lab::require_root().unwrap() {
            return;
        }
        let (near, far) = (Netns::new("near").unwrap(), Netns::new("far").unwrap());
        let end = |ns: &Netns, last| End {
            ns: ns.clone(),
            name: "eth0".to_owned(),
            mac: [2, 0, 0, 0, 0, last],
            v4: None,
            v6: None,
        };
        let _pair = Veth::new(end(&near, 1), end(&far, 2), 1500, 1).unwrap();
        assert!(Maps::of(&near, "eth0").unwrap().is_none(), "nothing is attached");
        let shape = Shape {
            vips: 300,
            kinds: &[0],
            backends: 3,
            slots: 256,
            own: true,
            crossed: false,
            replaced: 0,
            scheduler: Scheduler::Maglev,
            remembers: false,
            features: 0,
        };
        let balancer = shape.load().unwrap();
        let _attached = near
            .run(|| Ok(balancer.program.attach("eth0", AttachMode::Native)?))
            .unwrap();
        let maps = Maps::of(&near, "eth0").unwrap().expect("a program is attached");
        for number in 0..300 {
            let vip = SocketAddrV4::new(Ipv4Addr::from_bits(VIP_V4 + number), PORT);
            let meta = maps.vip(vip).unwrap().unwrap_or_else(|| panic!("{vip} is not found"));
            assert_eq!(meta.slots(), 256);
            let spread = maps.spread(meta).unwrap();
            let backends: Vec<u32> = spread.keys().map(|address| address.to_bits()).collect();
            let first = 0x0a01_0000 + number;
            assert_eq!(backends, [first, first + 1, first + 2], "{vip}");
            assert_eq!(spread.values().sum::<usize>(), 256);
        }
        let elsewhere = SocketAddrV4::new(Ipv4Addr::from_bits(VIP_V4), PORT + 1);
        assert!(maps.vip(elsewhere).unwrap().is_none());
    }
}
