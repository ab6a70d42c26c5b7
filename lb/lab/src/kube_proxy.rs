//! A stand-in for kube-proxy: what a worker's netfilter does with packets to a VIP, as the real one (nftables mode) does it.

use std::net::SocketAddr;

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

/// The rules on one node. They stay until [`KubeProxy::remove`], with or without this handle; installing again replaces them.
#[derive(Clone, Debug)]
pub struct KubeProxy {
    ns: Netns,
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
            let rules: Vec<&VipRule> = rules.iter().filter(|rule| rule.vip.is_ipv4() == v4).collect();
            ruleset += &table(family, &rules, policy);
        }
        node.ns().nft(&ruleset)?;
        Ok(Self { ns: node.ns().clone() })
    }

    /// Removes the rules. Flows that conntrack knows keep their translation.
    ///
    /// # Errors
    ///
    /// nft's, also when they have been removed already.
    pub fn remove(self) -> Result<()> {
        self.ns.nft("delete table ip kube-proxy\ndelete table ip6 kube-proxy\n")
    }
}

/// The table of one family. Declared, deleted and made again in one transaction: the way to replace what may not be there.
fn table(family: &str, rules: &[&VipRule], policy: Policy) -> String {
    let address = if family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
    let key = |rule: &VipRule| format!("{} . {} . {}", rule.vip.ip(), rule.proto.word(), rule.vip.port());
    let value = |rule: &VipRule| format!("{} . {}", rule.target.ip(), rule.target.port());
    let vips = elements(rules.iter().map(|rule| key(rule)));
    let targets = elements(rules.iter().map(|rule| format!("{} : {}", key(rule), value(rule))));
    let mark = match policy {
        Policy::Local => String::new(),
        Policy::Cluster => {
            format!("{family} daddr . meta l4proto . th dport @vips meta mark set meta mark or {MASQUERADE}")
        }
    };
    format!(
        "table {family} kube-proxy
delete table {family} kube-proxy
table {family} kube-proxy {{
  set vips {{
    type {address} . inet_proto . inet_service
    {vips}
  }}
  map targets {{
    type {address} . inet_proto . inet_service : {address} . inet_service
    {targets}
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

fn elements(entries: impl Iterator<Item = String>) -> String {
    let entries = entries.collect::<Vec<_>>().join(",\n      ");
    if entries.is_empty() {
        return entries;
    }
    format!("elements = {{ {entries} }}")
}
