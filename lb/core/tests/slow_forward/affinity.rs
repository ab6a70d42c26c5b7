//! Client affinity is the fast path's choice and nobody else's: fragments, packets with options or extension headers and ICMP errors
//! of any flow of a client go where its plain packets go.

use std::collections::BTreeSet;

use lb_core::slow::{Outcome, Output};
use xdp_prog::{abi::BackendIndex, verdict::Verdict};

use crate::bed::{Bed, CLIENTS, VIPS, checksum, counted, ipv4, ipv6, link, octets, transport};

/// UDP with client affinity, and without.
const STICKY: u16 = 55;
const PLAIN: u16 = 53;
const UDP: u8 = 17;

/// An IP packet in its frame; `place` says which fragment it is, `next` what an IPv6 payload begins with.
fn frame(v6: bool, ends: [&str; 2], place: u16, next: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let ip = if v6 {
        ipv6(ends, 0, next, payload)
    } else {
        ipv4(ends, 0, 77, place, next, options, payload)
    };
    [link(&[], v6), ip].concat()
}

/// A fragment of `datagram`: bytes `from..to`.
fn fragment(v6: bool, ends: [&str; 2], datagram: &[u8], from: usize, to: usize) -> Vec<u8> {
    let more = to < datagram.len();
    if v6 {
        let place = (from as u16 | u16::from(more)).to_be_bytes();
        let header = [UDP, 0, place[0], place[1], 0, 0, 0, 77];
        frame(true, ends, 0, 44, &[], &[&header, &datagram[from..to]].concat())
    } else {
        let place = (from / 8) as u16 | if more { 0x2000 } else { 0 };
        frame(false, ends, place, UDP, &[], &datagram[from..to])
    }
}

/// A router tells the VIP that a reply to this client's port was too big.
fn too_big(v6: bool, ends: [&str; 2], ports: [u16; 2]) -> Vec<u8> {
    let back = [ends[1], ends[0]];
    let reply = transport(UDP, [ports[1], ports[0]], &[0; 64]);
    let (kind, quote) = if v6 {
        ([2, 0], ipv6(back, 0, UDP, &reply))
    } else {
        ([3, 4], ipv4(back, 0, 1, 0x4000, UDP, &[], &reply))
    };
    let router = if v6 { "2001:db8:99::1" } else { "192.0.2.1" };
    let ends = [router, ends[1]];
    let mut message = [&kind[..], &[0, 0, 0, 0, 5, 0], &quote].concat();
    let len = (message.len() as u32).to_be_bytes();
    let pseudo = [octets(ends[0]), octets(ends[1]), len.into(), vec![0, 0, 0, 58]].concat();
    let summed = if v6 {
        [pseudo, message.clone()].concat()
    } else {
        message.clone()
    };
    let sum = checksum(&summed).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    frame(v6, ends, 0, if v6 { 58 } else { 1 }, &[], &message)
}

fn backend(out: &Output, what: &str) -> BackendIndex {
    assert_eq!(out.passed.len(), out.frames.len(), "{what}");
    let backends: BTreeSet<_> = out.passed.iter().map(|passed| passed.backend).collect();
    assert_eq!(backends.len(), 1, "{what}: {:?}", out.counts.iter().collect::<Vec<_>>());
    out.passed[0].backend
}

/// Backends of one client's flows to a port of the VIP, by all the ways that packets take.
fn backends(v6: bool, client: &str, vip_port: u16) -> BTreeSet<BackendIndex> {
    let mut bed = Bed::new();
    let ends = [client, VIPS[usize::from(v6)]];
    let mut seen = BTreeSet::new();
    for client_port in 2000..2024 {
        let ports = [client_port, vip_port];
        let datagram = transport(UDP, ports, &[7; 100]);

        let fast = bed.fast(&frame(v6, ends, 0, UDP, &[], &datagram));
        let here = BTreeSet::from([fast.choice.unwrap().backend]);

        bed.step(Verdict::SlowFragment, &fragment(v6, ends, &datagram, 48, 108));
        let out = bed.step(Verdict::SlowFragment, &fragment(v6, ends, &datagram, 0, 48));
        assert_eq!(counted(&out, Outcome::Forwarded), 2);
        assert_eq!(BTreeSet::from([backend(&out, "fragments")]), here);

        let odd = if v6 {
            let options = [UDP, 0, 1, 4, 0, 0, 0, 0];
            frame(true, ends, 0, 60, &[], &[&options, &datagram[..]].concat())
        } else {
            frame(false, ends, 0, UDP, &[1, 1, 1, 0], &datagram)
        };
        let why = if v6 {
            Verdict::SlowExtensionHeader
        } else {
            Verdict::SlowIpOptions
        };
        let out = bed.step(why, &odd);
        assert_eq!(BTreeSet::from([backend(&out, "options")]), here);

        let out = bed.step(Verdict::SlowIcmp, &too_big(v6, ends, ports));
        assert_eq!(counted(&out, Outcome::Steered), 1);
        assert_eq!(BTreeSet::from([backend(&out, "ICMP error")]), here);
        seen.extend(here);
    }
    seen
}

#[test]
fn everything_of_a_client_goes_to_one_backend_by_whatever_way_it_comes() {
    let clients = |v6: bool| {
        (1..20).map(move |n| {
            if v6 {
                format!("2001:db8:c::{n}")
            } else {
                format!("198.51.100.{n}")
            }
        })
    };
    for v6 in [false, true] {
        let mut all = BTreeSet::new();
        for client in clients(v6) {
            let seen = backends(v6, &client, STICKY);
            assert_eq!(seen.len(), 1, "{client} has one backend");
            all.extend(seen);
        }
        assert!(all.len() > 2, "clients spread: {all:?}");
    }
}

/// The control: without affinity the same flows spread, and every way still agrees flow by flow.
#[test]
fn without_affinity_the_flows_of_a_client_spread() {
    for v6 in [false, true] {
        let seen = backends(v6, CLIENTS[usize::from(v6)], PLAIN);
        assert!(seen.len() > 2, "{seen:?}");
    }
}
