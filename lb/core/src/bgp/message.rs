//! Messages to bytes.
//!
//! Never makes one longer than [`MAX_MESSAGE_BYTES`]: who packs routes counts.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use netgauze_bgp_pkt::{
    capabilities::{
        BgpCapability, ExtendedNextHopEncoding, ExtendedNextHopEncodingCapability, FourOctetAsCapability,
        GracefulRestartAddressFamily, GracefulRestartCapability, MultiProtocolExtensionsCapability,
    },
    community,
    nlri::{Ipv4Unicast, Ipv4UnicastAddress, Ipv6Unicast, Ipv6UnicastAddress},
    open::{BgpOpenMessage, BgpOpenMessageParameter},
    path_attribute::{
        As2PathSegment, As4Path, As4PathSegment, AsPath, AsPathSegmentType, Communities, LargeCommunities,
        LocalPreference, MpReach, MpUnreach, MultiExitDiscriminator, NextHop, Origin, PathAttribute,
        PathAttributeValue,
    },
    update::BgpUpdateMessage,
};
use netgauze_iana::address_family::{AddressFamily, AddressType};
use netgauze_parse_utils::WritablePdu;

use super::{Attributes, Families, Notification, PeerConfig};

/// Longest message (RFC 4271 4.1): extended messages are not offered.
pub const MAX_MESSAGE_BYTES: usize = 4096;
/// Marker, length, kind.
pub(super) const HEADER_BYTES: usize = 19;
/// An UPDATE's two lengths.
const UPDATE_LENGTHS: usize = 4;
/// `AS_TRANS` (RFC 6793): how who knows two octets only sees a longer ASN.
pub(super) const AS_TRANS: u16 = 23456;
/// What iBGP peers get of a route that says nothing of it: as everyone else has it.
const DEFAULT_LOCAL_PREF: u32 = 100;
/// Longest value of an attribute whose length is one octet.
const SHORT_VALUE_BYTES: usize = 255;

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Open,
    Update,
    Notification,
    Keepalive,
    RouteRefresh,
}

impl Kind {
    pub(super) const fn from_octet(octet: u8) -> Option<Self> {
        match octet {
            1 => Some(Self::Open),
            2 => Some(Self::Update),
            3 => Some(Self::Notification),
            4 => Some(Self::Keepalive),
            5 => Some(Self::RouteRefresh),
            _ => None,
        }
    }

    const fn octet(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Update => 2,
            Self::Notification => 3,
            Self::Keepalive => 4,
            Self::RouteRefresh => 5,
        }
    }

    /// Whether a message can be so long, header included (RFC 4271 6.1, RFC 7313 5).
    pub(super) const fn may_have(self, length: usize) -> bool {
        match self {
            Self::Open => length >= 29,
            Self::Update => length >= 23,
            Self::Notification => length >= 21,
            Self::Keepalive => length == HEADER_BYTES,
            // Of another length it is an error of its own.
            Self::RouteRefresh => true,
        }
    }
}

fn message(kind: Kind, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(HEADER_BYTES + body.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![0xff; 16];
    bytes.extend(length.to_be_bytes());
    bytes.push(kind.octet());
    bytes.extend_from_slice(body);
    bytes
}

pub(super) fn keepalive() -> Vec<u8> {
    message(Kind::Keepalive, &[])
}

pub(super) fn notification(notification: &Notification) -> Vec<u8> {
    message(Kind::Notification, &notification.body())
}

/// ROUTE-REFRESH of IPv4 (`afi` 1) or IPv6 (2) unicast; `subtype` of RFC 7313.
pub(super) fn refresh(afi: u16, subtype: u8) -> Vec<u8> {
    let [high, low] = afi.to_be_bytes();
    message(Kind::RouteRefresh, &[high, low, subtype, 1])
}

/// What an OPEN says beside the peer's configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) router_id: Ipv4Addr,
    /// Whether IPv4 routes may have IPv6 next hops: over IPv6 they can.
    pub(super) extended_next_hop: bool,
    /// Whether this speaker has restarted and not said so yet.
    pub(super) restarted: bool,
    /// Whether packets were forwarded all the while.
    pub(super) forwarding_kept: bool,
}

/// The families' numbers of the crate.
pub(super) fn address_types(families: Families) -> impl Iterator<Item = AddressType> {
    let v4 = families.v4.then_some(AddressType::Ipv4Unicast);
    v4.into_iter().chain(families.v6.then_some(AddressType::Ipv6Unicast))
}

pub(super) fn open(config: &PeerConfig, offer: Offer) -> Vec<u8> {
    let mut capabilities: Vec<BgpCapability> = address_types(config.families)
        .map(|family| BgpCapability::MultiProtocolExtensions(MultiProtocolExtensionsCapability::new(family)))
        .collect();
    capabilities.push(BgpCapability::RouteRefresh);
    if offer.extended_next_hop {
        let encoding = ExtendedNextHopEncoding::new(AddressType::Ipv4Unicast, AddressFamily::IPv6);
        capabilities.push(BgpCapability::ExtendedNextHopEncoding(
            ExtendedNextHopEncodingCapability::new([encoding]),
        ));
    }
    if let Some(restart_time_s) = config.restart_time_s {
        let families: Vec<_> = address_types(config.families)
            .map(|family| GracefulRestartAddressFamily::new(offer.forwarding_kept, family))
            .collect();
        capabilities.push(BgpCapability::GracefulRestartCapability(
            GracefulRestartCapability::new(offer.restarted, false, restart_time_s, families),
        ));
    }
    capabilities.push(BgpCapability::FourOctetAs(FourOctetAsCapability::new(config.local_asn)));
    capabilities.push(BgpCapability::EnhancedRouteRefresh);
    let parameter = BgpOpenMessageParameter::new_capabilities(capabilities);
    let asn = u16::try_from(config.local_asn).unwrap_or(AS_TRANS);
    let open = BgpOpenMessage::new(asn, config.hold_s, offer.router_id, [parameter]);
    message(Kind::Open, &written(&open))
}

/// How routes of a session are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) local_asn: u32,
    pub(super) is_ebgp: bool,
    /// Whether the peer knows ASNs of four octets.
    pub(super) asn4: bool,
    /// Next hop of IPv4 routes; `None`: none are announced. An IPv6 one as RFC 8950 says.
    pub(super) v4: Option<IpAddr>,
    /// Next hop of IPv6 routes; `None`: none are announced.
    pub(super) v6: Option<std::net::Ipv6Addr>,
}

/// The routes of one family.
#[derive(Clone, Copy, Debug)]
pub(super) enum Routes<'a> {
    V4(&'a [Ipv4Net]),
    V6(&'a [Ipv6Net]),
}

impl Terms {
    /// Bytes of routes that an UPDATE with these attributes has room for.
    pub(super) fn room(&self, attributes: &Attributes) -> usize {
        let empty = self.announcement(attributes, Routes::V6(&[]));
        let short = self.announcement(attributes, Routes::V4(&[]));
        MAX_MESSAGE_BYTES.saturating_sub(empty.len().max(short.len()))
    }

    /// Bytes of routes that an UPDATE which withdraws them has room for.
    pub(super) const WITHDRAW_ROOM: usize = MAX_MESSAGE_BYTES - HEADER_BYTES - UPDATE_LENGTHS - 7;

    /// An UPDATE that announces routes, whose number the caller has seen to. Without a next hop, one that announces none.
    pub(super) fn announcement(&self, attributes: &Attributes, routes: Routes<'_>) -> Vec<u8> {
        let (next_hop, reach, nlri) = match routes {
            Routes::V4(routes) => match self.v4 {
                Some(IpAddr::V4(next_hop)) => (Some(next_hop), None, nlri_v4(routes)),
                Some(next_hop @ IpAddr::V6(_)) => {
                    let reach = MpReach::Ipv4Unicast {
                        next_hop,
                        next_hop_local: None,
                        nlri: nlri_v4(routes).into(),
                    };
                    (None, Some(reach), Vec::new())
                }
                None => (None, None, Vec::new()),
            },
            Routes::V6(routes) => {
                let reach = self.v6.map(|next_hop_global| MpReach::Ipv6Unicast {
                    next_hop_global,
                    next_hop_local: None,
                    nlri: nlri_v6(routes).into(),
                });
                (None, reach, Vec::new())
            }
        };
        let (as_path, as4_path) = self.paths(attributes.prepend);
        let next_hop = next_hop.map(|next_hop| PathAttributeValue::NextHop(NextHop::new(next_hop)));
        let med = attributes.med.map(MultiExitDiscriminator::new);
        let preference = LocalPreference::new(attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF));
        let preference = (!self.is_ebgp).then_some(PathAttributeValue::LocalPreference(preference));
        let mut path = Vec::from_iter(attribute(PathAttributeValue::Origin(Origin::IGP), 1));
        path.extend(as_path);
        path.extend(next_hop.and_then(|value| attribute(value, 4)));
        path.extend(med.and_then(|med| attribute(PathAttributeValue::MultiExitDiscriminator(med), 4)));
        path.extend(preference.and_then(|value| attribute(value, 4)));
        let standard: Vec<_> = attributes
            .communities
            .iter()
            .map(|one| community::Community::new(one.0))
            .collect();
        if !standard.is_empty() {
            let bytes = 4 * standard.len();
            path.extend(attribute(
                PathAttributeValue::Communities(Communities::new(standard)),
                bytes,
            ));
        }
        path.extend(reach.and_then(|reach| attribute(PathAttributeValue::MpReach(reach), MAX_MESSAGE_BYTES)));
        path.extend(as4_path);
        let large: Vec<_> = attributes
            .large_communities
            .iter()
            .map(|community| {
                let [global, first, second] = community.0;
                community::LargeCommunity::new(global, first, second)
            })
            .collect();
        if !large.is_empty() {
            let bytes = 12 * large.len();
            path.extend(attribute(
                PathAttributeValue::LargeCommunities(LargeCommunities::new(large)),
                bytes,
            ));
        }
        update(&[], path, nlri)
    }

    /// An UPDATE that withdraws routes, as they were announced.
    pub(super) fn withdrawal(&self, routes: Routes<'_>) -> Vec<u8> {
        let unreach = match routes {
            Routes::V4(routes) if !matches!(self.v4, Some(IpAddr::V6(_))) => {
                return update(&nlri_v4(routes), Vec::new(), Vec::new());
            }
            Routes::V4(routes) => MpUnreach::Ipv4Unicast {
                nlri: nlri_v4(routes).into(),
            },
            Routes::V6(routes) => MpUnreach::Ipv6Unicast {
                nlri: nlri_v6(routes).into(),
            },
        };
        let unreach = attribute(PathAttributeValue::MpUnreach(unreach), MAX_MESSAGE_BYTES);
        update(&[], Vec::from_iter(unreach), Vec::new())
    }

    /// `AS_PATH`, and `AS4_PATH` where the peer could not read the former (RFC 6793 4.2.2).
    fn paths(&self, prepend: u8) -> (Option<PathAttribute>, Option<PathAttribute>) {
        let count = if self.is_ebgp { 1 + usize::from(prepend) } else { 0 };
        let is_short = u16::try_from(self.local_asn);
        let long =
            || (count > 0).then(|| As4PathSegment::new(AsPathSegmentType::AsSequence, vec![self.local_asn; count]));
        let path = if self.asn4 {
            AsPath::as4_path_segments(Vec::from_iter(long()))
        } else {
            let asn = is_short.unwrap_or(AS_TRANS);
            let segment = (count > 0).then(|| As2PathSegment::new(AsPathSegmentType::AsSequence, vec![asn; count]));
            AsPath::as2_path_segments(Vec::from_iter(segment))
        };
        let long = long().filter(|_| !self.asn4 && is_short.is_err());
        let long =
            long.and_then(|segment| attribute(PathAttributeValue::As4Path(As4Path::new([segment])), 2 + 4 * count));
        (attribute(PathAttributeValue::AsPath(path), 2 + 4 * count), long)
    }
}

/// The end of a family's first table (RFC 4724 2).
pub(super) fn end_of_table(family: AddressType) -> Vec<u8> {
    match family {
        AddressType::Ipv6Unicast => {
            let unreach = MpUnreach::Ipv6Unicast { nlri: [].into() };
            let unreach = attribute(PathAttributeValue::MpUnreach(unreach), 3);
            update(&[], Vec::from_iter(unreach), Vec::new())
        }
        // IPv4 unicast; no other family is announced.
        _ => update(&[], Vec::new(), Vec::new()),
    }
}

fn update(withdrawn: &[Ipv4UnicastAddress], path: Vec<PathAttribute>, nlri: Vec<Ipv4UnicastAddress>) -> Vec<u8> {
    message(Kind::Update, &written(&BgpUpdateMessage::new(withdrawn, path, nlri)))
}

/// Networks that are not unicast have no place in a message: nobody can ask for them.
fn nlri_v4(routes: &[Ipv4Net]) -> Vec<Ipv4UnicastAddress> {
    let unicast = routes.iter().filter_map(|route| Ipv4Unicast::from_net(*route).ok());
    unicast.map(Ipv4UnicastAddress::new_no_path_id).collect()
}

fn nlri_v6(routes: &[Ipv6Net]) -> Vec<Ipv6UnicastAddress> {
    let unicast = routes.iter().filter_map(|route| Ipv6Unicast::from_net(*route).ok());
    unicast.map(|route| Ipv6UnicastAddress::new(None, route)).collect()
}

/// With the flags that its kind has, `bytes` of value at most. Those flags are never wrong for it.
fn attribute(value: PathAttributeValue, bytes: usize) -> Option<PathAttribute> {
    let optional = value.can_be_optional().unwrap_or(true);
    let transitive = value.can_be_transitive().unwrap_or(true);
    PathAttribute::from(optional, transitive, false, bytes > SHORT_VALUE_BYTES, value).ok()
}

/// Writing to memory does not fail.
fn written<E>(pdu: &impl WritablePdu<E>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(pdu.len());
    // What is left out would be missed by the model of a peer in the tests.
    let _ = pdu.write(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: PeerConfig = PeerConfig {
        local_asn: 4_200_000_001,
        peer_asn: 65001,
        families: Families { v4: true, v6: true },
        hold_s: 90,
        connect_retry_s: 5,
        passive: false,
        next_hop_v4: None,
        next_hop_v6: None,
        restart_time_s: Some(120),
    };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn an_open_is_these_bytes() {
        let offer = Offer {
            router_id: Ipv4Addr::new(192, 0, 2, 1),
            extended_next_hop: true,
            restarted: true,
            forwarding_kept: true,
        };
        let bytes = open(&CONFIG, offer);
        let parts = [
            "ffffffffffffffffffffffffffffffff",
            "004901", // 73 bytes, OPEN
            "04",
            "5ba0", // AS_TRANS
            "005a",
            "c0000201",
            "2c022a", // one parameter of capabilities
            "010400010001",
            "010400020001",
            "0200",
            "0506000100010002",
            "400a8078000101800002018", // R, 120 s, both families with F
            "0",
            "4104fa56ea01",
            "4600",
        ];
        assert_eq!(hex(&bytes), parts.concat());
    }

    #[test]
    fn an_announcement_is_these_bytes() {
        let terms = Terms {
            local_asn: 65000,
            is_ebgp: true,
            asn4: true,
            v4: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
            v6: Some("2001:db8::1".parse().unwrap()),
        };
        let attributes = Attributes {
            med: Some(7),
            communities: [super::super::GRACEFUL_SHUTDOWN].into(),
            prepend: 1,
            ..Attributes::default()
        };
        let routes: [Ipv4Net; 2] = ["192.0.2.1/32".parse().unwrap(), "198.51.100.0/24".parse().unwrap()];
        let parts = [
            "ffffffffffffffffffffffffffffffff",
            "004a02",
            "0000",
            "002a",
            "40010100",
            "40020a02020000fde80000fde8",
            "4003040a000001",
            "80040400000007",
            "c00804ffff0000",
            "20c0000201",
            "18c63364",
        ];
        let bytes = terms.announcement(&attributes, Routes::V4(&routes));
        let body = parts[4..9].concat().len() / 2;
        assert_eq!(body, 0x26);
        assert_eq!(hex(&bytes[23..]), parts[4..].concat());
        assert_eq!(bytes[16..19], [0, 70, 2]);
        assert_eq!(bytes[19..23], [0, 0, 0, 0x26]);

        let v6 = ["2001:db8:1::5/128".parse().unwrap()];
        let bytes = terms.announcement(&Attributes::default(), Routes::V6(&v6));
        let parts = [
            "40010100",
            "40020602010000fde8",
            "900e0026", // extended length, 38 bytes
            "00020110",
            "20010db8000000000000000000000001",
            "00",
            "8020010db8000100000000000000000005",
        ];
        assert_eq!(hex(&bytes[23..]), parts.concat());
    }

    #[test]
    fn a_two_octet_peer_gets_the_long_asn_beside_the_path() {
        let terms = Terms {
            local_asn: 4_200_000_001,
            is_ebgp: true,
            asn4: false,
            v4: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
            v6: None,
        };
        let bytes = terms.announcement(&Attributes::default(), Routes::V4(&["192.0.2.1/32".parse().unwrap()]));
        let parts = [
            "40010100",
            "40020402015ba0",
            "4003040a000001",
            "c01106020 1fa56ea01",
            "20c0000201",
        ];
        assert_eq!(hex(&bytes[23..]), parts.concat().replace(' ', ""));
    }

    #[test]
    fn the_ends_of_tables_are_these_bytes() {
        assert_eq!(hex(&end_of_table(AddressType::Ipv4Unicast)[16..]), "00170200000000");
        assert_eq!(
            hex(&end_of_table(AddressType::Ipv6Unicast)[16..]),
            "001d0200000006800f03000201"
        );
    }
}
