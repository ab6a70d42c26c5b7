//! What the fast path is asked, and what becomes of packets when its answers change between two questions.

use lb_core::slow::{Event, Outcome};
use xdp_prog::{abi::BackendLine, host, verdict::Verdict};

use crate::bed::{Bed, CLIENTS, VIPS, apart, checksum, counted, ipv4, link, transport};

/// A fragment of a UDP datagram; `at` in units of 8 bytes.
fn fragment(at: u16, part: &[u8], more: bool) -> Vec<u8> {
    let place = at | if more { 0x2000 } else { 0 };
    [
        link(&[], false),
        ipv4([CLIENTS[0], VIPS[0]], 0, 1, place, 17, &[], part),
    ]
    .concat()
}

const fn unchanged(_: usize, outcome: host::Outcome) -> host::Outcome {
    outcome
}

#[test]
fn every_fragment_takes_a_token_and_what_the_fast_path_admitted_takes_none() {
    let mut bed = Bed::new();
    let datagram = transport(17, [1, 53], &[5; 40]);
    let pieces = [
        fragment(2, &datagram[16..32], true),
        fragment(0, &datagram[..16], true),
        fragment(4, &datagram[32..], false),
    ];
    let asked = pieces.map(|piece| bed.step_asking(Verdict::SlowFragment, &piece, unchanged, |line| line).1);
    assert_eq!(asked, [vec![], vec![false; 2], vec![false]]);
    let whole = |flags| {
        let ip = ipv4(
            [CLIENTS[0], VIPS[0]],
            0,
            1,
            flags,
            17,
            &[1, 1, 1, 0],
            &transport(17, [1, 53], &[5; 1456]),
        );
        [link(&[], false), ip].concat()
    };
    let asked = bed
        .step_asking(Verdict::SlowIpOptions, &whole(0), unchanged, |line| line)
        .1;
    assert_eq!(asked, [false, true, true], "the packet, and its two pieces");
    let asked = bed
        .step_asking(Verdict::SlowTooBig, &whole(0), unchanged, |line| line)
        .1;
    assert_eq!(asked, [true; 3]);
}

#[test]
fn a_datagram_whose_first_fragment_is_refused_goes_nowhere() {
    let mut bed = Bed::new();
    let datagram = transport(17, [1, 53], &[5; 40]);
    bed.step(Verdict::SlowFragment, &fragment(2, &datagram[16..32], true));
    let refuse = |_, _| host::Outcome {
        verdict: Verdict::DropPacketLimit,
        frame: Vec::new(),
        choice: None,
        port: None,
    };
    let first = fragment(0, &datagram[..16], true);
    let (out, asked) = bed.step_asking(Verdict::SlowFragment, &first, refuse, |line| line);
    assert_eq!((out.counts.refused(Verdict::DropPacketLimit), asked.len()), (2, 1));
    let last = bed.step(Verdict::SlowFragment, &fragment(4, &datagram[32..], false));
    assert_eq!(last.counts.refused(Verdict::DropPacketLimit), 1);
    assert!(out.frames.is_empty() && last.frames.is_empty());
}

#[test]
fn a_line_that_was_taken_back_meanwhile_is_waited_for() {
    let mut bed = Bed::new();
    let ip = ipv4(
        [CLIENTS[0], VIPS[0]],
        0,
        1,
        0,
        17,
        &[1, 1, 1, 0],
        &transport(17, [1, 53], b"x"),
    );
    let frame = [link(&[], false), ip].concat();
    let (out, _) = bed.step_asking(Verdict::SlowIpOptions, &frame, unchanged, |line| BackendLine {
        meta: 0,
        ..line
    });
    assert!(out.frames.is_empty());
    assert!(matches!(out.events[..], [Event::NextHopWanted(_)]));
    assert_eq!(bed.wait(1).frames.len(), 1, "it is there again");
}

#[test]
fn pieces_go_all_or_none() {
    let mut bed = Bed::new();
    let ip = ipv4(
        [CLIENTS[0], VIPS[0]],
        0,
        1,
        0,
        17,
        &[],
        &transport(17, [1, 53], &[5; 3000]),
    );
    let frame = [link(&[], false), ip].concat();
    let lose_the_third = |asked, outcome: host::Outcome| match asked {
        3 => host::Outcome {
            verdict: Verdict::SlowNextHop,
            ..outcome
        },
        _ => outcome,
    };
    let (out, asked) = bed.step_asking(Verdict::SlowTooBig, &frame, lose_the_third, |line| line);
    assert_eq!((out.frames.len(), out.passed.len(), asked.len()), (0, 0, 4));
    let again = bed.wait(1);
    assert_eq!(counted(&again, Outcome::Split), 1);
    assert_eq!(again.frames.len(), 3);
}

#[test]
fn a_packet_with_options_leaves_like_this() {
    let mut bed = Bed::new();
    // A port whose flow goes to backend `a`.
    let out = (1..200).find_map(|port| {
        let ip = ipv4(
            [CLIENTS[0], VIPS[0]],
            0xb8,
            7,
            0x4000,
            17,
            &[148, 4, 0, 0],
            &transport(17, [port, 53], b"hi"),
        );
        let out = bed.step(Verdict::SlowIpOptions, &[link(&[5, 6, 7], false), ip].concat());
        (out.frames[0].frame[5] == b'a').then_some((port, out))
    });
    let (port, out) = out.unwrap();
    let frame = &out.frames[0].frame;
    let entropy = apart(frame).1[15];
    let mut outer = [
        0x45, 0xb8, 0, 54, 0, 0, 0x40, 0, 64, 4, 0, 0, 10, 9, 9, entropy, 10, 0, 0, 1,
    ];
    let sum = checksum(&outer).to_be_bytes();
    outer[10..12].copy_from_slice(&sum);
    let rest = [
        198, 51, 100, 7, 203, 0, 113, 10, 148, 4, 0, 0, 0, port as u8, 0, 53, 0, 10, 0, 0, b'h', b'i',
    ];
    let expected: Vec<&[u8]> = vec![
        &[
            4, 0, 0, 0, 0, b'a', 2, 0, 0, 0, 0, 0x0a, 0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0,
        ],
        &outer,
        &[0x46, 0xb8, 0, 34, 0, 7, 0x40, 0, 61, 17],
        &frame[26 + 20 + 10..26 + 20 + 12],
        &rest,
    ];
    assert_eq!(*frame, expected.concat());
    assert_eq!(checksum(&apart(frame).2[..24]), 0);
}
