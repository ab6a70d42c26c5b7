//! `PORTS`: the interfaces that a packet may be redirected to.

use std::io;

use aya::maps::{DevMap, MapData, xdp::XdpMapError};
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
