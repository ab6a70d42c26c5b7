//! Client affinity: all flows of a client's address go to one backend, of whatever ports, protocol and VIP with the same table; other
//! VIPs, and all of them without the feature, spread a client's flows.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use xdp_prog::abi::{MIN_TABLE_SLOTS, VipIndex, VipMeta, feature};

use crate::support::{
    bed::Bed,
    frames::{Packet, TCP, UDP},
    site::{VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

const BACKENDS: u8 = 7;
/// Ports with client affinity, and one without.
const STICKY: [u16; 2] = [80, 443];
const PLAIN: u16 = 8080;

fn ways() -> Vec<Way> {
    let way = |number| {
        if number % 2 == 0 {
            Way::v4(number)
        } else {
            Way::v6(number)
        }
    };
    (1..=BACKENDS).map(way).collect()
}

/// VIPs of both families and protocols on one table.
fn bed(features: u64) -> Result<Bed> {
    let mut tables = Tables::new(features);
    let backends: Vec<u16> = ways().iter().map(|way| tables.backend(way.line())).collect();
    let table = tables.table(&backends);
    let mut index = 0;
    for address in [VIP_V4, VIP_V6] {
        for (port, flags) in STICKY
            .map(|port| (port, VipMeta::CLIENT_AFFINITY))
            .into_iter()
            .chain([(PLAIN, 0)])
        {
            for protocol in [TCP, UDP] {
                index += 1;
                let meta = VipMeta::new(VipIndex(index), table, MIN_TABLE_SLOTS, flags);
                tables.vip_at(address, protocol, port, meta);
            }
        }
        tables.address(address, 0);
    }
    Bed::balancer(tables)
}

/// The backend that a packet is sent to, by the frame that independent code builds for each.
fn backend(bed: &Bed, ways: &[Way], packet: &Packet) -> Result<usize> {
    let left = bed.kernel.run(&packet.frame())?.frame;
    let fits: Vec<usize> = (0..ways.len())
        .filter(|&number| ways[number].carries(packet) == left)
        .collect();
    assert_eq!(fits.len(), 1, "{packet:?} goes to one of them, whole");
    Ok(fits[0])
}

/// Backends by client, of 24 flows each to the VIP's ports.
fn spread(bed: &Bed, vip: &str, ports: &[u16]) -> Result<BTreeMap<String, BTreeSet<usize>>> {
    let ways = ways();
    let mut seen = BTreeMap::<String, BTreeSet<usize>>::new();
    for client in 1..=40 {
        let client = if vip == VIP_V4 {
            format!("198.51.100.{client}")
        } else {
            format!("2001:db8:c::{client}")
        };
        for flow in 0..12 {
            for port in ports {
                let (from, to) = (at(&client, 40_000 + flow * 7), at(vip, *port));
                for packet in [Packet::tcp(&from, &to), Packet::udp(&from, &to)] {
                    let backend = backend(bed, &ways, &packet)?;
                    seen.entry(client.clone()).or_default().insert(backend);
                }
            }
        }
    }
    Ok(seen)
}

#[test]
fn a_client_has_one_backend_over_all_ports_and_protocols_of_an_address() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for features in [
        feature::AFFINITY,
        feature::ALL & !(feature::LIMITS | feature::SOURCE_PREFIX | feature::REDIRECT),
    ] {
        let bed = bed(features)?;
        for vip in [VIP_V4, VIP_V6] {
            let seen = spread(&bed, vip, &STICKY)?;
            assert!(seen.values().all(|backends| backends.len() == 1), "{vip}: {seen:?}");
            let all: BTreeSet<usize> = seen.values().flatten().copied().collect();
            assert!(all.len() >= 5, "clients spread over backends: {all:?}");
        }
    }
    Ok(())
}

/// The control: the same flows to the VIP beside it, on the same table.
#[test]
fn a_vip_without_affinity_beside_it_spreads_a_clients_flows() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = bed(feature::AFFINITY)?;
    for vip in [VIP_V4, VIP_V6] {
        let seen = spread(&bed, vip, &[PLAIN])?;
        assert!(seen.values().all(|backends| backends.len() >= 4), "{vip}: {seen:?}");
    }
    Ok(())
}

/// The twin: with the feature off the flag means nothing.
#[test]
fn without_the_feature_a_clients_flows_spread() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = bed(0)?;
    for vip in [VIP_V4, VIP_V6] {
        let seen = spread(&bed, vip, &STICKY)?;
        assert!(seen.values().all(|backends| backends.len() >= 4), "{vip}: {seen:?}");
    }
    Ok(())
}

/// The last bytes of an IPv6 client's address count as much as its network: two hosts of a /64 are two clients.
#[test]
fn hosts_of_one_network_are_clients_of_their_own() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = bed(feature::AFFINITY)?;
    for (vip, networks) in [
        (VIP_V4, ["198.51.100.", "198.51."]),
        (VIP_V6, ["2001:db8:c::", "2001:db8:"]),
    ] {
        for (network, of_hosts) in networks.into_iter().zip([true, false]) {
            let mut seen = BTreeSet::new();
            for number in 1..=60 {
                let client = match (of_hosts, vip == VIP_V4) {
                    (true, _) => format!("{network}{number}"),
                    (false, true) => format!("{network}{number}.9"),
                    (false, false) => format!("{network}{number}::9"),
                };
                seen.insert(backend(
                    &bed,
                    &ways(),
                    &Packet::tcp(&at(&client, 40_000), &at(vip, 80)),
                )?);
            }
            assert!(seen.len() >= 5, "{network}: {seen:?}");
        }
    }
    Ok(())
}
