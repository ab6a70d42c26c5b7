//! What a peer knows after our bytes: every message is decoded whole by netgauze-bgp-pkt, and the rules of the protocol are asserted.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use netgauze_bgp_pkt::{
    BgpMessage,
    path_attribute::{AsPath, MpReach, MpUnreach, PathAttributeValue},
    update::BgpUpdateMessage,
    wire::deserializer::BgpParsingContext,
};
use netgauze_parse_utils::{reader::SliceReader, traits::ParseFromWithOneInput as _};

/// A route as the peer has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) next_hop: Option<IpAddr>,
    pub(crate) path: Vec<u32>,
    pub(crate) med: Option<u32>,
    pub(crate) local_pref: Option<u32>,
    pub(crate) communities: Vec<u32>,
    pub(crate) large_communities: Vec<[u32; 3]>,
}

/// The receiving end of one connection.
#[derive(Debug, Default)]
pub(crate) struct Model {
    buffer: Vec<u8>,
    opened: bool,
    /// Whether everything the session waits for has reached it: OPEN and KEEPALIVE.
    pub(crate) may_update: bool,
    closed: bool,
    pub(crate) routes: BTreeMap<IpNet, Route>,
    pub(crate) ends: usize,
    pub(crate) updates: usize,
    pub(crate) messages: Vec<BgpMessage>,
}

impl Model {
    /// Bytes of ours arrive, in whole messages.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= 19 {
            let length = usize::from(u16::from_be_bytes([self.buffer[16], self.buffer[17]]));
            assert!((19..=4096).contains(&length), "a message of {length} bytes");
            if self.buffer.len() < length {
                return;
            }
            let rest = self.buffer.split_off(length);
            let whole = std::mem::replace(&mut self.buffer, rest);
            let parsed = BgpMessage::parse(&mut SliceReader::new(&whole), &mut BgpParsingContext::default());
            self.message(parsed.unwrap());
        }
    }

    fn message(&mut self, message: BgpMessage) {
        assert!(!self.closed, "nothing after a NOTIFICATION");
        match &message {
            BgpMessage::Open(_) => {
                assert!(!self.opened, "one OPEN");
                self.opened = true;
            }
            BgpMessage::Notification(_) => self.closed = true,
            BgpMessage::KeepAlive => assert!(self.opened),
            BgpMessage::RouteRefresh(_) => assert!(self.may_update),
            BgpMessage::Update(update) => {
                assert!(self.opened && self.may_update, "an UPDATE outside Established");
                self.updates += 1;
                self.update(update);
            }
        }
        self.messages.push(message);
    }

    fn update(&mut self, update: &BgpUpdateMessage) {
        self.ends += usize::from(update.end_of_rib().is_some());
        for route in update.withdraw_routes() {
            self.withdraw(IpNet::V4(route.network().address()));
        }
        let mut route = Route::default();
        let mut nets: Vec<IpNet> = Vec::new();
        for attribute in update.path_attributes() {
            match attribute.value() {
                PathAttributeValue::Origin(_) => {}
                PathAttributeValue::AsPath(AsPath::As4PathSegments(segments)) => {
                    route.path = segments
                        .iter()
                        .flat_map(|segment| segment.as_numbers().to_vec())
                        .collect();
                }
                PathAttributeValue::NextHop(next_hop) => route.next_hop = Some(IpAddr::V4(next_hop.next_hop())),
                PathAttributeValue::MultiExitDiscriminator(med) => route.med = Some(med.metric()),
                PathAttributeValue::LocalPreference(preference) => route.local_pref = Some(preference.metric()),
                PathAttributeValue::Communities(all) => {
                    route.communities = all.communities().iter().map(|one| one.value()).collect();
                }
                PathAttributeValue::LargeCommunities(all) => {
                    let numbers = |one: &netgauze_bgp_pkt::community::LargeCommunity| {
                        [one.global_admin(), one.local_data1(), one.local_data2()]
                    };
                    route.large_communities = all.communities().iter().map(numbers).collect();
                }
                PathAttributeValue::MpReach(MpReach::Ipv6Unicast {
                    next_hop_global, nlri, ..
                }) => {
                    route.next_hop = Some(IpAddr::V6(*next_hop_global));
                    nets.extend(nlri.iter().map(|route| IpNet::V6(route.network().address())));
                }
                PathAttributeValue::MpReach(MpReach::Ipv4Unicast { next_hop, nlri, .. }) => {
                    assert!(next_hop.is_ipv6());
                    route.next_hop = Some(*next_hop);
                    nets.extend(nlri.iter().map(|route| IpNet::V4(route.network().address())));
                }
                PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                    nlri.iter()
                        .for_each(|route| self.withdraw(IpNet::V6(route.network().address())));
                }
                PathAttributeValue::MpUnreach(MpUnreach::Ipv4Unicast { nlri }) => {
                    nlri.iter()
                        .for_each(|route| self.withdraw(IpNet::V4(route.network().address())));
                }
                other => panic!("an attribute that nobody sends: {other:?}"),
            }
        }
        nets.extend(update.nlri().iter().map(|route| IpNet::V4(route.network().address())));
        assert!(nets.is_empty() || route.next_hop.is_some());
        self.routes.extend(nets.into_iter().map(|net| (net, route.clone())));
    }

    fn withdraw(&mut self, net: IpNet) {
        assert!(
            self.routes.remove(&net).is_some(),
            "{net} was withdrawn and never announced"
        );
    }
}
