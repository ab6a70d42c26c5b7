//! Which way packets went: nftables counters on every link of the router, at the device hooks, so that forwarded, bridged and
//! looping packets are all seen.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    ops::{AddAssign, Sub},
};

use anyhow::{Context as _, Result};

use crate::{LinkKind, Router, run};

/// Packets and bytes (from the network header on).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What went over a link in one direction, as far as it has to do with VIPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Destination is in a VIP prefix.
    pub requests: Count,
    /// Source is in a VIP prefix.
    pub replies: Count,
    /// The outer header says IPv4 or IPv6 in IP.
    pub tunnel: Count,
}

/// A link's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkCount {
    /// What the link leads to.
    pub kind: LinkKind,
    /// What came from there.
    pub from: Traffic,
    /// What went there.
    pub to: Traffic,
}

/// All links' counters at one time. Subtract an earlier one to see what happened between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By the name of the router's end: `client`, `lb1`, `lb1b`, `w1`.
    pub links: BTreeMap<String, LinkCount>,
}

impl Counters {
    /// What came from all links of a kind. With DSR, `from(LinkKind::Lb).replies` is zero.
    #[must_use]
    pub fn from(&self, kind: LinkKind) -> Traffic {
        self.sum(kind, |link| link.from)
    }

    /// What went to all links of a kind.
    #[must_use]
    pub fn to(&self, kind: LinkKind) -> Traffic {
        self.sum(kind, |link| link.to)
    }

    fn sum(&self, kind: LinkKind, side: impl Fn(&LinkCount) -> Traffic) -> Traffic {
        let mut sum = Traffic::default();
        for link in self.links.values().filter(|link| link.kind == kind) {
            sum += side(link);
        }
        sum
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.replies += other.replies;
        self.tunnel += other.tunnel;
    }
}

impl Sub for Count {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(before.packets),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }
}

impl Sub for Traffic {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            replies: self.replies - before.replies,
            tunnel: self.tunnel - before.tunnel,
        }
    }
}

impl Sub<&Self> for Counters {
    type Output = Self;

    fn sub(mut self, before: &Self) -> Self {
        for (name, link) in &mut self.links {
            if let Some(before) = before.links.get(name) {
                link.from = link.from - before.from;
                link.to = link.to - before.to;
            }
        }
        self
    }
}

/// Ethernet header without tags: those are not there yet, or no more, where packets are counted.
const ETHERNET_BYTES: u64 = 14;
const TABLE: &str = "lab";
const DIRECTIONS: [(&str, &str); 2] = [("from", "ingress"), ("to", "egress")];
const CLASSES: [&str; 3] = ["requests", "replies", "tunnel"];

pub(crate) fn install(router: &Router, vip_prefixes: &[(IpAddr, u8)]) -> Result<()> {
    let mut rules = format!("table netdev {TABLE} {{\n");
    for (link, _) in router.links() {
        for (direction, hook) in DIRECTIONS {
            for class in CLASSES {
                rules += &format!("counter {direction}-{class}-{link} {{ }}\n");
            }
            rules += &format!("chain {direction}-{link} {{\n");
            rules += &format!("type filter hook {hook} device \"{link}\" priority 0; policy accept;\n");
            for (address, length) in vip_prefixes {
                let family = if address.is_ipv4() { "ip" } else { "ip6" };
                for (side, class) in [("daddr", "requests"), ("saddr", "replies")] {
                    let counter = format!("{direction}-{class}-{link}");
                    rules += &format!("{family} {side} {address}/{length} counter name \"{counter}\"\n");
                }
            }
            rules += &format!("ip protocol {{ 4, 41 }} counter name \"{direction}-tunnel-{link}\"\n");
            rules += &format!("ip6 nexthdr {{ 4, 41 }} counter name \"{direction}-tunnel-{link}\"\n}}\n");
        }
    }
    rules += "}\n";
    router.ns.nft(&rules)
}

pub(crate) fn read(router: &Router) -> Result<Counters> {
    let mut nft = router.ns.command("nft");
    let text = run::output(nft.args(["-j", "list", "counters", "table", "netdev", TABLE]))?;
    let listing: serde_json::Value = serde_json::from_str(&text).context("nft's JSON")?;
    let counts: BTreeMap<&str, Count> = listing["nftables"]
        .as_array()
        .context("nft's JSON has no list")?
        .iter()
        .filter_map(|object| {
            let counter = object.get("counter")?;
            let count = Count {
                packets: counter["packets"].as_u64()?,
                bytes: counter["bytes"].as_u64()?,
            };
            Some((counter["name"].as_str()?, count))
        })
        .collect();
    let mut counters = Counters::default();
    for (link, kind) in router.links() {
        let count = |direction: &str, class: &str| {
            counts
                .get(format!("{direction}-{class}-{link}").as_str())
                .copied()
                .with_context(|| format!("no counter {direction}-{class}-{link}"))
        };
        let traffic = |direction: &str, header: u64| -> Result<Traffic> {
            let net = |class| -> Result<Count> {
                let Count { packets, bytes } = count(direction, class)?;
                let bytes = bytes.saturating_sub(packets * header);
                Ok(Count { packets, bytes })
            };
            Ok(Traffic {
                requests: net("requests")?,
                replies: net("replies")?,
                tunnel: net("tunnel")?,
            })
        };
        // The egress hook counts the Ethernet header, the ingress hook does not.
        let (from, to) = (traffic("from", 0)?, traffic("to", ETHERNET_BYTES)?);
        counters.links.insert(link.to_owned(), LinkCount { kind, from, to });
    }
    Ok(counters)
}

pub(crate) fn reset(router: &Router) -> Result<()> {
    router
        .ns
        .sh(&format!("nft reset counters table netdev {TABLE}"))
        .map(drop)
}
