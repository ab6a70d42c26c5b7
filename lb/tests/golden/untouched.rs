//! What is not for a VIP passes as it came; what is for a VIP address and not the fast path's work gets its own verdict.

use anyhow::Result;
use xdp_prog::{abi::VipMeta, verdict::Verdict};

use crate::support::{
    bed::{Bed, Sent},
    frames::{
        DOT1AD, DOT1Q, LB_MAC, Packet, ROUTER_MAC, SYN, TCP, UDP, checksummed, edited, framed, framed_as, ip_header,
    },
    site::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

/// A VIP address of which the node is a user too.
const OWN_V4: &str = "192.0.2.99";
const OWN_V6: &str = "2001:db8:1::99";
const ELSEWHERE_V4: &str = "203.0.113.5";
const ELSEWHERE_V6: &str = "2001:db8:9::5";

/// VIPs on TCP 80 and UDP 53 of an address of each family, shared with the node or not.
fn tables() -> Tables {
    let mut tables = Tables::new(0);
    let backend = tables.backend(Way::v4(1).line());
    for address in [VIP_V4, VIP_V6, OWN_V4, OWN_V6] {
        tables.vip(address, TCP, 80, &[backend]);
        tables.vip(address, UDP, 53, &[backend]);
    }
    tables.address(OWN_V4, VipMeta::OWN_ADDRESS);
    tables.address(OWN_V6, VipMeta::OWN_ADDRESS);
    tables
}

/// The same frame to a VIP address, to one that the node uses too, and to someone else.
fn to_each_v4(bed: &mut Bed, what: &str, verdict: Verdict, frame: impl Fn(&str) -> Vec<u8>) -> Result<()> {
    bed.unchanged(&format!("{what} to a VIP"), &frame(VIP_V4), verdict)?;
    bed.unchanged(&format!("{what} to the node"), &frame(OWN_V4), Verdict::PassOwnAddress)?;
    bed.unchanged(
        &format!("{what} to someone else"),
        &frame(ELSEWHERE_V4),
        Verdict::PassNotVip,
    )?;
    Ok(())
}

fn to_each_v6(bed: &mut Bed, what: &str, verdict: Verdict, frame: impl Fn(&str) -> Vec<u8>) -> Result<()> {
    bed.unchanged(&format!("{what} to a VIP"), &frame(VIP_V6), verdict)?;
    bed.unchanged(&format!("{what} to the node"), &frame(OWN_V6), Verdict::PassOwnAddress)?;
    bed.unchanged(
        &format!("{what} to someone else"),
        &frame(ELSEWHERE_V6),
        Verdict::PassNotVip,
    )?;
    Ok(())
}

#[test]
fn frames_that_are_not_ip_pass_as_they_came() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    for ethertype in [0x0806, 0x88cc, 0x8863, 0x8864, 0x8847, 0x0600, 0x0000, 0xffff, 46] {
        for tags in [&[][..], &[(DOT1Q, 3)], &[(DOT1AD, 3), (DOT1Q, 4)]] {
            let frame = framed_as(LB_MAC, ROUTER_MAC, tags, ethertype, &[0x45; 64]);
            bed.unchanged(&format!("{ethertype:#06x}"), &frame, Verdict::PassNotIp)?;
        }
    }
    // A third tag is not looked behind.
    let packet = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)).tagged(&[(DOT1AD, 1), (DOT1Q, 2), (DOT1Q, 3)]);
    bed.unchanged("three tags", &packet.frame(), Verdict::PassNotIp)?;
    Ok(())
}

#[test]
fn packets_to_other_addresses_pass_as_they_came() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    for tags in [&[][..], &[(DOT1Q, 3)], &[(DOT1AD, 3), (DOT1Q, 4)]] {
        for packet in [
            Packet::tcp(CLIENT_V4, &at(ELSEWHERE_V4, 80)),
            Packet::udp(CLIENT_V4, &at(ELSEWHERE_V4, 53)),
            Packet::tcp(CLIENT_V6, &at(ELSEWHERE_V6, 80)),
            Packet::udp(CLIENT_V6, &at(ELSEWHERE_V6, 53)),
            // The VIP as a source is nothing to us.
            Packet::tcp(&at(VIP_V4, 80), CLIENT_V4),
            Packet::tcp(&at(VIP_V6, 80), CLIENT_V6),
            // Neighbours of the VIP's address, by one bit.
            Packet::tcp(CLIENT_V4, "192.0.2.81:80"),
            Packet::tcp(CLIENT_V4, "192.0.3.80:80"),
            Packet::tcp(CLIENT_V6, "[2001:db8:1::81]:80"),
            Packet::tcp(CLIENT_V6, "[2001:db8:0:0:1::80]:80"),
            Packet::tcp(CLIENT_V6, "[3001:db8:1::80]:80"),
        ] {
            let packet = packet.tagged(tags).flags(SYN);
            bed.unchanged(&format!("{packet:?}"), &packet.frame(), Verdict::PassNotVip)?;
        }
    }
    Ok(())
}

#[test]
fn a_port_that_no_vip_serves_is_told_from_one_of_the_node() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    for port in [1, 53, 79, 81, 8080, 0, 65_535] {
        to_each_v4(&mut bed, "TCP", Verdict::SlowUnservedPort, |to| {
            Packet::tcp(CLIENT_V4, &at(to, port)).frame()
        })?;
        to_each_v6(&mut bed, "TCP", Verdict::SlowUnservedPort, |to| {
            Packet::tcp(CLIENT_V6, &at(to, port)).frame()
        })?;
    }
    for port in [1, 80, 52, 0] {
        to_each_v4(&mut bed, "UDP", Verdict::SlowUnservedPort, |to| {
            Packet::udp(CLIENT_V4, &at(to, port)).frame()
        })?;
        to_each_v6(&mut bed, "UDP", Verdict::SlowUnservedPort, |to| {
            Packet::udp(CLIENT_V6, &at(to, port)).frame()
        })?;
    }
    Ok(())
}

#[test]
fn a_vip_on_an_address_of_the_node_is_still_forwarded() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way::v4(1);
    let mut bed = Bed::balancer(tables())?;
    for (vip, packet) in [
        (5, Packet::tcp(CLIENT_V4, &at(OWN_V4, 80))),
        (6, Packet::udp(CLIENT_V4, &at(OWN_V4, 53))),
        (7, Packet::tcp(CLIENT_V6, &at(OWN_V6, 80))),
        (8, Packet::udp(CLIENT_V6, &at(OWN_V6, 53))),
    ] {
        bed.forwards(&packet, vip, 1, &way)?;
    }
    Ok(())
}

#[test]
fn fragments_are_for_the_slow_path() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    // Flags and offset: the first fragment, one in the middle, the last, the largest offset, with DF too.
    for flags in [0x2000_u16, 0x2001, 0x0001, 0x1fff, 0x3fff, 0x6000, 0x4001, 0xa000] {
        for protocol in [TCP, UDP, 1, 132] {
            to_each_v4(
                &mut bed,
                &format!("fragment {flags:#06x}"),
                Verdict::SlowFragment,
                |to| {
                    edited(&Packet::tcp(CLIENT_V4, &at(to, 80)), |ip| {
                        ip[6..8].copy_from_slice(&flags.to_be_bytes());
                        ip[9] = protocol;
                    })
                },
            )?;
        }
    }
    for offset_and_more in [0x0001_u16, 0x0008, 0xfff8, 0x0000] {
        to_each_v6(&mut bed, "fragment", Verdict::SlowFragment, |to| {
            edited(&Packet::udp(CLIENT_V6, &at(to, 53)), |ip| {
                ip[6] = 44;
                let [high, low] = offset_and_more.to_be_bytes();
                ip.splice(40..40, [UDP, 0, high, low, 0, 0, 0, 1]);
                ip[5] += 8;
            })
        })?;
    }
    Ok(())
}

#[test]
fn the_reserved_flag_and_df_do_not_make_a_fragment() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    let packet = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80));
    for flags in [0x0000_u16, 0x4000, 0x8000, 0xc000] {
        let frame = edited(&packet, |ip| ip[6..8].copy_from_slice(&flags.to_be_bytes()));
        let expected = Way::v4(1).frame(&[], 0, &frame[14..]);
        let sent = Sent {
            vip: 1,
            backend: 1,
            bytes: packet.bytes(),
        };
        bed.becomes(
            &format!("flags {flags:#06x}"),
            &frame,
            Verdict::ForwardTx,
            Some(sent),
            &expected,
        )?;
    }
    Ok(())
}

#[test]
fn ip_options_are_for_the_slow_path() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    for words in 1..=10_u8 {
        to_each_v4(
            &mut bed,
            &format!("{words} words of options"),
            Verdict::SlowIpOptions,
            |to| {
                edited(&Packet::tcp(CLIENT_V4, &at(to, 80)), |ip| {
                    ip.splice(20..20, vec![1; usize::from(words) * 4]);
                    ip[0] = 0x45 + words;
                    ip[3] += words * 4;
                })
            },
        )?;
    }
    Ok(())
}

#[test]
fn every_ip_protocol_has_its_verdict() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    for protocol in 0..=u8::MAX {
        // Port 9 is served by no VIP.
        let expected = match protocol {
            1 => Verdict::SlowIcmp,
            TCP | UDP => Verdict::SlowUnservedPort,
            _ => Verdict::SlowProtocol,
        };
        to_each_v4(&mut bed, &format!("IPv4 protocol {protocol}"), expected, |to| {
            edited(&Packet::tcp(CLIENT_V4, &at(to, 9)), |ip| ip[9] = protocol)
        })?;
        // IANA's list of IPv6 extension header types, but for the two experimental numbers; and No Next Header.
        let expected = match protocol {
            44 => Verdict::SlowFragment,
            0 | 43 | 50 | 51 | 59 | 60 | 135 | 139 | 140 => Verdict::SlowExtensionHeader,
            58 => Verdict::SlowIcmp,
            TCP | UDP => Verdict::SlowUnservedPort,
            _ => Verdict::SlowProtocol,
        };
        to_each_v6(&mut bed, &format!("IPv6 next header {protocol}"), expected, |to| {
            edited(&Packet::tcp(CLIENT_V6, &at(to, 9)), |ip| ip[6] = protocol)
        })?;
    }
    Ok(())
}

#[test]
fn icmp_is_for_the_slow_path_whatever_its_kind_and_however_short() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    for (len, kind) in [(0, 8), (4, 8), (8, 8), (64, 8), (64, 0), (36, 3), (36, 11)] {
        to_each_v4(
            &mut bed,
            &format!("ICMP {kind}, {len} bytes"),
            Verdict::SlowIcmp,
            |to| {
                let mut ip = ip_header("198.51.100.7".parse().unwrap(), to.parse().unwrap(), 1, 0, 64, len);
                ip.resize(20 + len, 0);
                if len > 0 {
                    ip[20] = kind;
                }
                framed(LB_MAC, ROUTER_MAC, &[], &checksummed(ip))
            },
        )?;
    }
    for (len, kind) in [(0, 128), (4, 128), (8, 128), (64, 129), (24, 135), (24, 136), (48, 2)] {
        to_each_v6(
            &mut bed,
            &format!("ICMPv6 {kind}, {len} bytes"),
            Verdict::SlowIcmp,
            |to| {
                let mut ip = ip_header("2001:db8:c::7".parse().unwrap(), to.parse().unwrap(), 58, 0, 255, len);
                ip.resize(40 + len, 0);
                if len > 0 {
                    ip[40] = kind;
                }
                framed(LB_MAC, ROUTER_MAC, &[], &ip)
            },
        )?;
    }
    Ok(())
}

#[test]
fn tunnel_packets_pass_where_this_node_is_no_worker() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    for inner in [
        Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)),
        Packet::tcp(CLIENT_V6, &at(VIP_V6, 80)),
    ] {
        for way in [Way::v4(1), Way::v6(1)] {
            bed.unchanged("a tunnel packet to a node", &way.carries(&inner), Verdict::PassNotVip)?;
        }
    }
    Ok(())
}
