//! Messages as bytes: what we write is what the kernel's headers say, what we read is never trusted.

use std::net::IpAddr;

use lb_core::nexthop::{Event, Keeper, Link, NeighbourState, RouteAnswer, RouteRefusal, Vlan};

use super::{
    decode,
    wire::{Message, Request, attributes, messages},
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A datagram from words of the machine's byte order and strings of bytes.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u16(self, value: u16) -> Self {
        self.raw(&value.to_ne_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_ne_bytes())
    }

    fn attribute(self, kind: u16, value: &[u8]) -> Self {
        let padding = value.len().next_multiple_of(4) - value.len();
        self.u16(u16::try_from(4 + value.len()).unwrap())
            .u16(kind)
            .raw(value)
            .raw(&[0; 3][..padding])
    }

    fn event(&self, kind: u16) -> Option<Event> {
        decode::event(self.message(kind))
    }

    fn answer(&self, kind: u16) -> Option<RouteAnswer> {
        decode::answer(self.message(kind))
    }

    fn message(&self, kind: u16) -> Message<'_> {
        Message {
            kind,
            flags: 0,
            sequence: 0,
            payload: &self.0,
        }
    }
}

/// An RTM_NEWLINK of an Ethernet interface, index 7, up and running.
fn link(family: u8) -> Bytes {
    let header = Bytes::default().raw(&[family, 0]).u16(1).u32(7).u32(0x1 | 0x40).u32(0);
    header
        .attribute(3, b"eth0\0")
        .attribute(1, &[2, 0, 0, 0, 0, 1])
        .attribute(4, &1500_u32.to_ne_bytes())
}

/// An RTM_NEWNEIGH of 10.0.0.2 on interface 7.
fn neighbour(family: u8, state: u16, flags: u8) -> Bytes {
    let header = Bytes::default()
        .raw(&[family, 0, 0, 0])
        .u32(7)
        .u16(state)
        .raw(&[flags, 1]);
    header.attribute(1, &[10, 0, 0, 2]).attribute(2, &[2, 0, 0, 0, 0, 2])
}

/// An RTM_NEWROUTE of 192.0.2.0/24.
fn route(kind: u8, flags: u32) -> Bytes {
    let header = Bytes::default().raw(&[2, 24, 0, 0, 254, 3, 0, kind]).u32(flags);
    header.attribute(1, &[192, 0, 2, 0])
}

#[test]
fn requests_are_framed_and_padded() {
    let mut request = Request::default();
    request.add_route_lookup(5, ip("192.0.2.1"), None);
    request.add_keep(6, 7, ip("2001:db8::2"), true);
    let sent: Vec<_> = messages(request.bytes())
        .map(|m| (m.kind, m.flags, m.sequence, m.payload.len()))
        .collect();
    // RTM_GETROUTE: NLM_F_REQUEST. RTM_NEWNEIGH: NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE.
    assert_eq!(sent, [(26, 0x1, 5, 12 + 8), (28, 0x605, 6, 12 + 20 + 5 + 3 + 8)]);
    let keep = messages(request.bytes()).nth(1).unwrap().payload;
    // NUD_NONE, NTF_USE | NTF_EXT_LEARNED.
    assert_eq!(
        keep[..12],
        *Bytes::default().raw(&[10, 0, 0, 0]).u32(7).u16(0).raw(&[0x11, 0]).0
    );
    let kinds: Vec<_> = attributes(&keep[12..])
        .map(|(kind, value)| (kind, value.len()))
        .collect();
    assert_eq!(kinds, [(1, 16), (12, 1), (15, 4)]);
}

#[test]
fn link_is_read_and_bridge_ports_are_not_links() {
    let expected = Link {
        ifindex: 7,
        name: "eth0".into(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        up: true,
        vlan: None,
    };
    assert_eq!(link(0).event(16), Some(Event::Link(expected)));
    assert_eq!(link(0).event(17), Some(Event::LinkGone(7)));
    assert_eq!(link(7).event(17), None, "AF_BRIDGE: a port left its bridge");
}

#[test]
fn vlan_device_is_read() {
    let data = Bytes::default()
        .attribute(1, &100_u16.to_ne_bytes())
        .attribute(5, &[0x88, 0xa8]);
    let info = Bytes::default().attribute(1, b"vlan\0").attribute(2, &data.0);
    let here = link(0).attribute(5, &3_u32.to_ne_bytes()).attribute(18, &info.0);
    let vlan = |message: &Bytes| match message.event(16) {
        Some(Event::Link(link)) => link.vlan,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        vlan(&here),
        Some(Vlan {
            parent: 3,
            id: 100,
            ad: true
        })
    );
    let elsewhere = here.attribute(37, &1_u32.to_ne_bytes());
    assert_eq!(vlan(&elsewhere), None, "the interface below is in another namespace");
}

#[test]
fn neighbours_are_read_with_who_keeps_them() {
    let protocol = |number| Bytes::default().attribute(12, &[number]).0;
    let managed = Bytes::default().attribute(15, &1_u32.to_ne_bytes()).0;
    for (flags, attributes, expected) in [
        (0, vec![], Keeper::Nobody),
        (0x10, [protocol(b'v'), managed.clone()].concat(), Keeper::Us),
        (0x10, [protocol(186), managed.clone()].concat(), Keeper::Other),
        (0, managed, Keeper::Other),
        (0x10, vec![], Keeper::Other),
        (0x10, protocol(b'v'), Keeper::Nobody),
        (0, protocol(b'v'), Keeper::Nobody),
    ] {
        let Some(Event::Neighbour(seen)) = neighbour(2, 0x04, flags).raw(&attributes).event(28) else {
            panic!()
        };
        assert_eq!(
            (seen.ifindex, seen.address, seen.state),
            (7, ip("10.0.0.2"), NeighbourState::Stale)
        );
        assert_eq!((seen.mac, seen.keeper), (Some([2, 0, 0, 0, 0, 2]), expected));
    }
    assert_eq!(neighbour(7, 0x02, 0).event(28), None, "a bridge's forwarding table");
    assert_eq!(
        neighbour(2, 0x02, 0).event(29),
        Some(Event::NeighbourGone(7, ip("10.0.0.2")))
    );
}

#[test]
fn route_changes_carry_their_prefix() {
    let all = Bytes::default().raw(&[10, 0, 0, 0, 254, 3, 0, 1]).u32(0);
    assert_eq!(
        route(1, 0).event(25),
        Some(Event::RoutesChanged(Some("192.0.2.0/24".parse().unwrap())))
    );
    assert_eq!(all.event(24), Some(Event::RoutesChanged(Some("::/0".parse().unwrap()))));
    assert_eq!(route(1, 0x200).event(24), None, "an entry of a cache");
    assert_eq!(Bytes::default().event(32), Some(Event::RoutesChanged(None)), "a rule");
}

#[test]
fn route_answers_are_read() {
    let oif = 7_u32.to_ne_bytes();
    let metrics = Bytes::default().attribute(2, &1400_u32.to_ne_bytes()).0;
    let unicast = RouteAnswer::Unicast {
        ifindex: 7,
        gateway: Some(ip("10.0.0.2")),
        source: Some(ip("10.0.0.1")),
        mtu: Some(1400),
    };
    let message = route(1, 0)
        .attribute(4, &oif)
        .attribute(5, &[10, 0, 0, 2])
        .attribute(7, &[10, 0, 0, 1]);
    assert_eq!(message.attribute(8, &metrics).answer(24), Some(unicast));
    let via = Bytes::default()
        .u16(10)
        .raw(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    let Some(RouteAnswer::Unicast { gateway, .. }) = route(1, 0).attribute(4, &oif).attribute(18, &via.0).answer(24)
    else {
        panic!()
    };
    assert_eq!(gateway, Some(ip("fe80::2")), "an IPv6 gateway of an IPv4 route");
    assert_eq!(route(2, 0).answer(24), Some(RouteAnswer::Local));
    assert_eq!(
        route(3, 0).answer(24),
        Some(RouteAnswer::Refused(RouteRefusal::NotUnicast))
    );
    let tunnelled = route(1, 0).attribute(4, &oif).attribute(21, &2_u16.to_ne_bytes());
    assert_eq!(
        tunnelled.answer(24),
        Some(RouteAnswer::Refused(RouteRefusal::Encapsulated))
    );
}

#[test]
fn errors_of_a_lookup_are_reasons() {
    for (errno, reason) in [
        (101, RouteRefusal::NoRoute),
        (113, RouteRefusal::Unreachable),
        (22, RouteRefusal::Blackhole),
        (13, RouteRefusal::Prohibited),
        (12, RouteRefusal::Failed(12)),
    ] {
        let error = Bytes::default().raw(&i32::to_ne_bytes(-errno)).raw(&[0; 16]);
        assert_eq!(error.answer(2), Some(RouteAnswer::Refused(reason)));
    }
}

#[test]
fn broken_messages_are_read_as_far_as_they_go_and_never_panic() {
    let wholes = [
        (16, link(0)),
        (20, link(0)),
        (28, neighbour(2, 2, 0)),
        (24, route(1, 0)),
        (2, route(1, 0)),
    ];
    for (kind, Bytes(bytes)) in wholes {
        for length in 0..=bytes.len() {
            for at in 0..length {
                for value in [0, 1, 3, 0x7f, 0xff] {
                    let mut broken = bytes[..length].to_vec();
                    broken[at] = value;
                    messages(&broken).for_each(drop);
                    attributes(&broken).for_each(drop);
                    let broken = Bytes(broken);
                    drop((broken.event(kind), broken.answer(kind)));
                }
            }
        }
    }
}
