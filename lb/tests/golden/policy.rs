//! Who may send: martians, sources that are the VIP itself, the deny-list, source ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use xdp_prog::{
    abi::{MAX_SET_RANGES, VipMeta, feature, number, setting},
    verdict::Verdict,
};

use crate::support::{
    bed::Bed,
    frames::{Packet, TCP},
    site::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

const VIP_OF_V4: u32 = 1;
const VIP_OF_V6: u32 = 2;

/// TCP 80 on an address of each family, with options.
fn tables(features: u64) -> Tables {
    let mut tables = Tables::new(features);
    let backend = tables.backend(Way::v4(1).line());
    assert_eq!(
        tables.vip_with(VIP_V4, TCP, 80, &[backend], VipMeta::OPTIONS),
        VIP_OF_V4
    );
    assert_eq!(
        tables.vip_with(VIP_V6, TCP, 80, &[backend], VipMeta::OPTIONS),
        VIP_OF_V6
    );
    tables
}

fn from(source: IpAddr) -> (u32, Packet) {
    match source {
        IpAddr::V4(_) => (VIP_OF_V4, Packet::tcp(&format!("{source}:1234"), &at(VIP_V4, 80))),
        IpAddr::V6(_) => (VIP_OF_V6, Packet::tcp(&format!("[{source}]:1234"), &at(VIP_V6, 80))),
    }
}

/// A packet from `source`: sent where `refused` is `None`, else refused with this verdict.
fn expect(bed: &mut Bed, source: IpAddr, refused: Option<Verdict>) -> Result<()> {
    let (vip, packet) = from(source);
    match refused {
        None => bed.forwards(&packet, vip, 1, &Way::v4(1))?,
        Some(verdict) => bed.unchanged(&format!("from {source}"), &packet.frame(), verdict)?,
    };
    Ok(())
}

/// First and last of every block, and the addresses beside them.
const MARTIANS: &[&str] = &[
    "0.0.0.0",
    "0.0.0.1",
    "0.255.255.255",
    "127.0.0.0",
    "127.0.0.1",
    "127.255.255.255",
    "169.254.0.0",
    "169.254.169.254",
    "169.254.255.255",
    "224.0.0.0",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.0",
    "255.255.255.254",
    "255.255.255.255",
    "::",
    "::1",
    "::2",
    "::192.0.2.1",
    "::255.255.255.255",
    "::ffff:0.0.0.0",
    "::ffff:198.51.100.7",
    "::ffff:255.255.255.255",
    "fe80::",
    "fe80::1",
    "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "ff00::",
    "ff02::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

const NOT_MARTIANS: &[&str] = &[
    "1.0.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "223.255.255.255",
    "10.1.2.3",
    "192.168.1.1",
    "100.64.0.1",
    "::1:0:0",
    "::fffe:ffff:ffff",
    "::1:0:0:0",
    "64:ff9b::192.0.2.1",
    "2001:db8::1",
    "fc00::1",
    "fd00::1",
    "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "fec0::",
    "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

#[test]
fn martians_are_dropped_and_their_neighbours_are_not() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables(feature::DROP_MARTIANS))?;
    for source in MARTIANS {
        expect(&mut bed, source.parse()?, Some(Verdict::DropMartian))?;
    }
    for source in NOT_MARTIANS {
        expect(&mut bed, source.parse()?, None)?;
    }
    Ok(())
}

#[test]
fn with_every_rule_off_anyone_may_send() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut tables = tables(0);
    let nobody = tables.set(&[]);
    let everybody = tables.number_set(&[(0, u128::MAX)]);
    tables.options[VIP_OF_V4 as usize].allowed_sources = nobody;
    tables.options[VIP_OF_V6 as usize].allowed_sources = nobody;
    tables.settings[setting::DENIED_SOURCES as usize] = everybody;
    let mut bed = Bed::balancer(tables)?;
    for source in MARTIANS.iter().chain(NOT_MARTIANS).chain(&[VIP_V4, VIP_V6]) {
        expect(&mut bed, source.parse()?, None)?;
    }
    Ok(())
}

#[test]
fn a_source_that_is_the_vip_itself_is_dropped() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables(feature::DROP_SOURCE_IS_VIP))?;
    expect(&mut bed, VIP_V4.parse()?, Some(Verdict::DropSourceIsVip))?;
    expect(&mut bed, VIP_V6.parse()?, Some(Verdict::DropSourceIsVip))?;
    // One bit beside it, in either half.
    for source in ["192.0.2.81", "64.0.2.80", "2001:db8:1::81", "2001:db9:1::80"] {
        expect(&mut bed, source.parse()?, None)?;
    }
    Ok(())
}

#[test]
fn the_deny_list_concerns_every_vip_and_both_families() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut tables = tables(feature::DENIED_SOURCES);
    tables.settings[setting::DENIED_SOURCES as usize] = tables.set(&[
        ("203.0.113.0", "203.0.113.255"),
        ("198.51.100.9", "198.51.100.9"),
        ("2001:db8:bad::", "2001:db8:bad:ffff:ffff:ffff:ffff:ffff"),
    ]);
    let mut bed = Bed::balancer(tables)?;
    for source in [
        "203.0.113.0",
        "203.0.113.77",
        "203.0.113.255",
        "198.51.100.9",
        "2001:db8:bad::",
        "2001:db8:bad::5",
    ] {
        expect(&mut bed, source.parse()?, Some(Verdict::DropSourceDenied))?;
    }
    for source in [
        "203.0.112.255",
        "203.0.114.0",
        "198.51.100.8",
        "198.51.100.10",
        "2001:db8:bae::",
        "2001:db8:bac::1",
    ] {
        expect(&mut bed, source.parse()?, None)?;
    }
    Ok(())
}

#[test]
fn an_absent_deny_list_denies_nobody() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables(feature::DENIED_SOURCES))?;
    for client in [CLIENT_V4, CLIENT_V6] {
        let source: std::net::SocketAddr = client.parse()?;
        expect(&mut bed, source.ip(), None)?;
    }
    Ok(())
}

#[test]
fn an_empty_set_of_allowed_sources_is_not_the_same_as_none() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut tables = tables(feature::SOURCE_RANGES);
    tables.options[VIP_OF_V4 as usize].allowed_sources = tables.set(&[]);
    let mut bed = Bed::balancer(tables)?;
    for source in ["198.51.100.7", "255.255.255.255", "0.0.0.0"] {
        expect(&mut bed, source.parse()?, Some(Verdict::DropSourceNotAllowed))?;
    }
    for source in ["2001:db8:c::7", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::"] {
        expect(&mut bed, source.parse()?, None)?;
    }
    Ok(())
}

#[test]
fn a_vip_without_the_options_flag_has_no_ranges() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut tables = Tables::new(feature::SOURCE_RANGES);
    let way = Way::v4(1);
    let backend = tables.backend(way.line());
    let vip = tables.vip(VIP_V4, TCP, 80, &[backend]);
    tables.options[vip as usize].allowed_sources = tables.set(&[]);
    Bed::balancer(tables)?.forwards(&Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)), vip, backend, &way)?;
    Ok(())
}

/// `count` disjoint ranges of eight addresses, sixteen apart, from `first` on.
fn ladder(first: u128, count: usize) -> Vec<(u128, u128)> {
    (0..count as u128)
        .map(|step| (first + step * 16, first + step * 16 + 7))
        .collect()
}

#[test]
fn sets_of_every_size_are_exact_at_their_boundaries() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let v4 = number(IpAddr::V4(Ipv4Addr::new(100, 64, 1, 0)));
    let v6 = number(IpAddr::V6(Ipv6Addr::new(
        0x2001, 0xdb8, 0, 7, 0xffff, 0xffff, 0xffff, 0xf000,
    )));
    for count in [1, 2, 3, 4, 5, 511, 512, 513, MAX_SET_RANGES - 1, MAX_SET_RANGES] {
        let mut tables = tables(feature::SOURCE_RANGES);
        // A set before them, so that an offset of 0 is not all that is seen.
        tables.set(&[("0.0.0.0", "255.255.255.255"), ("::1:0:0:0", "ffff::")]);
        let of_v4 = ladder(v4, count);
        // The IPv6 ladder crosses from one lower half to the next.
        let of_v6 = ladder(v6, count);
        tables.options[VIP_OF_V4 as usize].allowed_sources = tables.number_set(&of_v4);
        tables.options[VIP_OF_V6 as usize].allowed_sources = tables.number_set(&of_v6);
        let mut bed = Bed::balancer(tables)?;
        let picks = [0, 1, 2, count / 2, count.saturating_sub(2), count - 1];
        for (ranges, is_v4) in [(of_v4, true), (of_v6, false)] {
            let address = |number: u128| -> IpAddr {
                if is_v4 {
                    Ipv4Addr::from_bits(number as u32).into()
                } else {
                    Ipv6Addr::from_bits(number).into()
                }
            };
            for (first, last) in picks.iter().filter_map(|&pick| ranges.get(pick).copied()) {
                for (number, refused) in [
                    (first - 1, Some(Verdict::DropSourceNotAllowed)),
                    (first, None),
                    (first + 3, None),
                    (last, None),
                    (last + 1, Some(Verdict::DropSourceNotAllowed)),
                ] {
                    expect(&mut bed, address(number), refused)?;
                }
            }
        }
        for source in [
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            expect(&mut bed, source.parse()?, Some(Verdict::DropSourceNotAllowed))?;
        }
    }
    Ok(())
}

#[test]
fn ranges_of_one_family_say_nothing_of_the_other() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut tables = tables(feature::SOURCE_RANGES);
    let all_v4 = tables.set(&[("0.0.0.0", "255.255.255.255")]);
    tables.options[VIP_OF_V4 as usize].allowed_sources = all_v4;
    tables.options[VIP_OF_V6 as usize].allowed_sources = all_v4;
    let mut bed = Bed::balancer(tables)?;
    for source in ["0.0.0.0", "10.0.0.1", "255.255.255.255"] {
        expect(&mut bed, source.parse()?, None)?;
    }
    for source in ["2001:db8::1", "::", "::fffe:ffff:ffff", "::1:0:0:0"] {
        expect(&mut bed, source.parse()?, Some(Verdict::DropSourceNotAllowed))?;
    }
    Ok(())
}

#[test]
fn rules_are_asked_in_one_order() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let rules = [
        (feature::DROP_MARTIANS, Verdict::DropMartian),
        (feature::DROP_SOURCE_IS_VIP, Verdict::DropSourceIsVip),
        (feature::DENIED_SOURCES, Verdict::DropSourceDenied),
        (feature::SOURCE_RANGES, Verdict::DropSourceNotAllowed),
    ];
    // An address that every rule refuses: a martian that is the VIP too.
    let vip = "127.0.0.80";
    for first in 0..rules.len() {
        let features = rules[first..].iter().fold(0, |features, rule| features | rule.0);
        let mut tables = Tables::new(features);
        let backend = tables.backend(Way::v4(1).line());
        let index = tables.vip_with(vip, TCP, 80, &[backend], VipMeta::OPTIONS);
        tables.options[index as usize].allowed_sources = tables.set(&[]);
        tables.settings[setting::DENIED_SOURCES as usize] = tables.set(&[(vip, vip)]);
        let frame = Packet::tcp(&at(vip, 1), &at(vip, 80)).frame();
        Bed::balancer(tables)?.unchanged("refused by all", &frame, rules[first].1)?;
    }
    Ok(())
}
