//! Packets with IPv4 options, IPv6 extension headers or many VLAN tags go where the plain packets of their flow go.

mod lab_support;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use etherparse::{NetSlice, SlicedPacket};
use lab::{Proto, Topology, require_root};
use lab_support::{Bed, Caller, LbFile, Wire, behind, vip_v4, vip_v6, with_options};

const VIPS_V4: [fn() -> SocketAddr; 2] = [|| vip_v4(4, 80), || vip_v4(6, 80)];
const VIPS_V6: [fn() -> SocketAddr; 2] = [|| vip_v6(4, 80), || vip_v6(6, 80)];

fn bed(more: &str) -> Result<Bed> {
    Bed::start(Topology::builder().build()?, |topology, lb| {
        LbFile::new(topology, lb)
            .vips(&[(Proto::Udp, vip_v4(4, 80)), (Proto::Udp, vip_v6(4, 80))], "v4")
            .vips(&[(Proto::Udp, vip_v4(6, 80)), (Proto::Udp, vip_v6(6, 80))], "v6")
            .more(more)
    })
}

/// What makes a plain packet unusual.
type Change = (&'static str, fn(&[u8]) -> Vec<u8>);

const CHANGES_V4: [Change; 5] = [
    ("no operation", |ip| with_options(ip, &[1, 1, 1, 0])),
    ("record route", |ip| with_options(ip, &[7, 7, 4, 0, 0, 0, 0, 0])),
    ("timestamps", |ip| with_options(ip, &[68, 8, 5, 0, 0, 0, 0, 0])),
    ("router alert", |ip| with_options(ip, &[148, 4, 0, 0])),
    ("40 bytes", |ip| with_options(ip, &[1; 40])),
];

const CHANGES_V6: [Change; 5] = [
    ("destination options", |ip| behind(ip, 60, &[0, 0, 1, 4, 0, 0, 0, 0])),
    ("hop by hop", |ip| behind(ip, 0, &[0, 0, 1, 4, 0, 0, 0, 0])),
    ("both", |ip| {
        behind(&behind(ip, 60, &[0, 0, 1, 4, 0, 0, 0, 0]), 0, &[0, 0, 1, 4, 0, 0, 0, 0])
    }),
    ("24 bytes", |ip| {
        let mut header = [0; 24];
        // Of an experiment (RFC 4727): to be skipped. Linux takes no padding of more than 7 bytes.
        header[1..4].copy_from_slice(&[2, 0x1e, 20]);
        behind(ip, 60, &header)
    }),
    ("an atomic fragment", |ip| behind(ip, 44, &[0, 0, 0, 0, 9, 9, 9, 9])),
];

/// Sends each kind of packet of several flows: those that were not answered by their flow's own server, and how many there were.
fn strays(bed: &Bed, wire: &Wire, flows: usize) -> Result<(Vec<String>, usize)> {
    let (mut strays, mut all, mut servers) = (Vec::new(), 0, BTreeSet::new());
    let v4 = VIPS_V4.into_iter().map(|vip| (vip, CHANGES_V4));
    for (vip, changes) in v4.chain(VIPS_V6.into_iter().map(|vip| (vip, CHANGES_V6))) {
        for (name, change) in changes {
            for number in 0..flows {
                let caller = Caller::new(bed, vip())?;
                let plain = caller.call("plain")?;
                let text = format!("{name} {number}");
                wire.send(&change(&caller.datagram(&text)?))?;
                let answer = caller.answer_within(&text, Duration::from_millis(200))?;
                if answer.as_ref() != Some(&plain) {
                    strays.push(format!("{} {text}: {answer:?}, the flow's is {plain}", vip()));
                }
                all += 1;
                servers.insert(plain);
            }
        }
    }
    assert!(servers.len() == 3 || flows < 4);
    Ok((strays, all))
}

#[test]
fn options_and_extension_headers_do_not_change_where_a_flow_goes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let wire = Wire::to_lb(&bed)?;
    let (strays_on, _) = strays(&bed, &wire, 4)?;
    assert!(strays_on.is_empty(), "{strays_on:#?} {:?}", bed.lb().slow()?);
    // The twin.
    bed.lb().reload_lb(&bed.file().more("slow_path: { enabled: false }"))?;
    let (strays_off, all) = strays(&bed, &wire, 1)?;
    assert_eq!(strays_off.len(), all);
    Ok(())
}

#[test]
fn a_source_route_is_not_followed() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let wire = Wire::to_lb(&bed)?;
    let before = bed.lb().slow()?;
    let v4 = Caller::new(&bed, vip_v4(4, 80))?;
    for kind in [131, 137] {
        let options = [kind, 7, 4, 10, 20, 1, 1, 0];
        wire.send(&with_options(&v4.datagram("routed")?, &options))?;
        assert_eq!(v4.answer_within("routed", Duration::from_millis(100))?, None);
    }
    let v6 = Caller::new(&bed, vip_v6(4, 80))?;
    let mut header = [0; 24];
    header[1..4].copy_from_slice(&[2, 0, 1]);
    wire.send(&behind(&v6.datagram("routed")?, 43, &header))?;
    assert_eq!(v6.answer_within("routed", Duration::from_millis(100))?, None);
    assert_eq!(
        bed.lb().slow()?.since(&before).get("unusual/source_route"),
        Some(&3),
        "{:?}",
        bed.lb().slow()?
    );
    Ok(())
}

#[test]
fn ping_with_record_route_is_answered() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let client = bed.topology.client().ns();
    for options in ["-R", "-T tsonly"] {
        let said = client.within(
            Duration::from_secs(3),
            &format!("ping -n {options} -c 2 -i 0.1 -W 1 203.0.113.4"),
        )?;
        assert!(said.ok, "{options}: {said:?}");
    }
    Ok(())
}

/// The outer destination of a frame, behind `tags`.
fn tunnelled_to(frame: &[u8], tags: &[u8]) -> Option<std::net::IpAddr> {
    let mut frame = frame.to_vec();
    if frame.get(12..12 + tags.len())? != tags {
        return None;
    }
    frame.drain(12..12 + tags.len());
    match SlicedPacket::from_ethernet(&frame).ok()?.net? {
        NetSlice::Ipv4(ip) if [4, 41].contains(&ip.header().protocol().0) => {
            Some(ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) if [4, 41].contains(&ip.header().next_header().0) => {
            Some(ip.header().destination_addr().into())
        }
        NetSlice::Ipv4(_) | NetSlice::Ipv6(_) | NetSlice::Arp(_) => None,
    }
}

#[test]
fn three_vlan_tags_are_kept_on_the_way_to_the_same_backend() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let tags = [0x88, 0xa8, 0, 7, 0x81, 0, 0, 8, 0x81, 0, 0, 9];
    let bed = bed("")?;
    let wire = Wire::to_lb(&bed)?;
    for vip in VIPS_V4.into_iter().chain(VIPS_V6) {
        for number in 0..5 {
            let caller = Caller::new(&bed, vip())?;
            // Told from what else goes through the VIP: a client that is gone by the time of its answer says so to the server.
            let text = format!("tagged {} {number}", vip());
            let way = |tags: &[u8]| {
                wire.send_tagged(tags, &caller.datagram(&text)?)?;
                let ours = |frame: &[u8]| frame.ends_with(text.as_bytes()) && tunnelled_to(frame, tags).is_some();
                let frame = wire.next(Duration::from_secs(5), ours)?;
                let frame = frame.with_context(|| format!("{}: nothing came with {} tags", vip(), tags.len() / 4))?;
                Ok::<_, anyhow::Error>(tunnelled_to(&frame, tags))
            };
            assert_eq!(way(&[])?, way(&tags)?);
        }
    }
    Ok(())
}
