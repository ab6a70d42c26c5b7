//! `encap.source`: the node's own address, or a prefix whose low bits carry the flow.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Result;
use etherparse::{NetSlice, SlicedPacket};
use xdp_prog::{abi::feature, verdict::Verdict};

use crate::support::{
    bed::{Bed, Sent},
    frames::{Packet, TCP, checksum_is_right},
    site::{CLIENT_V4, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

/// Bits of an IPv4 source below a prefix, as the configuration holds them.
fn mask_v4(prefix_len: u32) -> u64 {
    u64::from(u32::from_ne_bytes(
        (u32::MAX.checked_shr(prefix_len).unwrap_or(0)).to_be_bytes(),
    ))
}

/// Bits of the low half of an IPv6 source below a prefix of at least 64 bits.
fn mask_v6(prefix_len: u32) -> u64 {
    u64::from_ne_bytes(u64::MAX.checked_shr(prefix_len - 64).unwrap_or(0).to_be_bytes())
}

fn source_of(frame: &[u8]) -> Result<IpAddr> {
    Ok(match SlicedPacket::from_ethernet(frame)?.net {
        Some(NetSlice::Ipv4(ip)) => ip.header().source_addr().into(),
        Some(NetSlice::Ipv6(ip)) => ip.header().source_addr().into(),
        Some(NetSlice::Arp(_)) | None => panic!("no IP packet"),
    })
}

/// Prefixes of 100.64.0.0/10 and fd00:5::/64 that end in zeroes.
const PREFIX_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0);

/// A bed with `backends` backends behind one VIP of each family, tunnelled through IPv4 or IPv6 from a prefix.
fn bed(v6: bool, prefix_len: u32, backends: u8) -> Result<(Bed, BTreeMap<u16, Way>, u32)> {
    let mut tables = Tables::new(feature::SOURCE_PREFIX);
    if v6 {
        tables.config.source_mask_v6 = mask_v6(prefix_len);
    } else {
        tables.config.source_mask_v4 = mask_v4(prefix_len);
    }
    let ways: BTreeMap<u16, Way> = (1..=backends)
        .map(|number| {
            let way = if v6 {
                Way {
                    source: PREFIX_V6.into(),
                    ..Way::v6(number)
                }
            } else {
                Way {
                    source: PREFIX_V4.into(),
                    ..Way::v4(number)
                }
            };
            (tables.backend(way.line()), way)
        })
        .collect();
    let all: Vec<u16> = ways.keys().copied().collect();
    let vip = tables.vip(VIP_V4, TCP, 80, &all);
    tables.vip(VIP_V6, TCP, 80, &all);
    Ok((Bed::balancer(tables)?, ways, vip))
}

fn client(number: usize) -> Packet {
    let address = Ipv4Addr::from_bits(0xc633_6400 + (number / 20_000) as u32);
    Packet::tcp(&format!("{address}:{}", 1024 + number % 20_000), &at(VIP_V4, 80))
}

#[test]
fn entropy_stays_inside_the_prefix_and_the_checksum_is_right() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for (v6, prefix_lens) in [(false, [16, 20, 24, 28, 32]), (true, [64, 80, 96, 120, 128])] {
        for prefix_len in prefix_lens {
            let (mut bed, ways, vip) = bed(v6, prefix_len, 1)?;
            let (&backend, way) = ways.iter().next().expect("a backend");
            for number in 0..200 {
                let packet = client(number).tos(number as u8);
                let frame = packet.frame();
                let source = source_of(&bed.kernel.run(&frame)?.frame)?;
                let in_prefix = match (source, way.source) {
                    (IpAddr::V4(is), IpAddr::V4(prefix)) => {
                        (is.to_bits() ^ prefix.to_bits())
                            .checked_shr(32 - prefix_len)
                            .unwrap_or(0)
                            == 0
                    }
                    (IpAddr::V6(is), IpAddr::V6(prefix)) => {
                        (is.to_bits() ^ prefix.to_bits())
                            .checked_shr(128 - prefix_len)
                            .unwrap_or(0)
                            == 0
                    }
                    (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
                };
                assert!(in_prefix, "{source} is not in {}/{prefix_len}", way.source);
                // The frame, checksum included, is the one that etherparse builds with this source.
                bed.recount()?;
                let sent = Sent {
                    vip,
                    backend,
                    bytes: packet.bytes(),
                };
                let expected = Way { source, ..*way }.carries(&packet);
                let left = bed.becomes(
                    &format!("{packet:?}"),
                    &frame,
                    Verdict::ForwardTx,
                    Some(sent),
                    &expected,
                )?;
                assert!(v6 || checksum_is_right(&left[14..]));
            }
        }
    }
    Ok(())
}

#[test]
fn the_source_tells_flows_apart_and_stays_with_a_flow() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for v6 in [false, true] {
        let (bed, _, _) = bed(v6, if v6 { 64 } else { 16 }, 1)?;
        let mut seen = BTreeMap::<IpAddr, usize>::new();
        for number in 0..2_000 {
            let source = source_of(&bed.kernel.run(&client(number).frame())?.frame)?;
            let again = source_of(&bed.kernel.run(&client(number).payload(500).frame())?.frame)?;
            assert_eq!(source, again, "two packets of one flow");
            *seen.entry(source).or_default() += 1;
        }
        // 2,000 flows over 65,536 sources: about 30 pairs meet; over 2^64, none.
        assert!(
            seen.len() > if v6 { 1_999 } else { 1_920 },
            "{} sources for 2,000 flows",
            seen.len()
        );
    }
    Ok(())
}

/// What a worker sees: the sources of the flows that chose *it*. If the bits that chose the slot were the entropy too, it would
/// see few of them.
#[test]
fn each_backend_sees_sources_all_over_the_prefix() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    const SOURCES: usize = 256;
    for (v6, prefix_len) in [(false, 24), (true, 120)] {
        let (bed, ways, _) = bed(v6, prefix_len, 16)?;
        let mut seen: BTreeMap<[u8; 6], [usize; SOURCES]> = BTreeMap::new();
        for number in 0..40_000 {
            let left = bed.kernel.run(&client(number).frame())?.frame;
            let low = match source_of(&left)? {
                IpAddr::V4(source) => source.octets()[3],
                IpAddr::V6(source) => source.octets()[15],
            };
            let next_hop: [u8; 6] = left[..6].try_into()?;
            seen.entry(next_hop).or_insert([0; SOURCES])[usize::from(low)] += 1;
        }
        assert_eq!(seen.len(), ways.len(), "every backend is chosen");
        for (next_hop, counts) in seen {
            let flows: usize = counts.iter().sum();
            let ideal = flows as f64 / SOURCES as f64;
            let chi_square: f64 = counts.iter().map(|&count| (count as f64 - ideal).powi(2) / ideal).sum();
            // 255 degrees of freedom: mean 255, standard deviation 22.6; six of them above.
            assert!(
                chi_square < 391.0,
                "backend {next_hop:02x?}, {flows} flows, v6 {v6}: chi-square {chi_square:.0}"
            );
        }
    }
    Ok(())
}

#[test]
fn without_the_feature_the_source_is_the_nodes_own_address() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut tables = Tables::new(0);
    tables.config.source_mask_v4 = mask_v4(16);
    tables.config.source_mask_v6 = mask_v6(64);
    let way = Way::v4(1);
    let backend = tables.backend(way.line());
    let vip = tables.vip(VIP_V4, TCP, 80, &[backend]);
    let mut bed = Bed::balancer(tables)?;
    bed.forwards(&Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)), vip, backend, &way)?;
    Ok(())
}
