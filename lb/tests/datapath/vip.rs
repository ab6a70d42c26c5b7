//! One IPv4 VIP written by hand, and a packet to it.

use std::net::Ipv4Addr;

use etherparse::PacketBuilder;
use lb::datapath::{Balancer, Capacity, DatapathError};
use xdp_prog::abi::{BackendLine, Config, KeyV4, LineMeta, OuterHeader, TableUnit, VipIndex, VipMeta};

pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub(crate) const BACKEND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;

/// Room for a few of each.
pub(crate) const SMALL: Capacity = Capacity {
    vips: 64,
    backends: 64,
    table_segments: 2,
    ranges: 64,
};

/// A balancer with match tables of one bucket.
pub(crate) fn balancer() -> Result<Balancer, DatapathError> {
    Balancer::load(&Config::EMPTY, &SMALL)
}

/// Writes TCP port 80 of [`VIP`] as VIP 3 with a table of 256 slots at `unit`: metas first, keys last.
pub(crate) fn add_vip(balancer: &Balancer, unit: u32) -> Result<(), DatapathError> {
    let meta = VipMeta::new(VipIndex(3), TableUnit(unit), 256, 0).0;
    for (way, key) in [(0, KeyV4::new(VIP, 6, 80)), (1, KeyV4::address(VIP))] {
        balancer.vips_v4.store(0, 4 + way, meta)?;
        balancer.vips_v4.store(0, way, key.0)?;
    }
    Ok(())
}

/// Writes backend 5 with a known next hop.
pub(crate) fn add_backend(balancer: &Balancer) -> Result<(), DatapathError> {
    let line = BackendLine {
        meta: LineMeta::new(LineMeta::RESOLVED, 0, 0, 1500, 1).0,
        destination_mac: BackendLine::mac_word([2, 0, 0, 0, 0, 2], 0),
        source_mac: BackendLine::mac_word([2, 0, 0, 0, 0, 1], 0),
        ..BackendLine::unresolved(OuterHeader::v4(Ipv4Addr::new(192, 0, 2, 1), BACKEND))
    };
    let words: Vec<u64> = [line.meta, line.destination_mac, line.source_mac]
        .into_iter()
        .chain(line.outer)
        .collect();
    balancer.backends.fill(5, &words)
}

/// A TCP SYN from a client to port 80 of [`VIP`].
pub(crate) fn syn() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
        .ipv4([198, 51, 100, 1], VIP.octets(), 64)
        .tcp(40_000, 80, 1, 64_240)
        .syn()
        .write(&mut frame, &[])
        .expect("writing to memory");
    frame
}
