//! Crafted packets to and from an LB node, on the router's end of its link.

use std::time::Duration;

use anyhow::Result;
use lab::{Iface, RawSocket};

use super::{Bed, framed};

/// The router's end of a link to an LB node: what is sent here arrives there, and what it sends is seen here.
pub(crate) struct Wire {
    socket: RawSocket,
    iface: Iface,
}

impl Wire {
    /// The link of the first LB node's `eth0`.
    pub(crate) fn to_lb(bed: &Bed) -> Result<Self> {
        Self::of(bed, bed.topology.lb(0).eth0())
    }

    /// The link of an interface of an LB node or a worker.
    pub(crate) fn of(bed: &Bed, iface: &Iface) -> Result<Self> {
        Ok(Self {
            socket: RawSocket::open(bed.topology.router().ns(), &iface.peer)?,
            iface: iface.clone(),
        })
    }

    /// Sends an IP packet as if the router had.
    pub(crate) fn send(&self, ip: &[u8]) -> Result<()> {
        self.socket.send(&framed(self.iface.mac, self.iface.gateway_mac, ip))
    }

    /// Sends an IP packet behind VLAN tags (as they stand on the wire).
    pub(crate) fn send_tagged(&self, tags: &[u8], ip: &[u8]) -> Result<()> {
        let mut frame = framed(self.iface.mac, self.iface.gateway_mac, ip);
        frame.splice(12..12, tags.iter().copied());
        self.socket.send(&frame)
    }

    /// The next frame of either direction for which `wanted` holds.
    pub(crate) fn next(&self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        self.socket.next(timeout, wanted)
    }

    /// All frames of either direction within `time` for which `wanted` holds.
    pub(crate) fn collect(&self, time: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Vec<u8>>> {
        self.socket.collect(time, wanted)
    }
}
