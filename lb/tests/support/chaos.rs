//! Tables and frames by chance: half of it sense, half of it not. Never a promise about any one frame; the mix as a whole reaches
//! every verdict.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xdp_prog::abi::{LineMeta, VipMeta, feature, setting};

use super::{
    frames::{
        DOT1AD, DOT1Q, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPIP, IPV6, LB_MAC, ROUTER_MAC, TCP, Tag, UDP, arp, checksummed,
        framed_as, ip_header, neighbour_message,
    },
    random::Random,
    site::{LOOPBACK, Way},
    tables::Tables,
};

const VIPS_V4: [&str; 4] = ["192.0.2.80", "192.0.2.81", "192.0.2.255", "192.0.2.0"];
const VIPS_V6: [&str; 4] = ["2001:db8:1::80", "2001:db8:1::81", "2001:db8:1:ffff::", "2001:db8:1::"];
const OTHERS_V4: [&str; 13] = [
    "198.51.100.7",
    "198.51.100.200",
    "203.0.113.1",
    "203.0.113.255",
    "10.0.0.1",
    "10.0.0.11",
    "10.244.1.1",
    "127.0.0.1",
    "169.254.3.3",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.5",
    "100.64.0.1",
];
const OTHERS_V6: [&str; 11] = [
    "2001:db8:c::7",
    "2001:db8:c::8000",
    "2001:db8:bad::1",
    "fd00::1",
    "fd00::1:1",
    "::",
    "::1",
    "::ffff:192.0.2.80",
    "::ffff:10.0.0.1",
    "fe80::1",
    "ff02::1",
];
const PORTS: [u16; 5] = [80, 53, 443, 0, 65_535];

/// Tables with a dozen VIPs, a dozen backends of all kinds and whatever the features need.
pub(crate) fn tables(random: &mut Random, features: u64) -> Tables {
    let mut tables = Tables::new(features);
    tables.config.seed = std::array::from_fn(|_| random.word());
    tables.config.match_salt = random.word();
    if features & feature::SOURCE_PREFIX != 0 {
        tables.config.source_mask_v4 = u64::from(u32::from_ne_bytes([0, 0, 0x3f, 0xff]));
        tables.config.source_mask_v6 = u64::from_ne_bytes([0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }
    tables.ports = vec!["lo"];
    for number in 1..=16 {
        let way = Way {
            ifindex: random.one_of(&[LOOPBACK, LOOPBACK, 77]),
            mtu: random.one_of(&[1500, 1500, 1280, 9000, 80, u16::MAX]),
            source: "0.0.0.0".parse().expect("an address"),
            ..Way::v4(number)
        };
        let way = if random.once_in(2) {
            Way {
                source: Ipv4Addr::new(10, 0, 0, 0).into(),
                ..way
            }
        } else {
            Way {
                source: Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0).into(),
                destination: Way::v6(number).destination,
                ..way
            }
        };
        let tags: [&[Tag]; 4] = [
            &[],
            &[(DOT1Q, 0x1fff)],
            &[(DOT1AD, 7), (DOT1Q, 0x8001)],
            &[(DOT1Q, 1), (DOT1Q, 2)],
        ];
        let line = match random.below(8) {
            0 => way.line_with(0, 0, [0, 0]),
            1 => way.line_with(LineMeta::LOCAL, 0, [0, 0]),
            2 | 3 => way.tagged_line(random.one_of(&tags)),
            _ => way.line(),
        };
        tables.backend(line);
    }
    let everybody = tables.number_set(&[(0, u128::MAX)]);
    let some = tables.set(&[
        ("198.51.100.0", "198.51.100.127"),
        ("10.0.0.0", "10.255.255.255"),
        ("2001:db8:c::", "2001:db8:c::7fff"),
        ("203.0.113.255", "203.0.113.255"),
    ]);
    let nobody = tables.set(&[]);
    for address in VIPS_V4.iter().chain(&VIPS_V6) {
        for _ in 0..7 {
            let protocol = random.one_of(&[TCP, TCP, UDP]);
            let port = random.one_of(&PORTS);
            if port == 0 {
                continue;
            }
            let backends: Vec<u16> = (0..random.below(20)).map(|_| random.below(17) as u16).collect();
            let mut flags = if random.once_in(2) { VipMeta::OPTIONS } else { 0 };
            if random.once_in(2) {
                flags |= VipMeta::CLAMP_MSS;
            }
            if random.once_in(3) {
                flags |= VipMeta::CLIENT_AFFINITY;
            }
            let vip = tables.vip_once(address, protocol, port, &backends, flags);
            let Some(options) = vip.map(|vip| &mut tables.options[vip as usize]) else {
                continue;
            };
            options.allowed_sources = random.one_of(&[0, 0, everybody, some, some, nobody]);
            // Limits that do not depend on the clock: never a token, or more than any test takes.
            let (most, none) = ((1 << 40, 1 << 60), (1, 0));
            (options.packet_rate, options.packet_burst) = random.one_of(&[(0, 0), most, most, most, none]);
            (options.syn_rate, options.syn_burst) = random.one_of(&[(0, 0), most, none]);
        }
        if tables.serves(address) && random.once_in(4) {
            tables.address(address, VipMeta::OWN_ADDRESS);
        }
    }
    tunnel_sets(&mut tables);
    tables.settings[setting::DENIED_SOURCES as usize] = tables.set(&[
        ("203.0.113.0", "203.0.113.127"),
        ("2001:db8:bad::", "2001:db8:bad::ffff"),
    ]);
    tables
}

fn tunnel_sets(tables: &mut Tables) {
    for (which, ranges) in [
        (
            setting::TUNNEL_LOCALS,
            &[("10.0.0.11", "10.0.0.11"), ("fd00::1:1", "fd00::1:1")][..],
        ),
        (
            setting::TUNNEL_SOURCES,
            &[("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")],
        ),
        (
            setting::TUNNEL_VIPS,
            &[
                ("192.0.2.0", "192.0.2.255"),
                ("2001:db8:1::", "2001:db8:1:ffff:ffff:ffff:ffff:ffff"),
            ],
        ),
        (
            setting::TUNNEL_DENIED,
            &[
                ("10.0.0.0", "10.0.0.255"),
                ("10.244.0.0", "10.244.255.255"),
                ("fd00::", "fdff::"),
            ],
        ),
    ] {
        tables.settings[which as usize] = tables.set(ranges);
    }
}

/// A frame of at least 14 bytes: a packet that makes sense, or one that did before it was mutated.
pub(crate) fn frame(random: &mut Random) -> Vec<u8> {
    let tags: Vec<Tag> = (0..random.one_of(&[0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5]))
        .map(|_| (random.one_of(&[DOT1Q, DOT1AD]), random.word() as u16))
        .collect();
    let ip = if random.once_in(4) {
        tunnel(random)
    } else {
        packet(random)
    };
    let ethertype = match random.below(40) {
        0 => random.word() as u16,
        1 => 0x0806,
        _ if ip[0] >> 4 == 6 => ETHERTYPE_IPV6,
        _ => ETHERTYPE_IPV4,
    };
    let mut frame = match random.below(30) {
        0 => arp(
            &tags,
            random.one_of(&[1, 1, 1, 2]),
            random.one_of(&OTHERS_V4),
            random.one_of(&VIPS_V4),
        ),
        1 => {
            let target = random.one_of(&VIPS_V6);
            let destination = random.one_of(&["ff02::1:ff00:80", target, "ff02::1", "fe80::1"]);
            let kind = random.one_of(&[135, 135, 135, 136]);
            neighbour_message(&tags, kind, random.one_of(&OTHERS_V6), destination, target)
        }
        _ => framed_as(LB_MAC, ROUTER_MAC, &tags, ethertype, &ip),
    };
    if random.once_in(2) {
        for _ in 0..=random.below(3) {
            mutate(random, &mut frame);
        }
    }
    if frame.len() < 14 {
        frame.resize(14, 0);
    }
    frame
}

fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    let near = frame.len().min(100);
    match random.below(6) {
        0 => frame[random.below(near)] ^= 1 << random.below(8),
        1 => frame[random.below(near)] = random.word() as u8,
        2 => frame.truncate(14 + random.below(frame.len())),
        3 => {
            let more = random.below(40);
            frame.extend((0..more).map(|_| 0xee));
        }
        4 => {
            let at = random.below(near.max(2) - 1);
            let value = (random.word() as u16 & random.one_of(&[0xffff, 0x00ff, 0x000f])).to_be_bytes();
            frame[at..at + 2].copy_from_slice(&value);
        }
        _ => {
            // A length a little off, where an untagged IP header has it.
            let at = random.one_of(&[17, 19]);
            if let Some(byte) = frame.get_mut(at) {
                *byte = byte.wrapping_add(random.one_of(&[1, 255, 20, 236]));
            }
        }
    }
}

fn tunnel(random: &mut Random) -> Vec<u8> {
    let inner = if random.once_in(10) {
        tunnel(random)
    } else {
        packet(random)
    };
    let (source, node): (IpAddr, IpAddr) = if random.once_in(2) {
        (
            parse(random.one_of(&["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.3"])),
            parse("10.0.0.11"),
        )
    } else {
        (
            parse(random.one_of(&["fd00::1", "fd00::2", "fd00::1", "::ffff:10.0.0.1"])),
            parse("fd00::1:1"),
        )
    };
    let protocol = match random.below(20) {
        0 => random.one_of(&[IPIP, IPV6]),
        _ if inner[0] >> 4 == 6 => IPV6,
        _ => IPIP,
    };
    let mut ip = ip_header(source, node, protocol, random.word() as u8, 64, inner.len());
    ip.extend(inner);
    ip
}

fn packet(random: &mut Random) -> Vec<u8> {
    let v4 = random.once_in(2);
    let (vips, others): (&[&str], &[&str]) = if v4 {
        (&VIPS_V4, &OTHERS_V4)
    } else {
        (&VIPS_V6, &OTHERS_V6)
    };
    let source = if random.once_in(20) {
        random.one_of(vips)
    } else {
        others[random.below(others.len()) / random.one_of(&[1, 4])]
    };
    let destination = if random.once_in(8) {
        random.one_of(others)
    } else {
        random.one_of(vips)
    };
    let protocol = match random.below(12) {
        0 => random.one_of(&[1, 58, 4, 41, 44, 0, 60, 43, 132]),
        1 => random.word() as u8,
        2..=4 => UDP,
        _ => TCP,
    };
    let rest = match random.below(16) {
        0 => random.below(12),
        1 => random.one_of(&[1459, 1460, 1461, 1439, 1440, 1441, 1420, 1421]),
        2 => random.one_of(&[1220, 1221, 1240, 1241, 40, 41, 20, 21]),
        3 if random.once_in(8) => random.below(12_000),
        _ => 20 + random.below(60),
    };
    let hops = random.one_of(&[64, 255, 2, 1, 0, 63]);
    let mut ip = ip_header(
        parse(source),
        parse(destination),
        protocol,
        random.word() as u8,
        hops,
        rest,
    );
    let headers = ip.len();
    ip.resize(headers + rest, 0);
    // Ports from a short list, or any; flags as they come.
    let mut transport = [0; 20];
    random.fill(&mut transport);
    if !random.once_in(10) {
        transport[2..4].copy_from_slice(&random.one_of(&PORTS).to_be_bytes());
    }
    transport[13] = random.one_of(&[0x02, 0x10, 0x12, 0x11, 0x18, 0xff, 0x42]);
    let len = rest.min(20);
    ip[headers..headers + len].copy_from_slice(&transport[..len]);
    if rest >= 60 && random.once_in(2) {
        // Options that make sense for a while.
        ip[headers + 12] = (random.below(11) as u8 + 5) << 4;
        let mut at = headers + 20;
        while at + 4 <= headers + 60 {
            let option: &[u8] = random.one_of(&[
                &[1][..],
                &[1, 1],
                &[2, 4, 0x05, 0xb4],
                &[3, 3, 7],
                &[4, 2],
                &[8, 3, 0],
                &[0],
            ]);
            ip[at..at + option.len()].copy_from_slice(option);
            at += option.len();
        }
    }
    if v4 {
        match random.below(16) {
            0 => ip[6..8].copy_from_slice(&(random.word() as u16).to_be_bytes()),
            1 => ip[0] = 0x40 | random.below(16) as u8,
            2 => ip[6] = random.one_of(&[0x20, 0x00, 0x60, 0x1f]),
            _ => {}
        }
        return checksummed(ip);
    }
    ip
}

fn parse(address: &str) -> IpAddr {
    address.parse().expect("an address")
}
