//! What must not be answered, and is not.

use lb_core::slow::{Event, Outcome};
use xdp_prog::verdict::Verdict;

use crate::{
    bed::{Bed, MAC},
    frames::{HIM, checksum, echo, packet, pseudo},
    golden,
};

const UDP: [u8; 12] = [0x9c, 0x40, 0, 54, 0, 12, 0, 0, 1, 2, 3, 4];

fn question(name: &str) -> Vec<u8> {
    let golden = golden::all().into_iter().find(|golden| golden.name == name);
    golden.unwrap().question
}

/// A neighbour solicitation as it comes, changed before and after its checksum is made right.
fn solicitation(change: impl FnOnce(&mut Vec<u8>), after: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = question("solicitation");
    change(&mut frame);
    let len = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    frame[56..58].fill(0);
    let address = |at: usize| <[u8; 16]>::try_from(&frame[at..at + 16]).unwrap().into();
    let front = pseudo(address(22), address(38), 58, len.into());
    let sum = checksum(&[&front, &frame[54..]]);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    after(&mut frame);
    frame
}

#[test]
fn nobody_that_is_no_single_host_is_answered() {
    let mut bed = Bed::open();
    let v4 = [
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "203.0.113.10",
    ];
    let v6 = ["::", "::1", "ff02::1", "::ffff:198.51.100.7", "2001:db8::10"];
    for (sources, destination) in [(&v4[..], "203.0.113.10"), (&v6, "2001:db8::10")] {
        for source in sources {
            for (verdict, frame) in [
                (Verdict::SlowIcmp, echo(source, destination, b"?")),
                (Verdict::SlowUnservedPort, packet(source, destination, 17, &UDP)),
                (Verdict::SlowProtocol, packet(source, destination, 47, &UDP)),
            ] {
                assert_eq!(bed.answer(verdict, &frame), (Outcome::Unanswerable, None), "{source}");
            }
        }
    }
}

#[test]
fn what_was_sent_to_all_on_the_link_is_not_answered() {
    let mut bed = Bed::new();
    for golden in golden::all()
        .iter()
        .filter(|golden| golden.verdict != Verdict::SlowNeighbour)
    {
        for (at, mac) in [
            (0, [0xff; 6]),
            (0, [0x33, 0x33, 0, 0, 0, 1]),
            (6, [1, 0, 0x5e, 0, 0, 1]),
        ] {
            let mut frame = golden.question.clone();
            frame[at..at + 6].copy_from_slice(&mac);
            assert_eq!(bed.answer(golden.verdict, &frame).1, None, "{}", golden.name);
        }
    }
}

#[test]
fn an_icmp_error_is_never_answered() {
    let mut bed = Bed::new();
    for (destination, source, protocol, kinds) in [
        ("203.0.113.10", "198.51.100.7", 1, &[3, 4, 5, 11, 12][..]),
        ("2001:db8::10", "2001:db8:c::7", 58, &[1, 2, 3, 4, 100, 127, 137]),
    ] {
        for kind in kinds {
            let quoted = &packet(destination, source, 17, &UDP)[14..];
            let message = [&[*kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat();
            for verdict in [Verdict::SlowIcmp, Verdict::SlowProtocol, Verdict::SlowUnservedPort] {
                let (_, answer) = bed.answer(verdict, &packet(source, destination, protocol, &message));
                assert_eq!(answer, None, "type {kind}");
            }
        }
    }
}

#[test]
fn other_icmp_is_ignored() {
    let mut bed = Bed::new();
    for (destination, source, protocol, kinds) in [
        (
            "203.0.113.10",
            "198.51.100.7",
            1,
            &[(0, 0), (8, 1), (9, 0), (10, 0), (13, 0), (15, 0), (17, 0)][..],
        ),
        (
            "2001:db8::10",
            "2001:db8:c::7",
            58,
            &[(128, 1), (129, 0), (130, 0), (133, 0), (134, 0), (139, 0)],
        ),
    ] {
        for (kind, code) in kinds {
            let frame = packet(source, destination, protocol, &[*kind, *code, 0, 0, 0, 0, 0, 0]);
            assert_eq!(
                bed.answer(Verdict::SlowIcmp, &frame),
                (Outcome::IcmpIgnored, None),
                "type {kind}"
            );
        }
    }
}

#[test]
fn a_source_that_has_had_its_share_is_told_nothing_but_who_has_the_address() {
    let mut bed = Bed::within(0);
    for golden in golden::all() {
        let (outcome, answer) = bed.answer(golden.verdict, &golden.question);
        let expected = match golden.outcome {
            Outcome::Unreachable if golden.verdict == Verdict::SlowNextHop => Outcome::HoldTimeout,
            Outcome::EchoReply | Outcome::Reset | Outcome::Unreachable => Outcome::OverSourceLimit,
            other => other,
        };
        assert_eq!(outcome, expected, "{}", golden.name);
        let is_neighbours = golden.verdict == Verdict::SlowNeighbour;
        assert_eq!(answer, golden.answer.filter(|_| is_neighbours), "{}", golden.name);
    }
}

#[test]
fn only_a_vip_address_echoes() {
    let mut bed = Bed::new();
    let frame = echo("198.51.100.7", "203.0.113.99", b"?");
    assert_eq!(bed.answer(Verdict::SlowIcmp, &frame), (Outcome::NotVip, None));
    let frame = echo("2001:db8:c::7", "2001:db8::20", b"?");
    assert_eq!(bed.answer(Verdict::SlowIcmp, &frame), (Outcome::Unhealthy, None));
}

#[test]
fn a_segment_without_its_whole_header_is_malformed() {
    let mut bed = Bed::new();
    let whole = question("reset_of_syn");
    let segment = &whole[34..];
    for len in 0..40 {
        let frame = packet("198.51.100.7", "203.0.113.10", 6, &segment[..len]);
        assert_eq!(
            bed.answer(Verdict::SlowUnservedPort, &frame),
            (Outcome::Malformed, None),
            "{len} bytes"
        );
    }
    let mut short = segment.to_vec();
    short[12] = 0x40;
    let frame = packet("198.51.100.7", "203.0.113.10", 6, &short);
    assert_eq!(
        bed.answer(Verdict::SlowUnservedPort, &frame),
        (Outcome::Malformed, None)
    );
}

#[test]
fn a_host_that_uses_an_owned_address_is_told_of_and_not_answered() {
    let mut bed = Bed::new();
    let out = bed.step(Verdict::SlowNeighbour, &question("arp_conflict"));
    assert_eq!(out.events, [Event::AddressConflict([203, 0, 113, 10].into(), HIM)]);
    assert!(out.frames.is_empty());

    let use_it = |frame: &mut Vec<u8>| frame.copy_within(62..78, 22);
    let out = bed.step(Verdict::SlowNeighbour, &solicitation(use_it, |_| {}));
    let address = "2001:db8::10".parse().unwrap();
    assert_eq!(out.events, [Event::AddressConflict(address, HIM)]);
    assert!(out.frames.is_empty());
}

#[test]
fn our_own_announcement_come_back_is_no_conflict() {
    let mut bed = Bed::new();
    let frame = lb_core::slow::announcement([203, 0, 113, 10].into(), MAC).remove(0);
    let out = bed.step(Verdict::SlowNeighbour, &frame);
    assert!(out.events.is_empty() && out.frames.is_empty());
}

#[test]
fn a_question_from_nobody_that_could_hear_the_answer_is_not_answered() {
    let mut bed = Bed::open();
    let arp = question("arp_request");
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = arp.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let questions = [
        with(28, &[224, 0, 0, 1]),
        with(28, &[127, 0, 0, 1]),
        with(28, &[255; 4]),
        with(22, &[0xff; 6]),
        with(22, &[0; 6]),
        // A reply asks nothing.
        with(20, &[0, 2]),
        solicitation(
            |frame| frame[22..38].copy_from_slice(&[&[0xff, 2][..], &[0; 13], &[1]].concat()),
            |_| {},
        ),
        solicitation(
            |frame| frame[22..38].copy_from_slice(&[&[0; 15][..], &[1]].concat()),
            |_| {},
        ),
        solicitation(|frame| frame[80] = 0x33, |_| {}),
        solicitation(|frame| frame[80..86].fill(0), |_| {}),
    ];
    for (number, frame) in questions.iter().enumerate() {
        let answered = bed.answer(Verdict::SlowNeighbour, frame);
        assert_eq!(answered, (Outcome::Unanswerable, None), "question {number}");
    }
}

#[test]
fn only_the_owner_advertises() {
    let mut bed = Bed::new();
    for (last, expected) in [
        (0x10, Outcome::NeighbourAdvertisement),
        (0x30, Outcome::NotOwner),
        (0x99, Outcome::NotVip),
    ] {
        let frame = solicitation(|frame| (frame[53], frame[77]) = (last, last), |_| {});
        assert_eq!(bed.answer(Verdict::SlowNeighbour, &frame).0, expected);
    }
}

#[test]
fn a_solicitation_that_is_not_valid_is_dropped() {
    type Change = fn(&mut Vec<u8>);
    let nothing: Change = |_| {};
    let no_source: Change = |frame| frame[22..38].fill(0);
    let cases: [(&str, Change, Change); 11] = [
        ("from another link", |frame| frame[21] = 254, nothing),
        ("code", |frame| frame[55] = 1, nothing),
        ("checksum", nothing, |frame| frame[56] ^= 1),
        ("too short", |frame| frame.truncate(54 + 23), nothing),
        ("multicast target", |frame| frame[62] = 0xff, nothing),
        ("option without length", |frame| frame[79] = 0, nothing),
        ("option past the end", |frame| frame[79] = 2, nothing),
        ("half an option", |frame| frame.push(1), nothing),
        ("from nobody, who says where", no_source, nothing),
        (
            "from nobody, not to the group",
            |frame| {
                frame[22..38].fill(0);
                frame.copy_within(62..78, 38);
                frame.truncate(78);
            },
            nothing,
        ),
        ("an advertisement", |frame| frame[54] = 136, nothing),
    ];
    let mut bed = Bed::new();
    assert_eq!(
        bed.answer(Verdict::SlowNeighbour, &solicitation(nothing, nothing)).0,
        Outcome::NeighbourAdvertisement
    );
    for (what, change, after) in cases {
        let (outcome, answer) = bed.answer(Verdict::SlowNeighbour, &solicitation(change, after));
        assert_eq!((outcome, answer), (Outcome::Malformed, None), "{what}");
    }
}

#[test]
fn a_solicitation_behind_extension_headers_is_refused() {
    let mut bed = Bed::new();
    let whole = question("solicitation");
    // A hop-by-hop header, and an atomic fragment (RFC 6980).
    for (number, header) in [(0, [58, 0, 1, 4, 0, 0, 0, 0]), (44, [58, 0, 0, 0, 0, 0, 0, 1])] {
        let mut frame = [&whole[..54], &header, &whole[54..]].concat();
        frame[19] += 8;
        frame[20] = number;
        assert_eq!(bed.answer(Verdict::SlowNeighbour, &frame), (Outcome::HeaderChain, None));
    }
}
