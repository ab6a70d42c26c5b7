//! What an attacker on the network tries against the slow path, and must not get: others' budgets, ways past the limits and the
//! rules of plain packets, answers that no host gives.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "slow_forward/bed.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod bed;

use lb_core::{
    desired::Rate,
    slow::{Bounds, Budgets, Common, FragmentBounds, Kind, Outcome, Output},
};
use xdp_prog::{host, verdict::Verdict};

use bed::{Bed, CLIENTS, DENIED, TIMEOUT_NS, VIPS, checksum, counted, ipv4, ipv6, link, octets, transport};

/// Nothing but the work of these kinds.
fn only(kinds: &[(Kind, u32)]) -> Common {
    let rate = |kind| {
        let burst = kinds
            .iter()
            .find(|(other, _)| *other == kind)
            .map_or(0, |(_, burst)| *burst);
        Rate {
            per_second: burst.min(1),
            burst,
        }
    };
    let bounds = Bounds {
        budgets: Budgets::new(rate),
        replies_per_source: 1000,
        ..Bounds::default()
    };
    Common::new(bounds, 1)
}

/// An ICMP message with its checksum.
fn icmp(ends: [&str; 2], mut message: Vec<u8>) -> Vec<u8> {
    let pseudo = match ends[0].contains(':') {
        true => [
            &octets(ends[0]),
            &octets(ends[1]),
            &(message.len() as u32).to_be_bytes()[..],
            &[0, 0, 0, 58],
        ]
        .concat(),
        false => Vec::new(),
    };
    let sum = checksum(&[pseudo, message.clone()].concat()).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

fn solicitation(to: &str, hop_limit: u8) -> Vec<u8> {
    let ends = [CLIENTS[1], to];
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0], &octets(VIPS[1])[..]].concat();
    let mut packet = ipv6(ends, 0, 58, &icmp(ends, message));
    packet[7] = hop_limit;
    [link(&[], true), packet].concat()
}

#[test]
fn a_solicitation_from_behind_a_router_takes_nothing_of_those_from_the_link() {
    let bed = Bed::new();
    for to in [VIPS[1], "ff02::1:ff00:10"] {
        assert_eq!(bed.fast(&solicitation(to, 255)).verdict, Verdict::SlowNeighbour);
        for hop_limit in [0, 1, 64, 254] {
            let expected = if to == VIPS[1] {
                Verdict::SlowIcmp
            } else {
                Verdict::PassNotVip
            };
            assert_eq!(bed.fast(&solicitation(to, hop_limit)).verdict, expected);
        }
    }
}

#[test]
fn who_is_denied_takes_nothing_of_the_others_budgets() {
    for v6 in [false, true] {
        let echo = |source: &str| {
            let ends = [source, VIPS[usize::from(v6)]];
            let message = icmp(ends, vec![if v6 { 128 } else { 8 }, 0, 0, 0, 1, 2, 3, 4]);
            let packet = if v6 {
                ipv6(ends, 0, 58, &message)
            } else {
                ipv4(ends, 0, 1, 0, 1, &[], &message)
            };
            [link(&[], v6), packet].concat()
        };
        let mut bed = Bed::new();
        bed.common = only(&[(Kind::Echo, 1)]);
        for _ in 0..10 {
            let out = bed.step(Verdict::SlowIcmp, &echo(DENIED[usize::from(v6)]));
            assert_eq!(out.counts.refused(Verdict::DropSourceDenied), 1);
        }
        let out = bed.step(Verdict::SlowIcmp, &echo(CLIENTS[usize::from(v6)]));
        assert_eq!(counted(&out, Outcome::EchoReply), 1);
    }
}

/// UDP to a port that nobody serves, behind an option; or TCP.
fn unserved(protocol: u8, place: u16, options: &[u8]) -> Vec<u8> {
    let segment = transport(protocol, [1000, 9], &[0; 8]);
    [
        link(&[], false),
        ipv4([CLIENTS[0], VIPS[0]], 0, 7, place, protocol, options, &segment),
    ]
    .concat()
}

#[test]
fn options_and_fragments_are_no_way_past_the_budget_of_rejects() {
    let cases = [
        (Verdict::SlowIpOptions, unserved(17, 0, &[1, 1, 1, 0])),
        (Verdict::SlowIpOptions, unserved(6, 0, &[1, 1, 1, 0])),
        (Verdict::SlowIpOptions, unserved(132, 0, &[1, 1, 1, 0])),
        (Verdict::SlowFragment, unserved(17, 0x2000, &[])),
    ];
    for (position, (verdict, frame)) in cases.iter().enumerate() {
        let mut bed = Bed::new();
        bed.common = only(&[(Kind::Unusual, 10), (Kind::Fragment, 10), (Kind::Reject, 1)]);
        let first = bed.step(*verdict, frame);
        assert_eq!(first.frames.len(), 1, "{position}");
        bed.wait(0);
        bed.common = only(&[(Kind::Unusual, 10), (Kind::Fragment, 10)]);
        let second = bed.step(*verdict, frame);
        assert_eq!(counted(&second, Outcome::OverBudget), 1, "{position}");
        assert!(second.frames.is_empty(), "{position}");
    }
}

#[test]
fn options_are_no_way_past_the_budget_of_what_is_too_big() {
    let segment = transport(17, [1000, 53], &[0; 1460]);
    let packet = ipv4([CLIENTS[0], VIPS[0]], 0, 7, 0x4000, 17, &[1, 1, 1, 0], &segment);
    let mut bed = Bed::new();
    bed.common = only(&[(Kind::Unusual, 10)]);
    let out = bed.step(Verdict::SlowIpOptions, &[link(&[], false), packet].concat());
    assert_eq!(counted(&out, Outcome::OverBudget), 1);
}

/// A fragment of an echo request: the first, or the last.
fn echo_fragment(v6: bool, last: bool) -> Vec<u8> {
    let ends = [CLIENTS[usize::from(v6)], VIPS[usize::from(v6)]];
    let message = icmp(
        ends,
        [&[if v6 { 128 } else { 8 }, 0, 0, 0, 1, 2, 3, 4][..], &[7; 56]].concat(),
    );
    let part = if last { &message[32..] } else { &message[..32] };
    let packet = if v6 {
        let place = if last { 32 } else { 1 };
        ipv6(ends, 0, 44, &[&[58, 0, 0, place, 0, 0, 0, 5], part].concat())
    } else {
        ipv4(ends, 0, 5, if last { 4 } else { 0x2000 }, 1, &[], part)
    };
    [link(&[], v6), packet].concat()
}

#[test]
fn a_fragmented_echo_request_whose_first_gets_no_answer_gets_none_at_all() {
    for v6 in [false, true] {
        for first_last in [false, true] {
            let mut bed = Bed::new();
            bed.common = Common::new(
                Bounds {
                    replies_per_source: 0,
                    ..Bounds::default()
                },
                1,
            );
            let mut out = Output::default();
            for last in [first_last, !first_last] {
                let step = bed.step(Verdict::SlowFragment, &echo_fragment(v6, last));
                assert!(step.frames.is_empty(), "{v6} {first_last} {last}");
                out.counts.merge(&step.counts);
            }
            assert_eq!(counted(&out, Outcome::OverSourceLimit), 2, "{v6} {first_last}");
        }
    }
}

#[test]
fn fragmented_echo_requests_take_from_the_budget_of_echo() {
    for v6 in [false, true] {
        let mut bed = Bed::new();
        bed.common = only(&[(Kind::Fragment, 10)]);
        let first = bed.step(Verdict::SlowFragment, &echo_fragment(v6, false));
        let last = bed.step(Verdict::SlowFragment, &echo_fragment(v6, true));
        assert!(first.frames.is_empty() && last.frames.is_empty());
    }
}

#[test]
fn a_datagram_of_which_a_later_fragment_is_over_the_limit_goes_no_further() {
    let mut bed = Bed::new();
    let datagram = transport(17, [1, 53], &[5; 40]);
    let piece = |at: u16, part: &[u8], more: bool| {
        let place = at | if more { 0x2000 } else { 0 };
        [
            link(&[], false),
            ipv4([CLIENTS[0], VIPS[0]], 0, 1, place, 17, &[], part),
        ]
        .concat()
    };
    let over = |_, _| host::Outcome {
        verdict: Verdict::DropPacketLimit,
        frame: Vec::new(),
        choice: None,
        port: None,
    };
    assert_eq!(
        bed.step(Verdict::SlowFragment, &piece(0, &datagram[..16], true))
            .frames
            .len(),
        1
    );
    let second = piece(2, &datagram[16..32], true);
    let (out, asked) = bed.step_asking(Verdict::SlowFragment, &second, over, |line| line);
    assert_eq!((out.counts.refused(Verdict::DropPacketLimit), asked), (1, vec![false]));
    let out = bed.step(Verdict::SlowFragment, &piece(4, &datagram[32..], false));
    assert_eq!(out.counts.refused(Verdict::DropPacketLimit), 1);
}

#[test]
fn what_is_malformed_as_a_plain_packet_is_malformed_behind_options() {
    let mut bed = Bed::new();
    for (protocol, least) in [(6, 20), (17, 8)] {
        let segment = transport(protocol, [1000, if protocol == 6 { 80 } else { 53 }], &[]);
        for len in 0..=segment.len() {
            let plain = ipv4([CLIENTS[0], VIPS[0]], 0, 1, 0, protocol, &[], &segment[..len]);
            let plain = bed.fast(&[link(&[], false), plain].concat()).verdict;
            assert_eq!(plain == Verdict::DropMalformed, len < least, "{protocol} {len}");
            let packet = ipv4([CLIENTS[0], VIPS[0]], 0, 1, 0, protocol, &[1, 1, 1, 0], &segment[..len]);
            let out = bed.step(Verdict::SlowIpOptions, &[link(&[], false), packet].concat());
            assert_eq!(counted(&out, Outcome::Malformed) == 1, len < least, "{protocol} {len}");
        }
    }
}

#[test]
fn a_damaged_header_is_neither_answered_nor_made_good() {
    let udp = transport(17, [1000, 53], &[0; 1480]);
    for (verdict, mut frame) in [
        (Verdict::SlowUnservedPort, unserved(17, 0, &[])),
        (Verdict::SlowUnservedPort, unserved(6, 0, &[])),
        (Verdict::SlowProtocol, unserved(132, 0, &[])),
        (
            Verdict::SlowTooBig,
            [link(&[], false), ipv4([CLIENTS[0], VIPS[0]], 0, 7, 0, 17, &[], &udp)].concat(),
        ),
        (
            Verdict::SlowTooBig,
            [
                link(&[], false),
                ipv4([CLIENTS[0], VIPS[0]], 0, 7, 0x4000, 17, &[], &udp),
            ]
            .concat(),
        ),
    ] {
        assert!(!Bed::new().step(verdict, &frame).frames.is_empty());
        // Another source than it was sent with.
        frame[29] ^= 0x10;
        let out = Bed::new().step(verdict, &frame);
        assert_eq!(
            (out.frames.len(), counted(&out, Outcome::Malformed)),
            (0, 1),
            "{verdict:?}"
        );
    }
}

#[test]
fn every_fragment_of_ipv6_that_is_too_big_says_so_and_of_ipv4_the_first_only() {
    for v6 in [false, true] {
        let ends = [CLIENTS[usize::from(v6)], VIPS[usize::from(v6)]];
        let datagram = transport(17, [1000, 53], &[0; 3000]);
        let fragment = |from: usize, to: usize| {
            let part = &datagram[from..to];
            let packet = if v6 {
                let place = (from as u16 | 1).to_be_bytes();
                ipv6(ends, 0, 44, &[&[17, 0, place[0], place[1], 0, 0, 0, 5], part].concat())
            } else {
                ipv4(ends, 0, 5, 0x6000 | (from / 8) as u16, 17, &[], part)
            };
            [link(&[], v6), packet].concat()
        };
        let mut bed = Bed::new();
        // The first is smaller than those behind it, and fits.
        let first = bed.step(Verdict::SlowFragment, &fragment(0, 512));
        assert_eq!(counted(&first, Outcome::Forwarded), 1);
        let second = bed.step(Verdict::SlowFragment, &fragment(512, 512 + 1448));
        let outcome = if v6 { Outcome::TooBig } else { Outcome::Unanswerable };
        assert_eq!(
            counted(&second, outcome),
            1,
            "{:?}",
            second.counts.iter().collect::<Vec<_>>()
        );
        assert_eq!(second.frames.len(), usize::from(v6));
    }
}

#[test]
fn forged_sources_do_not_shut_fragments_out() {
    let bounds = FragmentBounds::default();
    let mut bed = Bed::with(1500, bounds);
    let mut out = 0;
    for source in 0..2 * bounds.datagrams {
        let source = format!("100.64.{}.{}", source >> 8, source & 0xff);
        let packet = ipv4([&source, VIPS[0]], 0, 1, 100, 17, &[], &[1; 1000]);
        out += counted(
            &bed.step(Verdict::SlowFragment, &[link(&[], false), packet].concat()),
            Outcome::FragmentRoom,
        );
    }
    assert_eq!(out, u64::from(bounds.datagrams), "the oldest made way");
    let datagram = transport(17, [1, 53], &[5; 40]);
    let piece = |place: u16, part: &[u8]| {
        [
            link(&[], false),
            ipv4([CLIENTS[0], VIPS[0]], 0, 1, place, 17, &[], part),
        ]
        .concat()
    };
    bed.step(Verdict::SlowFragment, &piece(2, &datagram[16..]));
    let whole = bed.step(Verdict::SlowFragment, &piece(0x2000, &datagram[..16]));
    assert_eq!(counted(&whole, Outcome::Forwarded), 2);
}

#[test]
fn fragments_that_are_never_completed_wake_nobody_more_than_ten_times_a_second() {
    let mut bed = Bed::new();
    let mut turns = 0;
    for source in 0..4000_u32 {
        bed.now_ns = u64::from(source) * 1_000_000;
        let source = format!("100.64.{}.{}", source >> 8, source & 0xff);
        let packet = ipv4([&source, VIPS[0]], 0, 1, 100, 17, &[], &[1; 100]);
        bed.step(Verdict::SlowFragment, &[link(&[], false), packet].concat());
    }
    while let Some(due) = bed.engine.deadline(&bed.common) {
        turns += 1;
        bed.wait(due - bed.now_ns);
    }
    assert!(bed.now_ns <= 4_000_000_000 + TIMEOUT_NS, "{}", bed.now_ns);
    assert!((1..=41).contains(&turns), "{turns} turns in four seconds");
}
