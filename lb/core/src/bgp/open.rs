//! The peer's OPEN, and what two of them agree on (RFC 4271 4.2, 6.2; RFC 5492, RFC 9072).
//!
//! Never refuses a peer for a capability that it offers: those that are unknown or malformed are as if they were not there.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use netgauze_bgp_pkt::capabilities::BgpCapability;
use netgauze_iana::address_family::{AddressFamily, AddressType};
use netgauze_parse_utils::{error::ParseError, reader::SliceReader, traits::ParseFrom as _};

use super::{
    Families, LocalAddresses, Notification, PeerConfig, SessionError,
    connection::Fault,
    message::{AS_TRANS, Terms},
};

/// What a peer's OPEN says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Open {
    asn: u32,
    hold_s: u16,
    router_id: Ipv4Addr,
    asn4: bool,
    /// IPv4 alone where the peer knows no families (RFC 4760 8).
    families: Families,
    extended_next_hop: bool,
    route_refresh: bool,
    enhanced_refresh: bool,
    graceful_restart: bool,
}

/// What holds on an established session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) peer_asn: u32,
    pub(super) peer_id: Ipv4Addr,
    /// Zero: no keepalives, and nobody is ever gone.
    pub(super) hold: Duration,
    pub(super) families: Families,
    pub(super) route_refresh: bool,
    pub(super) enhanced_refresh: bool,
    /// Whether the peer keeps routes when it restarts, and a new connection of it means that it did (RFC 4724 4.2).
    pub(super) peer_restarts: bool,
    pub(super) terms: Terms,
}

impl Open {
    /// A message's body.
    pub(super) fn read(body: &[u8]) -> Result<Self, Notification> {
        // Its parameters' lengths are wrong: "recognized, but malformed" (RFC 4271 6.2).
        Self::read_all(&mut SliceReader::new(body)).unwrap_or_else(|_| Err(Notification::bare(2, 0)))
    }

    fn read_all(body: &mut SliceReader<'_>) -> Result<Result<Self, Notification>, ParseError> {
        if body.read_u8()? != 4 {
            return Ok(Err(Notification::new(2, 1, [0, 4])));
        }
        let short_asn = body.read_u16_be()?;
        let hold_s = body.read_u16_be()?;
        if matches!(hold_s, 1 | 2) {
            return Ok(Err(Notification::new(2, 6, hold_s.to_be_bytes())));
        }
        let router_id = Ipv4Addr::from(body.read_u32_be()?);
        // RFC 6286 2.1.
        if router_id.is_unspecified() {
            return Ok(Err(Notification::new(2, 3, router_id.octets())));
        }
        let mut open = Self {
            asn: u32::from(short_asn),
            hold_s,
            router_id,
            asn4: false,
            families: Families { v4: false, v6: false },
            extended_next_hop: false,
            route_refresh: false,
            enhanced_refresh: false,
            graceful_restart: false,
        };
        let mut knows_families = false;
        let mut length = usize::from(body.read_u8()?);
        let is_extended = length == 255 && body.peek_u8().is_ok_and(|kind| kind == 255);
        if is_extended {
            let _ = body.read_u8()?;
            length = usize::from(body.read_u16_be()?);
        }
        let mut parameters = body.take_slice(length)?;
        if !body.is_empty() {
            return Ok(Err(Notification::bare(2, 0)));
        }
        while !parameters.is_empty() {
            let kind = parameters.read_u8()?;
            let length = if is_extended {
                usize::from(parameters.read_u16_be()?)
            } else {
                usize::from(parameters.read_u8()?)
            };
            let mut parameter = parameters.take_slice(length)?;
            if kind != 2 {
                return Ok(Err(Notification::new(2, 4, [kind])));
            }
            while !parameter.is_empty() {
                let whole = parameter.as_slice();
                let _code = parameter.read_u8()?;
                let length = usize::from(parameter.read_u8()?);
                parameter.read_bytes(length)?;
                let mut alone = SliceReader::new(whole.get(..2 + length).unwrap_or_default());
                if let Ok(capability) = BgpCapability::parse(&mut alone) {
                    knows_families |= open.take(&capability);
                }
            }
        }
        if !knows_families {
            open.families.v4 = true;
        }
        Ok(Ok(open))
    }

    /// Takes a capability note; says whether it is one of families.
    fn take(&mut self, capability: &BgpCapability) -> bool {
        match capability {
            BgpCapability::MultiProtocolExtensions(families) => {
                self.families.v4 |= families.address_type() == AddressType::Ipv4Unicast;
                self.families.v6 |= families.address_type() == AddressType::Ipv6Unicast;
                return true;
            }
            BgpCapability::RouteRefresh => self.route_refresh = true,
            BgpCapability::EnhancedRouteRefresh => self.enhanced_refresh = true,
            BgpCapability::GracefulRestartCapability(_) => self.graceful_restart = true,
            BgpCapability::FourOctetAs(long) => {
                self.asn4 = true;
                self.asn = long.asn4();
            }
            BgpCapability::ExtendedNextHopEncoding(encodings) => {
                self.extended_next_hop |= encodings.encodings().iter().any(|encoding| {
                    encoding.address_type() == AddressType::Ipv4Unicast
                        && encoding.next_hop_afi() == AddressFamily::IPv6
                });
            }
            BgpCapability::CiscoRouteRefresh
            | BgpCapability::LongLivedGracefulRestart(_)
            | BgpCapability::Fqdn(_)
            | BgpCapability::AddPath(_)
            | BgpCapability::ExtendedMessage
            | BgpCapability::MultipleLabels(_)
            | BgpCapability::BgpRole(_)
            | BgpCapability::Experimental(_)
            | BgpCapability::Unrecognized(_) => {}
        }
        false
    }

    /// The peer's identifier.
    pub(super) const fn router_id(&self) -> Ipv4Addr {
        self.router_id
    }

    /// What holds on the session, if there can be one.
    pub(super) fn agree(
        &self,
        config: &PeerConfig,
        our_id: Ipv4Addr,
        local: LocalAddresses,
        over_v6: bool,
    ) -> Result<Agreed, Fault> {
        if self.asn != config.peer_asn {
            let short = u16::try_from(self.asn).unwrap_or(AS_TRANS);
            return Err(Fault {
                notification: Some(Notification::new(2, 2, short.to_be_bytes())),
                error: SessionError::WrongAsn {
                    expected: config.peer_asn,
                    found: self.asn,
                },
            });
        }
        if self.router_id == our_id && !config.is_ebgp() {
            return Err(Fault {
                notification: Some(Notification::new(2, 3, self.router_id.octets())),
                error: SessionError::SameIdentifier { router_id: our_id },
            });
        }
        let families = Families {
            v4: config.families.v4 && self.families.v4,
            v6: config.families.v6 && self.families.v6,
        };
        if !families.v4 && !families.v6 {
            let afi = if config.families.v4 { 1 } else { 2 };
            return Err(Fault {
                notification: Some(Notification::new(2, 7, [1, 4, 0, afi, 0, 1])),
                error: SessionError::NoCommonFamily,
            });
        }
        let extended = self.extended_next_hop && over_v6;
        let v6 = config.next_hop_v6.or(local.v6);
        let v4 = match (config.next_hop_v4, v6) {
            (Some(next_hop), _) => Some(IpAddr::V4(next_hop)),
            (None, Some(next_hop)) if extended => Some(IpAddr::V6(next_hop)),
            (None, _) => local.v4.map(IpAddr::V4),
        };
        let terms = Terms {
            local_asn: config.local_asn,
            is_ebgp: config.is_ebgp(),
            asn4: self.asn4,
            v4: v4.filter(|_| families.v4),
            v6: v6.filter(|_| families.v6),
        };
        Ok(Agreed {
            peer_asn: self.asn,
            peer_id: self.router_id,
            hold: Duration::from_secs(u64::from(config.hold_s.min(self.hold_s))),
            families,
            route_refresh: self.route_refresh,
            enhanced_refresh: self.enhanced_refresh,
            peer_restarts: self.graceful_restart,
            terms,
        })
    }
}
