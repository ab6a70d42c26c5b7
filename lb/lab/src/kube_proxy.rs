//! A stand-in for kube-proxy: what a worker's netfilter does with packets to a VIP, as the real one (nftables mode) does it.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Result, ensure};

use crate::{Netns, Node, wiring};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// A VIP as kube-proxy on one node sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceRule {
    /// VIP address and port.
    pub vip: SocketAddr,
    /// The VIP's protocol.
    pub proto: Proto,
    /// Whether to masquerade.
    pub policy: Policy,
    /// `sessionAffinity: ClientIP`: a client stays with its endpoint. By hash; the real one remembers for the timeout.
    pub affinity: bool,
    /// All endpoints, of the VIP's family: a client of none is refused.
    pub endpoints: Vec<SocketAddr>,
    /// Those on the node itself: with policy Local clients from outside get only these, and hear nothing where there are none.
    pub local: Vec<SocketAddr>,
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

    /// Installs the rules of whole Services, as [`Self::install`] does those of single targets.
    ///
    /// # Errors
    ///
    /// nft's.
    pub fn program(node: &Node, rules: &[ServiceRule]) -> Result<Self> {
        let mut ruleset = String::new();
        for (family, v4) in [("ip", true), ("ip6", false)] {
            let rules = rules.iter().filter(|rule| rule.vip.is_ipv4() == v4);
            ruleset += &service_table(family, rules);
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

/// The table of one family with its Services. With policy Local, what comes from the node itself or from a pod goes to all
/// endpoints, as if it had left the cluster and come back in; `ip saddr` of pods is what `--cluster-cidr` tells the real one.
fn service_table<'a>(family: &str, rules: impl Iterator<Item = &'a ServiceRule>) -> String {
    let pods = if family == "ip" {
        wiring::PODS_V4
    } else {
        wiring::PODS_V6
    };
    let mark = format!("meta mark set meta mark or {MASQUERADE}");
    let (mut chains, mut translate, mut refuse) = (String::new(), String::new(), String::new());
    let mut hairpins = BTreeSet::new();
    for (index, rule) in rules.enumerate() {
        let (address, port, proto) = (rule.vip.ip(), rule.vip.port(), rule.proto.word());
        let vip = format!("{family} daddr {address} {proto} dport {port}");
        if rule.endpoints.is_empty() {
            refuse += &format!("    ct state new {vip} reject\n");
            continue;
        }
        let body = match rule.policy {
            Policy::Cluster => format!("    {mark}\n    goto all-{index}\n"),
            Policy::Local => {
                if rule.local.is_empty() {
                    refuse += &format!("    ct state new {vip} drop\n");
                }
                format!(
                    "    {family} saddr {pods} goto all-{index}\n    fib saddr type local {mark}\n    \
                     fib saddr type local goto all-{index}\n{}",
                    choose(family, rule, &rule.local)
                )
            }
        };
        let all = choose(family, rule, &rule.endpoints);
        chains += &format!("  chain all-{index} {{\n{all}  }}\n  chain vip-{index} {{\n{body}  }}\n");
        translate += &format!("    {vip} goto vip-{index}\n");
        hairpins.extend(rule.endpoints.iter().map(SocketAddr::ip));
    }
    // A server that is its own client must see another address, or it would answer itself.
    let hairpins: String = hairpins
        .iter()
        .map(|ip| format!("    {family} saddr {ip} {family} daddr {ip} masquerade\n"))
        .collect();
    format!(
        "table {family} kube-proxy
delete table {family} kube-proxy
table {family} kube-proxy {{
{chains}  chain services {{
{translate}  }}
  chain refused {{
{refuse}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    jump refused
  }}
  chain local-output {{
    type filter hook output priority filter; policy accept;
    jump refused
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & {MASQUERADE} == {MASQUERADE} masquerade
{hairpins}  }}
}}
"
    )
}

/// Rules that send a packet to one of `endpoints`.
fn choose(family: &str, rule: &ServiceRule, endpoints: &[SocketAddr]) -> String {
    let count = endpoints.len();
    let rule_of = |(index, endpoint): (usize, &SocketAddr)| {
        let left = count - index;
        let chance = match (left, rule.affinity) {
            (1, _) => String::new(),
            (_, true) => format!("jhash {family} saddr mod {count} seed 0x1 {index} "),
            (_, false) => format!("numgen random mod {left} 0 "),
        };
        let proto = rule.proto.word();
        format!("    {chance}meta l4proto {proto} dnat to {endpoint}\n")
    };
    endpoints.iter().enumerate().map(rule_of).collect()
}

fn elements(entries: impl Iterator<Item = String>) -> String {
    let entries = entries.collect::<Vec<_>>().join(",\n      ");
    if entries.is_empty() {
        return entries;
    }
    format!("elements = {{ {entries} }}")
}
