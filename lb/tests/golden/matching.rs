//! The match table as packets meet it: addresses with many ports, ports in their second bucket, entries that come and go.

use anyhow::Result;
use xdp_prog::{
    abi::{BucketV4, BucketV6, KeyV4, KeyV6, VipMeta},
    verdict::Verdict,
};

use crate::support::{
    bed::Bed,
    frames::{Packet, TCP, UDP},
    site::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

/// More VIPs on one address than a bucket has room for: the second choice is looked at, and counted for the right VIP.
#[test]
fn an_address_with_more_ports_than_a_bucket_holds_serves_them_all() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way::v4(1);
    let mut tables = Tables::new(0);
    let backend = tables.backend(way.line());
    let mut sent = Vec::new();
    for (client, address) in [(CLIENT_V4, VIP_V4), (CLIENT_V6, VIP_V6)] {
        for port in 1..=12 {
            sent.push((
                tables.vip(address, TCP, port, &[backend]),
                Packet::tcp(client, &at(address, port)),
            ));
            sent.push((
                tables.vip(address, UDP, port, &[backend]),
                Packet::udp(client, &at(address, port)),
            ));
        }
    }
    let mut bed = Bed::balancer(tables)?;
    for (vip, packet) in sent {
        bed.forwards(&packet, vip, backend, &way)?;
    }
    for (client, address) in [(CLIENT_V4, VIP_V4), (CLIENT_V6, VIP_V6)] {
        let frame = Packet::tcp(client, &at(address, 13)).frame();
        bed.unchanged("a port beside them", &frame, Verdict::SlowUnservedPort)?;
    }
    Ok(())
}

/// Removal clears the key; the meta word that stays behind must not be found by anything.
#[test]
fn an_entry_whose_key_is_cleared_is_gone_from_the_next_packet_on() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let way = Way::v4(1);
    let mut tables = Tables::new(0);
    let backend = tables.backend(way.line());
    let of_v4 = tables.vip(VIP_V4, TCP, 80, &[backend]);
    let of_v6 = tables.vip(VIP_V6, TCP, 80, &[backend]);
    let mut bed = Bed::balancer(tables)?;
    let v4 = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80));
    let v6 = Packet::tcp(CLIENT_V6, &at(VIP_V6, 80));
    bed.forwards(&v4, of_v4, backend, &way)?;
    bed.forwards(&v6, of_v6, backend, &way)?;
    let key = KeyV4::new("192.0.2.80".parse()?, TCP, 80).0;
    for BucketV4 { keys, .. } in &mut bed.tables.vips_v4 {
        keys.iter_mut().filter(|is| **is == key).for_each(|is| *is = 0);
    }
    let key = KeyV6::new(VIP_V6.parse()?, TCP, 80);
    for BucketV6 { entries } in &mut bed.tables.vips_v6 {
        let of_vip =
            |entry: &&mut xdp_prog::abi::EntryV6| [entry.high, entry.low, entry.tail] == [key.high, key.low, key.tail];
        entries.iter_mut().filter(of_vip).for_each(|entry| entry.tail = 0);
    }
    bed.kernel.write(&bed.tables)?;
    bed.unchanged(
        "the port is gone, the address is not",
        &v4.frame(),
        Verdict::SlowUnservedPort,
    )?;
    bed.unchanged(
        "the port is gone, the address is not",
        &v6.frame(),
        Verdict::SlowUnservedPort,
    )?;
    Ok(())
}

/// A retarget is one store of the meta word.
#[test]
fn a_vip_that_is_retargeted_sends_the_next_packet_elsewhere() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (before, after) = (Way::v4(1), Way::v6(2));
    let mut tables = Tables::new(0);
    let old = tables.backend(before.line());
    let new = tables.backend(after.line());
    let vip = tables.vip(VIP_V4, TCP, 80, &[old]);
    let other_unit = tables.table(&[new]);
    let mut bed = Bed::balancer(tables)?;
    let packet = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80));
    bed.forwards(&packet, vip, old, &before)?;
    let key = KeyV4::new("192.0.2.80".parse()?, TCP, 80).0;
    let retargeted = VipMeta::new(xdp_prog::abi::VipIndex(vip), other_unit, 256, 0).0;
    for BucketV4 { keys, metas } in &mut bed.tables.vips_v4 {
        for (is, meta) in keys.iter().zip(metas) {
            if *is == key {
                *meta = retargeted;
            }
        }
    }
    bed.kernel.write(&bed.tables)?;
    bed.forwards(&packet, vip, new, &after)?;
    Ok(())
}

/// An all-zero key is a free way, and an all-zero packet address must not find one.
#[test]
fn free_ways_match_nothing() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(Tables::new(0))?;
    for packet in [
        Packet::tcp("0.0.0.0:0", "0.0.0.0:0"),
        Packet::udp("0.0.0.0:0", "0.0.0.0:0"),
        Packet::tcp("[::]:0", "[::]:0"),
        Packet::udp("[::]:0", "[::]:0"),
    ] {
        bed.unchanged("zeroes", &packet.frame(), Verdict::PassNotVip)?;
    }
    Ok(())
}
