//! A stand-in for kube-proxy: what a worker's netfilter does with packets to a VIP, as the real one (nftables mode) does it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use crate::{Netns, Node};

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Proto {
    fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A Service's `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// To a server on this node; the server sees the client's address.
    Local,
    /// To a server anywhere; the server sees the node's address (masquerade), so that replies come back through the node.
    Cluster,
}

/// VIP to server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipRule {
    /// VIP address and port.
    pub vip: SocketAddr,
    /// The VIP's protocol.
    pub proto: Proto,
    /// The server's address and port, of the same family.
    pub target: SocketAddr,
}

/// The rules on one node; gone on [`KubeProxy::remove`] or drop.
#[derive(Debug)]
pub struct KubeProxy {
    ns: Netns,
    removed: bool,
}

/// The bit kube-proxy marks packets with that are to be masqueraded.
const MASQUERADE: &str = "0x4000";

impl KubeProxy {
    /// Installs the rules on `node` in one transaction, in place of any that were there.
    ///
    /// # Errors
    ///
    /// When a rule mixes families, and nft's.
    pub fn install(node: &Node, rules: &[VipRule], policy: Policy) -> Result<Self> {
        for rule in rules {
            ensure!(
                rule.vip.is_ipv4() == rule.target.is_ipv4(),
                "{} and {}: two families",
                rule.vip,
                rule.target
            );
        }
        let mut ruleset = String::new();
        for (family, v4) in [("ip", true), ("ip6", false)] {
            ruleset += &table(family, rules.iter().filter(|rule| rule.vip.is_ipv4() == v4), policy);
        }
        node.ns().nft(&ruleset)?;
        Ok(Self {
            ns: node.ns().clone(),
            removed: false,
        })
    }

    /// Removes the rules. Connections that conntrack knows keep their translation.
    ///
    /// # Errors
    ///
    /// nft's.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.delete()
    }

    fn delete(&self) -> Result<()> {
        self.ns.nft("delete table ip kube-proxy\ndelete table ip6 kube-proxy\n")
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        if !self.removed {
            let _ = self.delete();
        }
    }
}

fn table<'a>(family: &str, rules: impl Iterator<Item = &'a VipRule>, policy: Policy) -> String {
    let address = if family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
    let elements: Vec<String> = rules
        .map(|rule| {
            let (vip, target) = (rule.vip, rule.target);
            let (from, to): (IpAddr, IpAddr) = (vip.ip(), target.ip());
            format!(
                "{from} . {} . {} : {to} . {}",
                rule.proto.word(),
                vip.port(),
                target.port()
            )
        })
        .collect();
    let elements = if elements.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }}", elements.join(",\n      "))
    };
    let mark = match policy {
        Policy::Local => String::new(),
        Policy::Cluster => {
            format!("{family} daddr . meta l4proto . th dport @vips meta mark set meta mark or {MASQUERADE}")
        }
    };
    let set_elements = elements
        .lines()
        .map(|line| line.split(" : ").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(",\n");
    let set_elements = if set_elements.is_empty() {
        set_elements
    } else {
        format!("{set_elements} }}")
    };
    format!(
        "table {family} kube-proxy
delete table {family} kube-proxy
table {family} kube-proxy {{
  set vips {{
    type {address} . inet_proto . inet_service
    {set_elements}
  }}
  map targets {{
    type {address} . inet_proto . inet_service : {address} . inet_service
    {elements}
  }}
  chain services {{
    {mark}
    meta l4proto {{ tcp, udp }} dnat {family} to {family} daddr . meta l4proto . th dport map @targets
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & {MASQUERADE} == {MASQUERADE} masquerade
  }}
}}
"
    )
}
