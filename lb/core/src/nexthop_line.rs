//! From a next hop to the line that the program reads.
//!
//! Never resolves anything and never decides when a line may be written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xdp_prog::abi::{BackendLine, LineMeta, OuterHeader};
use zerocopy::IntoBytes as _;

use crate::desired::{NextHop, Via, VlanTags};

/// The line of a backend at `address` that stood at `current` so far. While a backend is unresolved or this node, packets read no
/// word but the first. The others stay as they are, or come to name the backend's address: a line says whose it is
/// ([`address_of`]).
pub fn line(current: &BackendLine, address: IpAddr, hop: &NextHop) -> BackendLine {
    match hop {
        NextHop::Unresolved => unused(current, address, 0),
        NextHop::Local => unused(current, address, LineMeta::LOCAL),
        NextHop::Via(via) => line_via(address, via).unwrap_or_else(|| unused(current, address, 0)),
    }
}

fn unused(current: &BackendLine, address: IpAddr, meta: u64) -> BackendLine {
    let outer = match address {
        _ if address_of(current) == Some(address) => OuterHeader(current.outer),
        IpAddr::V4(address) => OuterHeader::v4(Ipv4Addr::UNSPECIFIED, address),
        IpAddr::V6(address) => OuterHeader::v6(Ipv6Addr::UNSPECIFIED, address),
    };
    BackendLine {
        meta,
        outer: outer.0,
        ..*current
    }
}

/// The backend's address that a line names, whatever else it says; `None` where it names none.
pub fn address_of(line: &BackendLine) -> Option<IpAddr> {
    const V4: u8 = 0x45;
    const V6: u8 = 0x60;
    let header = line.outer.as_bytes();
    match header.first() {
        Some(&V4) => Some(<[u8; 4]>::try_from(header.get(16..20)?).ok()?.into()),
        Some(&V6) => Some(<[u8; 16]>::try_from(header.get(24..40)?).ok()?.into()),
        Some(_) | None => None,
    }
}

/// The line of a backend at `address` that is reached `via`; `None` if the outer source is of the other family, with which no
/// header can be made.
pub fn line_via(address: IpAddr, via: &Via) -> Option<BackendLine> {
    let (outer, family) = match (via.source, address) {
        (IpAddr::V4(source), IpAddr::V4(address)) => (OuterHeader::v4(source, address), 0),
        (IpAddr::V6(source), IpAddr::V6(address)) => (OuterHeader::v6(source, address), LineMeta::OUTER_V6),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    let (tag_flags, tags, outer_tci, inner_tci) = match via.tags {
        None => (0, 0, 0, 0),
        Some(VlanTags::Untagged) => (LineMeta::OWN_TAGS, 0, 0, 0),
        Some(VlanTags::One(tci)) => (LineMeta::OWN_TAGS, 1, tci, 0),
        Some(VlanTags::Two {
            outer,
            inner,
            ad: false,
        }) => (LineMeta::OWN_TAGS, 2, outer, inner),
        Some(VlanTags::Two { outer, inner, ad: true }) => {
            (LineMeta::OWN_TAGS | LineMeta::OUTER_TAG_8021AD, 2, outer, inner)
        }
    };
    let flags = LineMeta::RESOLVED | family | tag_flags;
    Some(BackendLine {
        meta: LineMeta::new(flags, tags, via.port, via.mtu, via.ifindex).0,
        destination_mac: BackendLine::mac_word(via.destination_mac, outer_tci),
        source_mac: BackendLine::mac_word(via.source_mac, inner_tci),
        outer: outer.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via() -> Via {
        Via {
            ifindex: 3,
            port: 1,
            destination_mac: [2, 0, 0, 0, 0, 1],
            source_mac: [2, 0, 0, 0, 0, 2],
            source: "192.0.2.1".parse().unwrap(),
            mtu: 1500,
            tags: None,
        }
    }

    #[test]
    fn a_resolved_hop_says_all_that_the_program_needs() {
        let line = line_via("192.0.2.9".parse().unwrap(), &via()).unwrap();
        let meta = LineMeta(line.meta);
        assert!(meta.has(LineMeta::RESOLVED) && !meta.has(LineMeta::OUTER_V6) && !meta.has(LineMeta::OWN_TAGS));
        assert_eq!((meta.port(), meta.mtu(), meta.ifindex()), (1, 1500, 3));
        assert_eq!(line.destination_mac.to_ne_bytes(), [2, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(
            line.outer,
            OuterHeader::v4("192.0.2.1".parse().unwrap(), "192.0.2.9".parse().unwrap()).0
        );
    }

    #[test]
    fn tags_stand_beside_the_mac_addresses() {
        let tags = Some(VlanTags::Two {
            outer: 0x0123,
            inner: 0x0456,
            ad: true,
        });
        let line = line_via("192.0.2.9".parse().unwrap(), &Via { tags, ..via() }).unwrap();
        let meta = LineMeta(line.meta);
        assert_eq!(
            (
                meta.tags(),
                meta.has(LineMeta::OWN_TAGS),
                meta.has(LineMeta::OUTER_TAG_8021AD)
            ),
            (2, true, true)
        );
        assert_eq!(line.destination_mac.to_ne_bytes()[6..], [0x01, 0x23]);
        assert_eq!(line.source_mac.to_ne_bytes()[6..], [0x04, 0x56]);
    }

    #[test]
    fn a_source_of_the_other_family_leaves_the_backend_unresolved() {
        let current = line_via("192.0.2.9".parse().unwrap(), &via()).unwrap();
        let address: IpAddr = "2001:db8::9".parse().unwrap();
        let after = line(&current, address, &NextHop::Via(via()));
        assert_eq!(address_of(&after), Some(address));
        let outer = after.outer;
        assert_eq!(
            after,
            BackendLine {
                meta: 0,
                outer,
                ..current
            }
        );
    }

    #[test]
    fn a_line_names_its_backend_also_while_it_cannot_be_reached() {
        let nothing = BackendLine::default();
        assert_eq!(address_of(&nothing), None);
        for text in ["192.0.2.9", "2001:db8::9"] {
            let address: IpAddr = text.parse().unwrap();
            for hop in [NextHop::Unresolved, NextHop::Local] {
                let named = line(&nothing, address, &hop);
                assert_eq!(address_of(&named), Some(address));
                assert!(!LineMeta(named.meta).has(LineMeta::RESOLVED));
            }
        }
        let resolved = line_via("192.0.2.9".parse().unwrap(), &via()).unwrap();
        assert_eq!(address_of(&resolved), Some("192.0.2.9".parse().unwrap()));
    }

    #[test]
    fn what_is_not_read_stays_as_it_is() {
        let current = line_via("192.0.2.9".parse().unwrap(), &via()).unwrap();
        let local = line(&current, "192.0.2.9".parse().unwrap(), &NextHop::Local);
        assert_eq!(
            local,
            BackendLine {
                meta: LineMeta::LOCAL,
                ..current
            }
        );
    }
}
