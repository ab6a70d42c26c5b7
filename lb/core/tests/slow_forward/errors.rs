//! ICMP errors from the network, steered to the backend of the flow that they quote.

use lb_core::slow::Outcome;
use xdp_prog::verdict::Verdict;

use crate::bed::{Bed, CLIENTS, VIPS, apart, checksum, counted, ipv4, ipv6, link, octets, transport};

const ROUTERS: [&str; 2] = ["192.0.2.1", "2001:db8:99::1"];

/// An error from a router to the VIP address about `quote`.
fn error(v6: bool, kind: u8, code: u8, quote: &[u8]) -> Vec<u8> {
    let ends = [ROUTERS[usize::from(v6)], VIPS[usize::from(v6)]];
    let mut message = [&[kind, code, 0, 0, 0, 0, 5, 0][..], quote].concat();
    let pseudo = if v6 {
        [
            octets(ends[0]),
            octets(ends[1]),
            (message.len() as u32).to_be_bytes().into(),
            vec![0, 0, 0, 58],
        ]
        .concat()
    } else {
        Vec::new()
    };
    let sum = checksum(&[pseudo, message.clone()].concat()).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let packet = if v6 {
        ipv6(ends, 0, 58, &message)
    } else {
        ipv4(ends, 0xc0, 5, 0, 1, &[], &message)
    };
    [link(&[], v6), packet].concat()
}

/// The beginning of a reply from the VIP's port to the client's.
fn quote(v6: bool, protocol: u8, ports: [u16; 2], cut: usize, odd: bool) -> Vec<u8> {
    let ends = [VIPS[usize::from(v6)], CLIENTS[usize::from(v6)]];
    let segment = transport(protocol, ports, &[0; 1200]);
    match (v6, odd) {
        (false, false) => ipv4(ends, 0, 1, 0x4000, protocol, &[], &segment)[..20 + cut].to_vec(),
        (false, true) => ipv4(ends, 0, 1, 0x4000, protocol, &[1, 1, 1, 0], &segment)[..24 + cut].to_vec(),
        (true, false) => ipv6(ends, 0, protocol, &segment)[..40 + cut].to_vec(),
        (true, true) => {
            let fragment = [&[protocol, 0, 0, 1, 0, 0, 0, 9][..], &segment].concat();
            ipv6(ends, 0, 44, &fragment)[..48 + cut].to_vec()
        }
    }
}

#[test]
fn errors_go_to_the_backend_of_the_flow_byte_for_byte() {
    let mut bed = Bed::new();
    for v6 in [false, true] {
        let kinds: &[(u8, u8)] = if v6 {
            &[(1, 0), (2, 0), (3, 0), (4, 1)]
        } else {
            &[(3, 4), (3, 1), (11, 0), (12, 0)]
        };
        for (kind, code) in kinds {
            for (protocol, port) in [(6, 80), (17, 53)] {
                for (cut, odd) in [(8, false), (8, true), (300, false)] {
                    for client_port in 1000..1040 {
                        let frame = error(v6, *kind, *code, &quote(v6, protocol, [port, client_port], cut, odd));
                        let out = bed.step(Verdict::SlowIcmp, &frame);
                        assert_eq!(counted(&out, Outcome::Steered), 1, "{v6} {kind} {protocol} {cut} {odd}");
                        let ends = [CLIENTS[usize::from(v6)], VIPS[usize::from(v6)]];
                        let segment = transport(protocol, [client_port, port], &[]);
                        let plain = if v6 {
                            ipv6(ends, 0, protocol, &segment)
                        } else {
                            ipv4(ends, 0, 1, 0, protocol, &[], &segment)
                        };
                        let fast = bed.fast(&[link(&[], v6), plain].concat());
                        assert_eq!(out.passed[0].backend, fast.choice.unwrap().backend);
                        assert_eq!(apart(&out.frames[0].frame).2, &frame[14..]);
                    }
                }
            }
        }
    }
}

#[test]
fn in_a_transit_errors_go_where_older_flows_live_and_where_young_ones_do() {
    let mut bed = Bed::in_transit();
    let (mut both, mut one) = (0, 0);
    for client_port in 1000..1100 {
        let out = bed.step(
            Verdict::SlowIcmp,
            &error(false, 3, 4, &quote(false, 6, [80, client_port], 8, false)),
        );
        assert_eq!(counted(&out, Outcome::Steered), 1);
        let names: Vec<&str> = out.passed.iter().map(|passed| bed.name(passed.backend)).collect();
        let ends = [CLIENTS[0], VIPS[0]];
        let older = [
            link(&[], false),
            ipv4(ends, 0, 1, 0, 6, &[], &transport(6, [client_port, 80], &[])),
        ]
        .concat();
        let older = bed.fast(&older).choice.unwrap().backend;
        let mut syn = transport(6, [client_port, 80], &[]);
        syn[13] = 2;
        let young = [link(&[], false), ipv4(ends, 0, 1, 0, 6, &[], &syn)].concat();
        let young = bed.fast(&young).choice.unwrap().backend;
        if older == young {
            assert_eq!(names, [bed.name(older)]);
            one += 1;
        } else {
            assert_eq!(names, [bed.name(older), bed.name(young)]);
            both += 1;
        }
        assert_eq!(out.frames.len(), names.len());
    }
    assert!(both > 10 && one > 40, "{both} {one}");
    // Datagrams without a record are at one place.
    for client_port in 1000..1100 {
        let out = bed.step(
            Verdict::SlowIcmp,
            &error(false, 3, 3, &quote(false, 17, [53, client_port], 8, false)),
        );
        assert_eq!(out.frames.len(), 1);
    }
}

#[test]
fn what_is_not_about_a_flow_of_ours_is_not_steered() {
    let reply = ipv4([VIPS[0], CLIENTS[0]], 0, 1, 0, 1, &[], &[0, 0, 1, 2, 3, 4, 5, 6]);
    let backwards = ipv4([CLIENTS[0], VIPS[0]], 0, 1, 0, 6, &[], &transport(6, [1000, 80], &[]));
    let elsewhere = ipv4(
        ["203.0.113.99", CLIENTS[0]],
        0,
        1,
        0,
        6,
        &[],
        &transport(6, [80, 1000], &[]),
    );
    let later = ipv4(
        [VIPS[0], CLIENTS[0]],
        0,
        1,
        0x2001,
        6,
        &[],
        &transport(6, [80, 1000], &[]),
    );
    let good = quote(false, 6, [80, 1000], 8, false);
    let mut garbled = error(false, 3, 4, &good);
    garbled[40] ^= 1;
    let cases = [
        (error(false, 3, 4, &reply), Outcome::IcmpIgnored),
        (error(false, 3, 4, &backwards), Outcome::QuoteUnknown),
        (error(false, 3, 4, &elsewhere), Outcome::QuoteUnknown),
        (error(false, 3, 4, &later), Outcome::QuoteUnknown),
        (error(false, 3, 4, &good[..22]), Outcome::QuoteUnknown),
        (error(false, 3, 4, &[]), Outcome::QuoteUnknown),
        (
            error(false, 3, 4, &quote(false, 6, [99, 1000], 8, false)),
            Outcome::QuoteUnknown,
        ),
        (error(false, 4, 0, &good), Outcome::IcmpIgnored),
        (error(false, 5, 0, &good), Outcome::IcmpIgnored),
        (
            error(true, 2, 0, &quote(true, 6, [80, 1000], 2, true)),
            Outcome::QuoteUnknown,
        ),
        (garbled, Outcome::Malformed),
    ];
    for (position, (frame, outcome)) in cases.iter().enumerate() {
        let out = Bed::new().step(Verdict::SlowIcmp, frame);
        assert_eq!(
            counted(&out, *outcome),
            1,
            "{position}: {:?}",
            out.counts.iter().collect::<Vec<_>>()
        );
        assert!(out.frames.is_empty(), "{position}");
    }
}
