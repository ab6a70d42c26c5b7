//! Who asks for a VIP address by ARP or neighbour discovery gets to the slow path, and so does what comes behind more VLAN tags than
//! two; everything else of the kind passes as it came.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::Result;
use xdp_prog::{
    abi::{VipMeta, feature},
    verdict::Verdict,
};

use super::slow_path::socket;
use crate::support::{
    bed::Bed,
    frames::{DOT1AD, DOT1Q, Packet, TCP, Tag, arp, neighbour_message, solicitation},
    kernel::Kernel,
    site::{CLIENT_V4, CLIENT_V6, LOOPBACK, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

const OWN_V4: &str = "192.0.2.99";
const OWN_V6: &str = "2001:db8:1::99";
const ELSEWHERE_V4: &str = "192.0.2.7";
const ELSEWHERE_V6: &str = "2001:db8:1::7";
const ASKER_V4: &str = "192.0.2.1";
const ASKER_V6: &str = "fe80::1";
const TAGS: [&[Tag]; 3] = [&[], &[(DOT1Q, 3)], &[(DOT1AD, 3), (DOT1Q, 4)]];

fn tables(features: u64) -> Tables {
    let mut tables = Tables::new(features);
    let backend = tables.backend(Way::v4(1).line());
    for address in [VIP_V4, VIP_V6, OWN_V4, OWN_V6] {
        tables.vip(address, TCP, 80, &[backend]);
    }
    tables.address(OWN_V4, VipMeta::OWN_ADDRESS);
    tables.address(OWN_V6, VipMeta::OWN_ADDRESS);
    tables
}

/// A balancer whose slow path has a socket; never closed before the end.
fn bed() -> Result<(Bed, OwnedFd)> {
    let socket = socket()?;
    let bed = Bed::balancer(tables(feature::SLOW_PATH))?;
    let Kernel::Balancer(balancer) = &bed.kernel else {
        panic!("a balancer")
    };
    let mut sockets = balancer.sockets.lock().expect("nobody panicked");
    sockets.set(LOOPBACK, 0, socket.as_raw_fd())?;
    drop(sockets);
    Ok((bed, socket))
}

/// The frame goes to the slow path, with the reason in eight bytes in front.
fn to_slow_path(bed: &mut Bed, what: &str, frame: &[u8], verdict: Verdict) -> Result<()> {
    let expected = [&(verdict as u64).to_le_bytes(), frame].concat();
    bed.becomes(what, frame, verdict, None, &expected).map(drop)
}

/// The solicited-node multicast address (RFC 4291, 2.7.1) of an address that ends in `::80`, and so on: written out by hand.
const SOLICITED_NODE_OF_VIP: &str = "ff02::1:ff00:80";

#[test]
fn arp_requests_for_a_vip_address_go_to_the_slow_path() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (mut bed, _socket) = bed()?;
    for tags in TAGS {
        for (what, sender) in [("a request", ASKER_V4), ("gratuitous", VIP_V4), ("a probe", "0.0.0.0")] {
            let frame = arp(tags, 1, sender, VIP_V4);
            to_slow_path(&mut bed, what, &frame, Verdict::SlowNeighbour)?;
        }
    }
    Ok(())
}

#[test]
fn other_arp_passes() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (mut bed, _socket) = bed()?;
    for tags in TAGS {
        let request = arp(tags, 1, ASKER_V4, VIP_V4);
        bed.unchanged("for another", &arp(tags, 1, ASKER_V4, ELSEWHERE_V4), Verdict::PassNotIp)?;
        bed.unchanged(
            "by a VIP address",
            &arp(tags, 1, VIP_V4, ELSEWHERE_V4),
            Verdict::PassNotIp,
        )?;
        bed.unchanged("for the node", &arp(tags, 1, ASKER_V4, OWN_V4), Verdict::PassNotIp)?;
        for operation in [0, 2, 3, 8, 0x0101] {
            let reply = arp(tags, operation, ASKER_V4, VIP_V4);
            bed.unchanged("no request", &reply, Verdict::PassNotIp)?;
        }
        // Hardware, protocol, and the two lengths.
        for byte in [0, 1, 2, 3, 4, 5] {
            let mut frame = request.clone();
            frame[14 + 4 * tags.len() + byte] ^= 0x10;
            bed.unchanged("not for IPv4 over Ethernet", &frame, Verdict::PassNotIp)?;
        }
        let head = 14 + 4 * tags.len();
        for len in [0, 1, 8, 24, 27] {
            bed.unchanged("cut short", &request[..head + len], Verdict::PassNotIp)?;
        }
        to_slow_path(
            &mut bed,
            "without padding",
            &request[..head + 28],
            Verdict::SlowNeighbour,
        )?;
    }
    Ok(())
}

#[test]
fn solicitations_for_a_vip_address_go_to_the_slow_path() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (mut bed, _socket) = bed()?;
    for tags in TAGS {
        for (what, source, destination) in [
            ("resolution", ASKER_V6, SOLICITED_NODE_OF_VIP),
            ("unreachability detection", ASKER_V6, VIP_V6),
            ("duplicate address detection", "::", SOLICITED_NODE_OF_VIP),
        ] {
            let frame = solicitation(tags, source, destination, VIP_V6);
            to_slow_path(&mut bed, what, &frame, Verdict::SlowNeighbour)?;
        }
        let frame = solicitation(tags, ASKER_V6, SOLICITED_NODE_OF_VIP, VIP_V6);
        let shortest = 14 + 4 * tags.len() + 40 + 24;
        to_slow_path(&mut bed, "without options", &frame[..shortest], Verdict::SlowNeighbour)?;
        bed.unchanged("cut short", &frame[..shortest - 1], Verdict::PassNotVip)?;
    }
    Ok(())
}

#[test]
fn other_neighbour_discovery_passes_or_is_icmp() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (mut bed, _socket) = bed()?;
    for tags in TAGS {
        for (what, kind, destination, target, verdict) in [
            ("for another", 135, "ff02::1:ff00:7", ELSEWHERE_V6, Verdict::PassNotVip),
            ("for the node", 135, "ff02::1:ff00:99", OWN_V6, Verdict::PassNotVip),
            ("of the node", 135, OWN_V6, OWN_V6, Verdict::PassOwnAddress),
            ("to all nodes", 135, "ff02::1", VIP_V6, Verdict::PassNotVip),
            ("to all routers", 135, "ff02::2", VIP_V6, Verdict::PassNotVip),
            (
                "next to the prefix",
                135,
                "ff02::1:fe00:80",
                VIP_V6,
                Verdict::PassNotVip,
            ),
            ("next to the scope", 135, "ff05::1:ff00:80", VIP_V6, Verdict::PassNotVip),
            ("an announcement", 136, "ff02::1", VIP_V6, Verdict::PassNotVip),
            (
                "an announcement to it",
                136,
                SOLICITED_NODE_OF_VIP,
                VIP_V6,
                Verdict::PassNotVip,
            ),
            ("a report", 143, "ff02::16", VIP_V6, Verdict::PassNotVip),
        ] {
            let frame = neighbour_message(tags, kind, ASKER_V6, destination, target);
            bed.unchanged(what, &frame, verdict)?;
        }
        for (what, kind, target) in [
            ("an announcement", 136, VIP_V6),
            ("for another, sent to a VIP address", 135, ELSEWHERE_V6),
        ] {
            let frame = neighbour_message(tags, kind, ASKER_V6, VIP_V6, target);
            to_slow_path(&mut bed, what, &frame, Verdict::SlowIcmp)?;
        }
    }
    Ok(())
}

#[test]
fn three_and_four_tags_go_to_the_slow_path_for_a_vip_address_only() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (mut bed, _socket) = bed()?;
    let five = [(DOT1AD, 1), (DOT1AD, 2), (DOT1Q, 3), (DOT1Q, 4), (DOT1Q, 5)];
    for count in [3, 4] {
        let tags = &five[..count];
        for (client, vip, own, elsewhere) in [
            (CLIENT_V4, VIP_V4, OWN_V4, "203.0.113.5"),
            (CLIENT_V6, VIP_V6, OWN_V6, ELSEWHERE_V6),
        ] {
            // Also a port that nobody serves.
            for port in [80, 9] {
                let frame = |to| Packet::tcp(client, &at(to, port)).tagged(tags).frame();
                to_slow_path(&mut bed, "a VIP address", &frame(vip), Verdict::SlowVlanTags)?;
                bed.unchanged("the node", &frame(own), Verdict::PassNotIp)?;
                bed.unchanged("someone else", &frame(elsewhere), Verdict::PassNotIp)?;
            }
        }
        bed.unchanged("ARP", &arp(tags, 1, ASKER_V4, VIP_V4), Verdict::PassNotIp)?;
        let asks = solicitation(tags, ASKER_V6, SOLICITED_NODE_OF_VIP, VIP_V6);
        bed.unchanged("a solicitation", &asks, Verdict::PassNotIp)?;
        let frame = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)).tagged(tags).frame();
        let l3 = 14 + 4 * count;
        bed.unchanged("cut in the header", &frame[..l3 + 19], Verdict::PassUnparsed)?;
        bed.unchanged("cut in the tags", &frame[..l3 - 1], Verdict::PassNotIp)?;
    }
    let packet = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)).tagged(&five);
    bed.unchanged("five tags", &packet.frame(), Verdict::PassNotIp)?;
    Ok(())
}

/// The twin: without the feature none of it is looked at.
#[test]
fn without_the_slow_path_they_pass() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables(0))?;
    bed.unchanged("ARP", &arp(&[], 1, ASKER_V4, VIP_V4), Verdict::PassNotIp)?;
    let asks = solicitation(&[], ASKER_V6, SOLICITED_NODE_OF_VIP, VIP_V6);
    bed.unchanged("a solicitation", &asks, Verdict::PassNotVip)?;
    let tags = [(DOT1AD, 1), (DOT1Q, 2), (DOT1Q, 3)];
    let packet = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)).tagged(&tags);
    bed.unchanged("three tags", &packet.frame(), Verdict::PassNotIp)?;
    Ok(())
}
