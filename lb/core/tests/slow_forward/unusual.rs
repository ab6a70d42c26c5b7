//! Packets with options, extension headers and many tags go where the plain packet of the flow goes.

use lb_core::slow::{Outcome, To};
use xdp_prog::verdict::Verdict;

use crate::bed::{
    Bed, CLIENTS, Dice, IFINDEX, OTHER_IFINDEX, VIPS, apart, checksum, counted, ipv4, ipv6, link, transport,
};

/// An outer header without what a packet's length decides.
fn without_length(outer: &[u8]) -> Vec<u8> {
    let mut outer = outer.to_vec();
    let places: &[usize] = if outer.len() == 20 { &[2, 3, 10, 11] } else { &[4, 5] };
    for place in places {
        outer[*place] = 0;
    }
    outer
}

/// Extension headers in front of `next`: what to write into the IPv6 header, and their bytes.
fn extensions(dice: &mut Dice, next: u8) -> (u8, Vec<u8>) {
    let pad = [1, 4, 0, 0, 0, 0];
    let mut number = next;
    let mut bytes = Vec::new();
    for _ in 0..1 + dice.below(4) {
        let (kind, body): (u8, Vec<u8>) = match dice.below(4) {
            0 => (60, [&[number, 0][..], &pad].concat()),
            1 => (43, vec![number, 0, 4, 0, 0, 0, 0, 0]),
            2 => (51, [&[number, 4][..], &[7; 22]].concat()),
            // An atomic fragment (RFC 6946).
            _ if !bytes.is_empty() => (60, [&[number, 1][..], &pad, &[1, 6, 0, 0, 0, 0, 0, 0]].concat()),
            _ => (44, vec![number, 0, 0, 0, 1, 2, 3, 4]),
        };
        bytes.splice(..0, body);
        number = kind;
    }
    if dice.below(2) == 0 {
        bytes.splice(..0, [&[number, 0][..], &pad].concat());
        number = 0;
    }
    (number, bytes)
}

#[test]
fn an_unusual_packet_gets_the_backend_and_the_outer_header_of_the_plain_one() {
    let mut bed = Bed::new();
    let mut seen = [0; 4];
    for case in 0..4000 {
        let mut dice = Dice(case);
        let v6 = dice.below(2) == 1;
        let (client, vip) = (CLIENTS[usize::from(v6)], VIPS[usize::from(v6)]);
        let (protocol, port) = if dice.below(2) == 0 { (6, 80) } else { (17, 53) };
        let tags: Vec<u16> = (0..dice.below(5)).map(|_| dice.next() as u16).collect();
        let tos = dice.next() as u8;
        let len = dice.below(1000);
        let segment = transport(protocol, [dice.next() as u16, port], &dice.bytes(len));
        let plain_tags = &tags[..tags.len().min(2)];
        let (plain, unusual) = if v6 {
            let (next, extensions) = extensions(&mut dice, protocol);
            (
                ipv6([client, vip], tos, protocol, &segment),
                ipv6([client, vip], tos, next, &[extensions, segment].concat()),
            )
        } else {
            let options: &[u8] = match dice.below(4) {
                0 => &[1, 1, 1, 0],
                1 => &[148, 4, 0, 0],
                2 => &[7, 7, 4, 0, 0, 0, 0, 0],
                _ => &[0, 0xff, 0xff, 0xff],
            };
            (
                ipv4([client, vip], tos, 7, 0x4000, protocol, &[], &segment),
                ipv4([client, vip], tos, 7, 0x4000, protocol, options, &segment),
            )
        };
        let fast = bed.fast(&[link(plain_tags, v6), plain].concat());
        let verdict = if v6 {
            Verdict::SlowExtensionHeader
        } else {
            Verdict::SlowIpOptions
        };
        let mut padded = [link(&tags, v6), unusual.clone()].concat();
        padded.extend(vec![0xee; dice.below(9)]);
        let out = bed.step(verdict, &padded);
        assert_eq!(
            counted(&out, Outcome::Forwarded),
            1,
            "case {case}: {:?}",
            out.counts.iter().collect::<Vec<_>>()
        );
        let (plain_tags_out, plain_outer, _) = apart(&fast.frame);
        let (tags_out, outer, inner) = apart(&out.frames[0].frame);
        assert_eq!(inner, unusual, "case {case}: to the byte");
        assert_eq!(without_length(outer), without_length(plain_outer), "case {case}");
        assert_eq!(
            out.frames[0].frame[..12],
            fast.frame[..12],
            "case {case}: MAC addresses"
        );
        let (backend, to) = match (fast.verdict, out.frames[0].to) {
            (Verdict::ForwardRedirect, to) => (2, to),
            (_, to) => (usize::from(fast.frame[5] - b'a'), to),
        };
        seen[backend] += 1;
        assert_eq!(
            to,
            To::Interface(if backend == 2 { OTHER_IFINDEX } else { IFINDEX }),
            "case {case}"
        );
        let expected = if backend == 3 { vec![77] } else { tags };
        assert_eq!(tags_out, expected, "case {case}");
        assert!(plain_tags_out.len() <= 2);
        assert_eq!(out.passed.len(), 1);
        assert_eq!(out.passed[0].backend, fast.choice.unwrap().backend, "case {case}");
        assert_eq!(out.passed[0].bytes as usize, unusual.len());
    }
    assert!(seen.iter().all(|count| *count > 400), "{seen:?}");
}

#[test]
fn a_syn_behind_options_is_clamped_and_its_checksum_follows() {
    let mut bed = Bed::new();
    let mut segment = transport(6, [40_000, 80], &[2, 4, 0x05, 0xb4]);
    segment[12..14].copy_from_slice(&[0x60, 0x02]);
    let pseudo = [
        crate::bed::octets(CLIENTS[0]),
        crate::bed::octets(VIPS[0]),
        vec![0, 6, 0, 24],
    ]
    .concat();
    let sum = checksum(&[pseudo.clone(), segment.clone()].concat()).to_be_bytes();
    segment[16..18].copy_from_slice(&sum);
    let packet = ipv4([CLIENTS[0], VIPS[0]], 0, 1, 0, 6, &[1, 1, 1, 0], &segment);
    let out = bed.step(Verdict::SlowIpOptions, &[link(&[], false), packet].concat());
    let (_, outer, inner) = apart(&out.frames[0].frame);
    let expected = 1500 - outer.len() as u16 - 40;
    assert_eq!(inner[24 + 22..24 + 24], expected.to_be_bytes());
    assert_eq!(checksum(&[&pseudo, &inner[24..]].concat()), 0);
}

#[test]
fn what_must_not_be_forwarded_says_why() {
    let v4 = |options: &[u8]| {
        let packet = ipv4(
            [CLIENTS[0], VIPS[0]],
            0,
            1,
            0,
            17,
            options,
            &transport(17, [1, 53], b"x"),
        );
        [link(&[], false), packet].concat()
    };
    let v6 = |next, bytes: &[u8]| [link(&[], true), ipv6([CLIENTS[1], VIPS[1]], 0, next, bytes)].concat();
    let udp = transport(17, [1, 53], b"x");
    let behind = |header: &[u8]| [header, &udp].concat();
    let chain: Vec<u8> = (0..9)
        .flat_map(|at| [if at == 8 { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0])
        .collect();
    let cases = [
        (v4(&[131, 3, 4, 0]), Outcome::SourceRoute),
        (v4(&[1, 137, 3, 4]), Outcome::SourceRoute),
        (v4(&[7, 1, 0, 0]), Outcome::Malformed),
        (v4(&[7, 5, 0, 0]), Outcome::Malformed),
        (v4(&[1, 1, 1, 7]), Outcome::Malformed),
        (v6(43, &behind(&[17, 0, 4, 1, 0, 0, 0, 0])), Outcome::SourceRoute),
        (
            v6(60, &behind(&[0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0])),
            Outcome::HeaderChain,
        ),
        (v6(60, &behind(&[50, 0, 1, 4, 0, 0, 0, 0])), Outcome::HeaderChain),
        (v6(60, &behind(&[59, 0, 1, 4, 0, 0, 0, 0])), Outcome::HeaderChain),
        (v6(60, &behind(&chain)), Outcome::HeaderChain),
        (v6(60, &[17, 200, 1, 4, 0, 0, 0, 0]), Outcome::Malformed),
        (
            v6(44, &behind(&[44, 0, 0, 1, 0, 0, 0, 1, 17, 0, 0, 1, 0, 0, 0, 1])),
            Outcome::HeaderChain,
        ),
        (
            v6(44, &[60, 0, 0, 1, 0, 0, 0, 1, 17, 9, 1, 4, 0, 0, 0, 0]),
            Outcome::FragmentTiny,
        ),
    ];
    for (position, (frame, outcome)) in cases.iter().enumerate() {
        let out = Bed::new().step(Verdict::SlowIpOptions, frame);
        assert_eq!(
            counted(&out, *outcome),
            1,
            "{position}: {:?}",
            out.counts.iter().collect::<Vec<_>>()
        );
        assert!(out.frames.is_empty());
    }
}
