//! MSS clamping: what a SYN says it takes is lowered to what the way to its backend carries, never raised, and the checksum is the
//! one that etherparse would give.

use anyhow::Result;
use xdp_prog::{
    abi::{VipMeta, feature},
    verdict::Verdict,
};

use crate::support::{
    bed::{Bed, Sent},
    frames::{ACK, Packet, SYN, TCP, UDP},
    site::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

/// VIPs on TCP 80 (by `way`) and UDP 80 with clamping, on TCP 81 without.
fn bed(features: u64, way: &Way) -> Result<Bed> {
    let mut tables = Tables::new(features);
    let backend = tables.backend(way.line());
    for address in [VIP_V4, VIP_V6] {
        tables.vip_with(address, TCP, 80, &[backend], VipMeta::CLAMP_MSS);
        tables.vip_with(address, UDP, 80, &[backend], VipMeta::CLAMP_MSS);
        tables.vip(address, TCP, 81, &[backend]);
    }
    Bed::balancer(tables)
}

/// The packet leaves as `expected` would.
fn becomes(bed: &mut Bed, way: &Way, vip: u32, packet: &Packet, expected: &Packet) -> Result<()> {
    let sent = Sent {
        vip,
        backend: 1,
        bytes: packet.bytes(),
    };
    let frame = way.carries(expected);
    bed.becomes(
        &format!("{packet:?}"),
        &packet.frame(),
        Verdict::ForwardTx,
        Some(sent),
        &frame,
    )?;
    Ok(())
}

fn syn(client: &str, address: &str, options: &[u8]) -> Packet {
    Packet::tcp(client, &at(address, 80))
        .flags(SYN)
        .payload(0)
        .tcp_options(options)
}

/// `options` with the value of the MSS option, which begins at `position`, set.
fn with_mss(options: &[u8], position: usize, mss: u16) -> Vec<u8> {
    let mut options = options.to_vec();
    options[position + 2..position + 4].copy_from_slice(&mss.to_be_bytes());
    options
}

/// What Linux sends: MSS, SACK permitted, timestamps, no operation, window scale.
const LINUX: [u8; 20] = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];

#[test]
fn each_pair_of_families_has_its_limit() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for (way, client, address, vip, most) in [
        (Way::v4(1), CLIENT_V4, VIP_V4, 1, 1440),
        (Way::v6(1), CLIENT_V4, VIP_V4, 1, 1420),
        (Way::v4(1), CLIENT_V6, VIP_V6, 4, 1420),
        (Way::v6(1), CLIENT_V6, VIP_V6, 4, 1400),
        (Way::v4(1).mtu(9000), CLIENT_V4, VIP_V4, 1, 8940),
        (Way::v4(1).mtu(576), CLIENT_V4, VIP_V4, 1, 516),
    ] {
        let mut bed = bed(feature::CLAMP_MSS, &way)?;
        for tags in [&[][..], &[(0x8100, 3)], &[(0x88a8, 3), (0x8100, 4)]] {
            for mss in [most + 1, u16::MAX, most.saturating_mul(2)] {
                let before = syn(client, address, &with_mss(&LINUX, 0, mss)).tagged(tags);
                let after = before.clone().tcp_options(&with_mss(&LINUX, 0, most));
                becomes(&mut bed, &way, vip, &before, &after)?;
            }
            for mss in [most, most - 1, 1, 0] {
                let packet = syn(client, address, &with_mss(&LINUX, 0, mss)).tagged(tags);
                becomes(&mut bed, &way, vip, &packet, &packet)?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_option_is_found_wherever_it_stands() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way::v4(1);
    let mut bed = bed(feature::CLAMP_MSS, &way)?;
    for position in 0..=36 {
        // Behind no operations, and behind one long option that is skipped.
        let mut nops = vec![1; position];
        let mut skipped = vec![0xee; position];
        nops.extend([2, 4, 0xff, 0xfe]);
        skipped.extend([2, 4, 0x05, 0xb5]);
        if position >= 2 {
            (skipped[0], skipped[1]) = (254, position as u8);
        }
        for mut options in [nops, skipped] {
            options.resize(options.len().next_multiple_of(4), 0);
            if position == 1 && options[0] == 0xee {
                continue;
            }
            for flags in [SYN, SYN | ACK, SYN | 0xc0] {
                // What else stands in the segment changes its sum.
                for payload in [0, 1, 7] {
                    let before = syn(CLIENT_V4, VIP_V4, &options).flags(flags).payload(payload);
                    let after = before.clone().tcp_options(&with_mss(&options, position, 1440));
                    becomes(&mut bed, &way, 1, &before, &after)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_not_to_be_clamped_stays_as_it_is() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way::v4(1);
    let mut bed = bed(feature::CLAMP_MSS, &way)?;
    for (what, options) in [
        ("no options", &[][..]),
        ("no MSS", &[4, 2, 1, 3, 3, 7, 1, 1]),
        ("the end before it", &[0, 2, 4, 0x05, 0xb5, 0, 0, 0]),
        ("a length of 0 before it", &[254, 0, 2, 4, 0x05, 0xb5, 1, 1]),
        ("a length of 1 before it", &[254, 1, 2, 4, 0x05, 0xb5, 1, 1]),
        (
            "a length beyond the header before it",
            &[254, 40, 2, 4, 0x05, 0xb5, 1, 1],
        ),
        ("the largest length before it", &[254, 255, 2, 4, 0x05, 0xb5, 1, 1]),
        ("too short", &[2, 3, 0xff, 1]),
        ("too long", &[2, 5, 0xff, 0xff, 0xff, 1, 1, 1]),
        ("cut by the header's end", &[1, 1, 2, 4]),
        ("cut in the middle", &[1, 2, 4, 0xff]),
        ("a kind alone", &[1, 1, 1, 2]),
        ("only no operations", &[1; 40]),
    ] {
        let packet = syn(CLIENT_V4, VIP_V4, options).payload(10);
        let sent = Sent {
            vip: 1,
            backend: 1,
            bytes: packet.bytes(),
        };
        let frame = packet.frame();
        bed.becomes(what, &frame, Verdict::ForwardTx, Some(sent), &way.carries(&packet))?;
    }
    let established = syn(CLIENT_V4, VIP_V4, &LINUX).flags(ACK);
    bed.forwards(&established, 1, 1, &way)?;
    let other_vip = Packet::tcp(CLIENT_V4, &at(VIP_V4, 81)).flags(SYN).tcp_options(&LINUX);
    bed.forwards(&other_vip, 3, 1, &way)?;
    bed.forwards(&Packet::udp(CLIENT_V4, &at(VIP_V4, 80)).payload(60), 2, 1, &way)?;
    Ok(())
}

/// The twin: with the feature off the flag means nothing.
#[test]
fn without_the_feature_nothing_is_clamped() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way::v4(1);
    let mut bed = bed(
        feature::ALL & !feature::CLAMP_MSS & !feature::LIMITS & !feature::SOURCE_PREFIX & !feature::REDIRECT,
        &way,
    )?;
    bed.forwards(&syn(CLIENT_V4, VIP_V4, &LINUX), 1, 1, &way)?;
    Ok(())
}
