//! The slow path's sockets as the program finds them: by interface and receive queue.
//!
//! Never owns a socket: the kernel takes one that is closed out of `XSKS` by itself, and its packets are then counted drops.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::RawFd,
};

use aya::maps::{HashMap, IterableMap as _, MapData, MapError, XskMap};
use xdp_prog::abi::{MAX_QUEUES, map, socket_key};

use super::{DatapathError, mapped::map_error};

/// `XSKS` and `XSK_INDEX`: at most [`MAX_QUEUES`] sockets, of all interfaces together.
pub struct Sockets {
    xsks: XskMap<MapData>,
    index: HashMap<MapData, u64, u32>,
    /// Position in `XSKS` by interface and queue.
    places: BTreeMap<(u32, u32), u32>,
}

impl Sockets {
    pub(crate) fn new(xsks: XskMap<MapData>, index: HashMap<MapData, u64, u32>) -> Self {
        Self {
            xsks,
            index,
            places: BTreeMap::new(),
        }
    }

    /// What stands in the maps already: places that are known, of sockets that the kernel has taken out when their process ended.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub(crate) fn adopt(xsks: XskMap<MapData>, index: HashMap<MapData, u64, u32>) -> Result<Self, DatapathError> {
        let mut sockets = Self::new(xsks, index);
        for entry in sockets.index.iter() {
            let (key, place) = entry.map_err(|error| map_error(map::XSK_INDEX, "BPF_MAP_GET_NEXT_KEY", error))?;
            let queue = ((key >> 32) as u32, key as u32);
            debug_assert_eq!(socket_key(queue.0, queue.1), key);
            sockets.places.insert(queue, place);
        }
        Ok(sockets)
    }

    /// Gives the odd packets of a receive queue to a socket that is bound to it; takes the place of the one that had them, without
    /// a packet between. `fd` need not stay open for the map's sake, but a closed socket gets nothing.
    ///
    /// # Errors
    ///
    /// [`DatapathError::TooManySockets`]; bpf(2)'s: EOPNOTSUPP for a socket without a receive ring. Then the queue's packets go
    /// where they went before.
    pub fn set(&mut self, ifindex: u32, queue: u32, fd: RawFd) -> Result<(), DatapathError> {
        let known = self.places.get(&(ifindex, queue)).copied();
        let place = match known {
            Some(place) => place,
            None => self.free().ok_or(DatapathError::TooManySockets { room: MAX_QUEUES })?,
        };
        self.xsks
            .set(place, fd, 0)
            .map_err(|error| map_error(map::XSKS, "BPF_MAP_UPDATE_ELEM", error))?;
        if known.is_none() {
            // The socket stands in `XSKS` by now: who finds the place finds it.
            self.index
                .insert(socket_key(ifindex, queue), place, 0)
                .map_err(|error| map_error(map::XSK_INDEX, "BPF_MAP_UPDATE_ELEM", error))?;
            self.places.insert((ifindex, queue), place);
        }
        Ok(())
    }

    /// Takes a receive queue's socket away: its odd packets are counted drops from now on. Nothing where there is none.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn remove(&mut self, ifindex: u32, queue: u32) -> Result<(), DatapathError> {
        let Some(place) = self.places.get(&(ifindex, queue)).copied() else {
            return Ok(());
        };
        absent_is_fine(self.index.remove(&socket_key(ifindex, queue)))
            .map_err(|error| map_error(map::XSK_INDEX, "BPF_MAP_DELETE_ELEM", error))?;
        absent_is_fine(self.xsks.unset(place)).map_err(|error| map_error(map::XSKS, "BPF_MAP_DELETE_ELEM", error))?;
        self.places.remove(&(ifindex, queue));
        Ok(())
    }

    /// Interfaces and queues whose packets a socket was given, in order.
    pub fn queues(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.places.keys().copied()
    }

    /// `XSK_INDEX` itself, for inspection.
    pub(crate) fn index(&self) -> &MapData {
        self.index.map()
    }

    fn free(&self) -> Option<u32> {
        let taken: BTreeSet<u32> = self.places.values().copied().collect();
        (0..self.xsks.len()).find(|place| !taken.contains(place))
    }
}

fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
