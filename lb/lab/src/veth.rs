//! Veth pairs between namespaces, with everything off that breaks XDP or hides what is on the wire.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::{Netns, run};

/// One end of a pair, as wished for.
#[derive(Clone, Debug)]
pub struct End {
    /// The namespace it goes to.
    pub ns: Netns,
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// IPv4 address and prefix length.
    pub v4: Option<(Ipv4Addr, u8)>,
    /// IPv6 address and prefix length; no duplicate address detection.
    pub v6: Option<(Ipv6Addr, u8)>,
}

/// A veth pair. It goes with the namespaces it is in.
#[derive(Clone, Debug)]
pub struct Veth {
    /// The first end.
    pub a: End,
    /// The other end.
    pub b: End,
}

impl Veth {
    /// Makes the pair and brings both ends up with `mtu` bytes and `queues` receive and transmit queues.
    ///
    /// Checksum offload, GSO, TSO, GRO and VLAN offloads are off at both ends: partial checksums do not survive XDP, and a
    /// VLAN tag must be in the packet, where a program sees it.
    ///
    /// # Errors
    ///
    /// Those of `ip` and `ethtool`.
    pub fn new(a: End, b: End, mtu: u32, queues: u32) -> Result<Self> {
        let size = format!("mtu {mtu} numrxqueues {queues} numtxqueues {queues}");
        let (a_mac, b_mac) = (mac_text(a.mac), mac_text(b.mac));
        a.ns.ip_batch(&format!(
            "link add name {} address {a_mac} {size} type veth peer name {} address {b_mac} {size} netns {}\n",
            a.name,
            b.name,
            b.ns.path()
        ))?;
        let pair = Self { a, b };
        for end in [&pair.a, &pair.b] {
            end.configure()?;
        }
        Ok(pair)
    }
}

impl End {
    fn configure(&self) -> Result<()> {
        let dev = &self.name;
        let mut off = self.ns.command("ethtool");
        off.args(["-K", dev]);
        for feature in [
            "tx",
            "tso",
            "gso",
            "gro",
            "txvlan",
            "rxvlan",
            "tx-vlan-stag-hw-insert",
            "rx-vlan-stag-hw-parse",
        ] {
            off.args([feature, "off"]);
        }
        run::output(&mut off)?;
        let mut lines = String::new();
        if let Some((address, length)) = self.v4 {
            lines += &format!("addr add {address}/{length} dev {dev}\n");
        }
        if let Some((address, length)) = self.v6 {
            lines += &format!("addr add {address}/{length} dev {dev} nodad\n");
        }
        lines += &format!("link set dev {dev} up\n");
        self.ns.ip_batch(&lines)
    }
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
