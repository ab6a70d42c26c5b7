//! Where outer headers come from.
//!
//! Never invents a source: it is this node's own address, or one of a prefix that is routed to this node.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    address,
    problem::Problem,
    read::{At, Fields},
    words::Quoted,
};

/// Prefix lengths that a family may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLengths {
    /// Shortest.
    pub least: u8,
    /// Longest.
    pub most: u8,
}

/// Lengths of `encap.prefix_v4`: 4 to 16,777,216 sources.
pub const PREFIX_LENGTHS_V4: PrefixLengths = PrefixLengths { least: 8, most: 30 };
/// Lengths of `encap.prefix_v6`: 256 sources at least, and the entropy stays in the lower half of the address.
pub const PREFIX_LENGTHS_V6: PrefixLengths = PrefixLengths { least: 64, most: 120 };

/// The outer source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encap {
    /// This node's own address: the one given, else that of the egress interface.
    Node {
        /// For IPv4 backends.
        source_v4: Option<Ipv4Addr>,
        /// For IPv6 backends.
        source_v6: Option<Ipv6Addr>,
    },
    /// An address of a prefix that is routed to this LB node; its low bits carry the flow hash. At least one is given, and one
    /// for each family that backends have.
    Prefix {
        /// For IPv4 backends.
        v4: Option<Ipv4Net>,
        /// For IPv6 backends.
        v6: Option<Ipv6Net>,
    },
}

impl Default for Encap {
    fn default() -> Self {
        Self::Node {
            source_v4: None,
            source_v6: None,
        }
    }
}

impl Encap {
    /// [`xdp_prog::abi::Config::source_mask_v4`] and [`xdp_prog::abi::Config::source_mask_v6`]: 0 where there is no prefix.
    pub fn source_masks(&self) -> (u64, u64) {
        match self {
            Self::Node { .. } => (0, 0),
            Self::Prefix { v4, v6 } => (
                v4.map_or(0, |prefix| u32::from_ne_bytes(prefix.hostmask().octets()).into()),
                // The longest host part is the lower half, see PREFIX_LENGTHS_V6.
                v6.map_or(0, |prefix| (prefix.hostmask().to_bits() as u64).to_be()),
            ),
        }
    }

    /// The prefixes, if any.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let (v4, v6) = match self {
            Self::Node { .. } => (None, None),
            Self::Prefix { v4, v6 } => (*v4, *v6),
        };
        v4.map(IpNet::V4).into_iter().chain(v6.map(IpNet::V6))
    }
}

/// `encap`.
pub(super) fn encap(at: &At<'_>) -> Option<Encap> {
    at.fields(
        |fields| match fields.or("source", SourceKind::Node, |at| source_kind(&at)) {
            Some(SourceKind::Node) => node(fields),
            Some(SourceKind::Prefix) => prefix(fields),
            // The other keys are read as if both kinds had them, so that they get their own errors and no others.
            None => {
                node_sources(fields);
                prefixes(fields);
                None
            }
        },
    )
}

enum SourceKind {
    Node,
    Prefix,
}

fn source_kind(at: &At<'_>) -> Option<SourceKind> {
    match at.text()? {
        "node" => Some(SourceKind::Node),
        "prefix" => Some(SourceKind::Prefix),
        other => at.fail(Problem::NotOneOf {
            value: Quoted::new(other),
            allowed: &["node", "prefix"],
        }),
    }
}

fn node(fields: &mut Fields<'_>) -> Option<Encap> {
    for key in ["prefix_v4", "prefix_v6"] {
        if let Some(at) = fields.optional(key) {
            at.note(Problem::OtherEncapSource { source_is: "node" });
        }
    }
    let (source_v4, source_v6) = node_sources(fields);
    Some(Encap::Node {
        source_v4: source_v4?,
        source_v6: source_v6?,
    })
}

fn prefix(fields: &mut Fields<'_>) -> Option<Encap> {
    for key in ["source_v4", "source_v6"] {
        if let Some(at) = fields.optional(key) {
            at.note(Problem::OtherEncapSource { source_is: "prefix" });
        }
    }
    let (v4, v6) = prefixes(fields);
    let (v4, v6) = (v4?, v6?);
    if v4.is_none() && v6.is_none() {
        return fields.fail_at("prefix_v4", Problem::NoPrefix);
    }
    Some(Encap::Prefix { v4, v6 })
}

fn node_sources(fields: &mut Fields<'_>) -> (Option<Option<Ipv4Addr>>, Option<Option<Ipv6Addr>>) {
    (
        fields.or("source_v4", None, |at| address::unicast_v4(&at).map(Some)),
        fields.or("source_v6", None, |at| address::unicast_v6(&at).map(Some)),
    )
}

fn prefixes(fields: &mut Fields<'_>) -> (Option<Option<Ipv4Net>>, Option<Option<Ipv6Net>>) {
    let v4 = fields.or("prefix_v4", None, |at| {
        let prefix = address::network_v4(&at)?;
        usable(&at, prefix.into(), PREFIX_LENGTHS_V4).then_some(Some(prefix))
    });
    let v6 = fields.or("prefix_v6", None, |at| {
        let prefix = address::network_v6(&at)?;
        usable(&at, prefix.into(), PREFIX_LENGTHS_V6).then_some(Some(prefix))
    });
    (v4, v6)
}

fn usable(at: &At<'_>, prefix: IpNet, allowed: PrefixLengths) -> bool {
    let length = prefix.prefix_len();
    if !(allowed.least..=allowed.most).contains(&length) {
        at.note(Problem::PrefixLength { length, allowed });
        return false;
    }
    // The special blocks that a prefix could contain without beginning or ending in one are none: both ends tell.
    let special = [prefix.network(), prefix.broadcast()]
        .into_iter()
        .find_map(|end| address::not_unicast(end).map(|why| Problem::NotUnicast { address: end, why }));
    match special {
        Some(problem) => {
            at.note(problem);
            false
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_the_host_bits_as_on_the_wire() {
        let v4 = Some("100.64.0.0/22".parse().unwrap());
        let v6 = Some("2001:db8::/120".parse().unwrap());
        let (mask_v4, mask_v6) = Encap::Prefix { v4, v6 }.source_masks();
        assert_eq!(mask_v4.to_ne_bytes(), [0, 0, 3, 255, 0, 0, 0, 0]);
        assert_eq!(mask_v6.to_ne_bytes(), [0, 0, 0, 0, 0, 0, 0, 255]);
        let widest = Encap::Prefix {
            v4: None,
            v6: Some("2001:db8::/64".parse().unwrap()),
        };
        assert_eq!(widest.source_masks(), (0, u64::MAX));
        assert_eq!(Encap::default().source_masks(), (0, 0));
    }
}
