//! A BgpPeer, and what an Announcement says to it, as a session's configuration.
//!
//! Never trusts them: the API server's rules may be older than this build, or gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use lb_core::{
    bfd::{self, Timers},
    bgp::{Announce, Announces, Attributes, Families, MAX_COMMUNITIES, MAX_PREPEND, PeerConfig},
    config::{BfdConfig, BgpPeer, Password, Reach, not_unicast},
};
use operator_api::{AddressFamily, BgpAnnouncement, BgpPeerSpec};
use thiserror::Error;

/// Longest password, in bytes: what the kernel takes (RFC 2385).
const MAX_PASSWORD_BYTES: usize = 80;

/// Why a BgpPeer or an Announcement is not used as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum PeerError {
    /// Not an ordinary address.
    #[error("{field}: `{text}` is not a unicast address")]
    NotUnicast {
        /// Where.
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// A number out of its range.
    #[error("{field}: {value} is not in {least}..={most}")]
    OutOfRange {
        /// Where.
        field: &'static str,
        /// The value.
        value: u32,
        /// Least that it may be.
        least: u32,
        /// Most.
        most: u32,
    },
    /// An LB node has one AS.
    #[error("localAsn {theirs} is not that of the first peer by name, {ours}: an LB node has one AS")]
    LocalAsn {
        /// Of the first peer.
        ours: u32,
        /// Of this.
        theirs: u32,
    },
    /// Two peers are one.
    #[error("{address} is that of peer {first}")]
    SameAddress {
        /// The address.
        address: IpAddr,
        /// The other.
        first: Arc<str>,
    },
    /// Too many.
    #[error("an LB node has at most {} peers", lb_core::config::MAX_BGP_PEERS)]
    TooMany,
    /// No community.
    #[error("`{text}` is not a community")]
    NotACommunity {
        /// What stands there.
        text: String,
    },
}

/// A peer with what it is told.
pub(super) fn read(
    name: &Arc<str>,
    spec: &BgpPeerSpec,
    announces: Announces,
    passwords: &BTreeMap<String, Arc<[u8]>>,
) -> Result<BgpPeer, PeerError> {
    let address: IpAddr = unicast("address", &spec.address)?;
    for (field, asn) in [("asn", spec.asn), ("localAsn", spec.local_asn)] {
        within(field, asn, 1, u32::MAX)?;
    }
    within("port", spec.port.into(), 1, u16::MAX.into())?;
    within("holdTimeSeconds", spec.hold_time_seconds.into(), 3, u16::MAX.into())?;
    within("connectRetrySeconds", spec.connect_retry_seconds.into(), 1, 3_600)?;
    let is_ebgp = spec.asn != spec.local_asn;
    let hops = spec
        .multihop
        .map(|hops| within("multihop", hops.into(), 1, 255).map(|()| hops));
    let reach = match (spec.ttl_security, hops.transpose()?) {
        (true, hops) => Reach::Secured(hops.unwrap_or(1)),
        // What Linux gives a packet of its own.
        (false, hops) => Reach::Hops(hops.unwrap_or(if is_ebgp { 1 } else { 64 })),
    };
    let password = spec.password_key.as_ref().map(|key| match passwords.get(key) {
        Some(bytes) if (1..=MAX_PASSWORD_BYTES).contains(&bytes.len()) => Password::Given(Arc::clone(bytes)),
        Some(_) | None => Password::Missing,
    });
    let source = spec.source.as_deref().map(|text| unicast::<IpAddr>("source", text));
    let restart = spec.graceful_restart.map(|restart| {
        let seconds = restart.restart_time_seconds;
        within("gracefulRestart.restartTimeSeconds", seconds.into(), 1, 4_095).map(|()| seconds)
    });
    let bfd = spec.bfd.map(|bfd| {
        let interval = |field, milliseconds| within(field, milliseconds, 10, 60_000).map(|()| milliseconds * 1_000);
        within("bfd.multiplier", bfd.multiplier.into(), 1, 50)?;
        let is_near = matches!(reach, Reach::Hops(1) | Reach::Secured(1));
        Ok(BfdConfig {
            timers: Timers {
                min_tx_us: interval("bfd.minTxMilliseconds", bfd.min_tx_milliseconds)?,
                min_rx_us: interval("bfd.minRxMilliseconds", bfd.min_rx_milliseconds)?,
                multiplier: bfd.multiplier,
            },
            reach: if bfd.multihop.unwrap_or(!is_near) {
                bfd::Reach::Multihop
            } else {
                bfd::Reach::SingleHop
            },
        })
    });
    let next_hop_v4 = spec.next_hop_v4.as_deref();
    let next_hop_v6 = spec.next_hop_v6.as_deref();
    Ok(BgpPeer {
        name: Arc::clone(name),
        address,
        port: spec.port,
        password,
        source: source.transpose()?,
        reach,
        session: PeerConfig {
            local_asn: spec.local_asn,
            peer_asn: spec.asn,
            families: Families {
                v4: spec.families.contains(&AddressFamily::IPv4),
                v6: spec.families.contains(&AddressFamily::IPv6),
            },
            hold_s: spec.hold_time_seconds,
            connect_retry_s: spec.connect_retry_seconds,
            passive: spec.passive,
            next_hop_v4: next_hop_v4
                .map(|text| unicast::<Ipv4Addr>("nextHopV4", text))
                .transpose()?,
            next_hop_v6: next_hop_v6
                .map(|text| unicast::<Ipv6Addr>("nextHopV6", text))
                .transpose()?,
            restart_time_s: restart.transpose()?,
        },
        announces,
        bfd: bfd.transpose()?,
    })
}

/// What a peer is told by an Announcement. Preferences are for peers of the same AS, prepending for those of others.
pub(super) fn announce(spec: &BgpAnnouncement, is_ebgp: bool) -> Result<Announce, PeerError> {
    within("aggregationLengthV4", spec.aggregation_length_v4.into(), 1, 32)?;
    within("aggregationLengthV6", spec.aggregation_length_v6.into(), 1, 128)?;
    within("prepend", spec.prepend.into(), 0, MAX_PREPEND.into())?;
    Ok(Announce {
        length_v4: spec.aggregation_length_v4,
        length_v6: spec.aggregation_length_v6,
        attributes: Attributes {
            local_pref: spec.local_pref.filter(|_| !is_ebgp),
            med: spec.med,
            prepend: if is_ebgp { spec.prepend } else { 0 },
            communities: communities(&spec.communities)?,
            large_communities: communities(&spec.large_communities)?,
        },
    })
}

fn communities<T: FromStr + Ord>(texts: &[String]) -> Result<BTreeSet<T>, PeerError> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|_| PeerError::NotACommunity { text: text.clone() })
    };
    texts.iter().take(MAX_COMMUNITIES).map(parse).collect()
}

fn unicast<T: FromStr + Copy + Into<IpAddr>>(field: &'static str, text: &str) -> Result<T, PeerError> {
    let address = text
        .parse()
        .ok()
        .filter(|address: &T| not_unicast((*address).into()).is_none());
    address.ok_or_else(|| PeerError::NotUnicast {
        field,
        text: text.to_owned(),
    })
}

fn within(field: &'static str, value: u32, least: u32, most: u32) -> Result<(), PeerError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(PeerError::OutOfRange {
        field,
        value,
        least,
        most,
    })
}
