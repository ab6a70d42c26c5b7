//! `PORTS`: the interfaces that a packet may be redirected to.

use std::io;

use aya::maps::{DevMap, MapData, MapError, xdp::XdpMapError};
use nix::net::if_::if_indextoname;
use xdp_prog::abi::{MAX_PORTS, map};

use super::{DatapathError, interface::Interface, mapped::map_error};

/// The interfaces of `PORTS`, by position.
pub struct Ports {
    devices: DevMap<MapData>,
    interfaces: Vec<Interface>,
}

impl Ports {
    pub(crate) fn new(devices: DevMap<MapData>) -> Self {
        Self {
            devices,
            interfaces: Vec::new(),
        }
    }

    /// What stands in the map already, as the calling thread's network namespace calls it: an interface that is gone has no name.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub(crate) fn adopt(devices: DevMap<MapData>) -> Result<Self, DatapathError> {
        let mut ports = Self::new(devices);
        for position in 0..u32::try_from(MAX_PORTS).unwrap_or(u32::MAX) {
            let index = match ports.devices.get(position, 0) {
                Ok(value) => value.if_index,
                Err(MapError::KeyNotFound) => break,
                Err(error) => return Err(map_error(map::PORTS, "BPF_MAP_LOOKUP_ELEM", error)),
            };
            let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
            ports.interfaces.push(Interface {
                name: name.unwrap_or_default(),
                index,
            });
        }
        Ok(ports)
    }

    /// Whether these interfaces, and no others, stand there in this order.
    pub fn are(&self, interfaces: &[&str]) -> bool {
        let same = |(there, name): (&Interface, &&str)| Interface::find(name).is_ok_and(|found| found == *there);
        self.interfaces.len() == interfaces.len() && self.interfaces.iter().zip(interfaces).all(same)
    }

    /// Puts interfaces of the calling thread's network namespace into `PORTS`, new ones behind those that are there. A
    /// name keeps its position for the life of the loaded program, since backend lines name it, also when the interface
    /// was made anew meanwhile and has another index.
    ///
    /// # Errors
    ///
    /// When an interface is not there, when there are more than [`MAX_PORTS`], and bpf(2)'s.
    pub fn add(&mut self, interfaces: &[&str]) -> Result<(), DatapathError> {
        for name in interfaces {
            let interface = Interface::find(name)?;
            let known = self.interfaces.iter().position(|known| known.name == interface.name);
            let position = known.unwrap_or(self.interfaces.len());
            if position >= MAX_PORTS {
                return Err(DatapathError::TooManyPorts {
                    asked: position + 1,
                    room: MAX_PORTS,
                });
            }
            self.set(u32::try_from(position).unwrap_or(u32::MAX), interface.index)?;
            match self.interfaces.get_mut(position) {
                Some(place) => *place = interface,
                None => self.interfaces.push(interface),
            }
        }
        Ok(())
    }

    fn set(&mut self, position: u32, ifindex: u32) -> Result<(), DatapathError> {
        const CALL: &str = "BPF_MAP_UPDATE_ELEM";
        self.devices
            .set(position, ifindex, None, 0)
            .map_err(|error| match error {
                XdpMapError::MapError(error) => map_error(map::PORTS, CALL, error),
                error @ XdpMapError::ChainedProgramNotSupported => DatapathError::Map {
                    map: map::PORTS,
                    call: CALL,
                    source: io::Error::other(error),
                },
            })
    }

    /// Position of an interface, by its index: what a backend line's port is.
    pub fn position(&self, ifindex: u32) -> Option<u8> {
        let position = self
            .interfaces
            .iter()
            .position(|interface| interface.index == ifindex)?;
        u8::try_from(position).ok()
    }

    /// Interfaces by position.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }
}
