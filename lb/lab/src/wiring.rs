//! The address plan: which names, hardware addresses and subnets each link gets. Pure; the same always.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{Iface, LinkKind};

/// Name of the bridge in the router's namespace, when LB nodes and workers share an L2 segment.
pub(crate) const BRIDGE: &str = "br0";
/// Its hardware address.
pub(crate) const BRIDGE_MAC: [u8; 6] = [0x02, 0x1b, 0x40, 0, 0, 0];
/// Prefix lengths of every subnet.
pub(crate) const V4_LENGTH: u8 = 24;
/// See [`V4_LENGTH`].
pub(crate) const V6_LENGTH: u8 = 64;

/// All worker subnets, as a route: the LB's second interface leads there.
pub(crate) const WORKERS_V4: &str = "10.30.0.0/16";
/// See [`WORKERS_V4`].
pub(crate) const WORKERS_V6: &str = "fd00:30::/32";

/// All pods' subnets.
pub(crate) const PODS_V4: &str = "10.244.0.0/16";
/// See [`PODS_V4`].
pub(crate) const PODS_V6: &str = "fd00:244::/32";

/// Address `host` of the subnet numbered (`group`, `index`).
pub(crate) fn v4(group: u8, index: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, group, index, host)
}

/// As [`v4`]; the decimal digits stay readable: `fd00:30:1::2`.
pub(crate) fn v6(group: u8, index: u8, host: u8) -> Ipv6Addr {
    let digits = |number: u8| u16::from_str_radix(&number.to_string(), 16).unwrap_or_default();
    Ipv6Addr::new(0xfd00, digits(group), digits(index), 0, 0, 0, 0, digits(host))
}

/// The interface of the `index`-th node (from 1) of a kind, on a link of its own or on the shared segment.
pub(crate) fn iface(kind: LinkKind, index: u8, on_segment: bool) -> Iface {
    const SEGMENT: u8 = 40;
    let (group, name, peer) = match kind {
        LinkKind::Client => (10, "eth0", "client".to_owned()),
        LinkKind::Lb => (20, "eth0", format!("lb{index}")),
        LinkKind::LbBack => (21, "eth1", format!("lb{index}b")),
        LinkKind::Worker => (30, "eth0", format!("w{index}")),
    };
    let (subnet, host) = match (on_segment, kind) {
        (false, _) => ((group, index), 2),
        (true, LinkKind::Worker) => ((SEGMENT, 0), 10 + index),
        (true, LinkKind::Client) => ((SEGMENT, 0), 100 + index),
        (true, LinkKind::Lb | LinkKind::LbBack) => ((SEGMENT, 0), 1 + index),
    };
    Iface {
        name: name.to_owned(),
        kind,
        mac: [0x02, 0x1b, group, index, 0, 2],
        v4: v4(subnet.0, subnet.1, host),
        v6: v6(subnet.0, subnet.1, host),
        gateway_v4: v4(subnet.0, subnet.1, 1),
        gateway_v6: v6(subnet.0, subnet.1, 1),
        peer,
        gateway_mac: if on_segment { BRIDGE_MAC } else { peer_mac(group, index) },
    }
}

/// Hardware address of the router's end.
pub(crate) fn peer_mac(group: u8, index: u8) -> [u8; 6] {
    [0x02, 0x1b, group, index, 0, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_alike_in_both_families() {
        let worker = iface(LinkKind::Worker, 16, false);
        assert_eq!(worker.v4.to_string(), "10.30.16.2");
        assert_eq!(worker.v6.to_string(), "fd00:30:16::2");
        assert_eq!(worker.gateway_v6.to_string(), "fd00:30:16::1");
        let on_segment = iface(LinkKind::Worker, 3, true);
        assert_eq!(on_segment.v4.to_string(), "10.40.0.13");
        assert_eq!(on_segment.gateway_mac, BRIDGE_MAC);
    }
}
