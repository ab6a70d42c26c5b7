//! Fragments of echo requests, as they come and as the other side puts them together.

use xdp_prog::{
    abi::{BackendIndex, BackendLine},
    host,
};

use super::{Context, Done, Outcome, Packet, answer_fragment, become_reply};
use crate::{
    config::Protection,
    desired::{BackendId, BackendSet, Desired, Member, NextHop, NextHops, Protocol, Vip, VipKey},
    health::Overlay,
    slow::{Book, Bounds, Common, Decide, EngineSettings, Output, To, hold::Hold},
};

const IFINDEX: u32 = 3;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
const V4: [&str; 2] = ["198.51.100.7", "203.0.113.10"];
const V6: [&str; 2] = ["2001:db8:c::7", "2001:db8::10"];

/// Nobody asks where an echo goes.
struct Unasked;

impl Decide for Unasked {
    fn balance(&mut self, _frame: &[u8], _admitted: bool) -> host::Outcome {
        panic!("asked")
    }

    fn line(&self, _backend: BackendIndex) -> Option<BackendLine> {
        panic!("asked")
    }
}

/// The VIP addresses of [`V4`] and [`V6`], and whether a backend is reached.
fn book(reached: bool) -> Book {
    let backend = BackendId("a".into());
    let member = Member {
        backend: backend.clone(),
        weight: 1,
    };
    let vip = Vip::new(
        BackendSet {
            members: vec![member],
            table_slots: None,
        }
        .into(),
    );
    let key = |address: &str| VipKey {
        address: address.parse().unwrap(),
        protocol: Protocol::Udp,
        port: 53,
    };
    let desired = Desired {
        vips: [V4[1], V6[1]].map(|address| (key(address), vip.clone())).into(),
        ..Desired::default()
    };
    let hop = if reached { NextHop::Local } else { NextHop::Unresolved };
    Book::new(
        &desired,
        &NextHops::from([(backend, hop)]),
        &Overlay::default(),
        Protection::default(),
        &[],
    )
}

/// What becomes of a fragment, and the answer behind its Ethernet header.
fn turn(book: &Book, frame: &[u8]) -> (Outcome, Option<Vec<u8>>) {
    turn_within(1000, book, frame)
}

fn turn_within(replies_per_source: u32, book: &Book, frame: &[u8]) -> (Outcome, Option<Vec<u8>>) {
    let bounds = Bounds {
        replies_per_source,
        ..Bounds::default()
    };
    let mut out = Output::default();
    let mut context = Context {
        now_ns: 0,
        settings: EngineSettings {
            ifindex: IFINDEX,
            mac: MAC,
            announces: false,
        },
        common: &Common::new(bounds, 1),
        book,
        decide: &mut Unasked,
        hold: &mut Hold::default(),
        out: &mut out,
        paid: crate::slow::Kind::Fragment,
    };
    let done = answer_fragment(&mut context, &Packet::parse(frame).unwrap());
    let Done::With(outcome) = done else {
        panic!("{done:?}");
    };
    let answer = out.frames.pop().map(|sent| {
        assert_eq!(sent.to, To::Interface(IFINDEX));
        assert_eq!(sent.frame[..6], frame[6..12], "back to who sent it");
        assert_eq!(sent.frame[6..12], MAC);
        sent.frame[14..].to_vec()
    });
    assert!(out.frames.is_empty());
    (outcome, answer)
}

/// RFC 1071, 4.1.
fn checksum(bytes: &[u8]) -> u16 {
    let sum = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u64 = sum.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The pseudo-header of ICMPv6; ICMP has none.
fn pseudo([source, destination]: [&str; 2], len: usize) -> Vec<u8> {
    if source.contains(':') {
        let len = (len as u32).to_be_bytes();
        [&octets(source), &octets(destination), &len[..], &[0, 0, 0, 58]].concat()
    } else {
        Vec::new()
    }
}

/// An echo request with a right checksum.
fn request(ends: [&str; 2], len: usize) -> Vec<u8> {
    let kind = if ends[0].contains(':') { 128 } else { 8 };
    let mut message = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 7];
    message.extend((0..len - 8).map(|at| (at * 7 + at / 256) as u8));
    let sum = checksum(&[pseudo(ends, len), message.clone()].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// A frame with a fragment of `message`; `flags` go with IPv4 only.
fn fragment([source, destination]: [&str; 2], flags: u16, message: &[u8], part: std::ops::Range<usize>) -> Vec<u8> {
    let more = part.end < message.len();
    let offset = part.start as u16;
    let payload = &message[part];
    let mut frame = vec![2, 0, 0, 0, 0, 0x0a, 2, 0, 0, 0, 0, 0xc1];
    if source.contains(':') {
        frame.extend([0x86, 0xdd, 0x62, 0xea, 0xbc, 0xde]);
        frame.extend((payload.len() as u16 + 8).to_be_bytes());
        frame.extend([44, 3]);
        frame.extend([octets(source), octets(destination)].concat());
        frame.extend([58, 0]);
        frame.extend((offset | u16::from(more)).to_be_bytes());
        frame.extend([0xde, 0xad, 0xbe, 0xef]);
    } else {
        frame.extend([0x08, 0x00, 0x45, 0x20]);
        frame.extend((payload.len() as u16 + 20).to_be_bytes());
        frame.extend([0xbe, 0xef]);
        frame.extend((flags | u16::from(more) << 13 | (offset / 8)).to_be_bytes());
        frame.extend([3, 1, 0, 0]);
        frame.extend([octets(source), octets(destination)].concat());
        let sum = checksum(&frame[14..]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn the_first_fragment_is_turned_round_to_the_byte() {
    let mut frame = vec![2, 0, 0, 0, 0, 0x0a, 2, 0, 0, 0, 0, 0xc1, 8, 0];
    // 24 bytes of header with an option, 40 in all, more to come.
    frame.extend([0x46, 0x20, 0, 0x28, 0xbe, 0xef, 0x20, 0, 64, 1, 0xa0, 0x7b]);
    frame.extend([198, 51, 100, 7, 203, 0, 113, 10]);
    frame.extend([0x94, 4, 0, 0]);
    // Echo request; the checksum is that of a message of 40 bytes.
    frame.extend([8, 0, 0xf4, 0xc3, 0x12, 0x34, 0, 7, 0, 1, 2, 3, 4, 5, 6, 7]);
    let expected = [
        &[0x45, 0x20, 0, 0x24, 0xbe, 0xef, 0x20, 0, 64, 1, 0x35, 0x84][..],
        &[203, 0, 113, 10, 198, 51, 100, 7],
        &[0, 0, 0xfc, 0xc3, 0x12, 0x34, 0, 7, 0, 1, 2, 3, 4, 5, 6, 7],
    ];
    assert_eq!(turn(&book(true), &frame), (Outcome::EchoReply, Some(expected.concat())));
}

#[test]
fn fragments_turned_round_in_any_order_are_the_reply() {
    for ends in [V4, V6] {
        for len in [1485, 4000, 4001, 65_000] {
            let message = request(ends, len);
            let mut reply = vec![0; len];
            // The last first.
            let starts: Vec<_> = (0..len).step_by(1480).collect();
            for start in starts.into_iter().rev() {
                let end = (start + 1480).min(len);
                let frame = fragment(ends, 0, &message, start..end);
                let (outcome, answer) = turn(&book(true), &frame);
                assert_eq!(outcome, Outcome::EchoReply);
                let (answer, asked) = (answer.unwrap(), &frame[14..]);
                let header = asked.len() - (end - start);
                if header == 20 {
                    assert_eq!(checksum(&answer[..20]), 0);
                    assert_eq!(answer[..8], asked[..8], "service, length, id, flags and offset");
                    assert_eq!(answer[8..10], [64, 1]);
                } else {
                    assert_eq!(answer[..8], [0x62, 0xe0, 0, 0, asked[4], asked[5], 44, 64]);
                    assert_eq!(answer[40..48], asked[40..48], "the fragment header");
                }
                let addresses = [octets(ends[1]), octets(ends[0])].concat();
                assert!(
                    answer[..header]
                        .windows(addresses.len())
                        .any(|window| window == addresses)
                );
                reply[start..end].copy_from_slice(&answer[header..]);
            }
            assert_eq!(checksum(&[pseudo([ends[1], ends[0]], len), reply.clone()].concat()), 0);
            assert_eq!(reply[..2], if ends == V6 { [129, 0] } else { [0, 0] });
            assert_eq!(reply[4..], message[4..]);
        }
    }
}

#[test]
fn what_forbids_fragments_of_fragments_goes_on_forbidding_them() {
    let message = request(V4, 3000);
    for flags in [0, 0x4000] {
        let (_, answer) = turn(&book(true), &fragment(V4, flags, &message, 1480..2960));
        assert_eq!(answer.unwrap()[6..8], (flags | 0x2000 | 185).to_be_bytes());
    }
}

#[test]
fn only_the_first_fragment_takes_of_its_sources_share() {
    for ends in [V4, V6] {
        let message = request(ends, 3000);
        let first = turn_within(0, &book(true), &fragment(ends, 0, &message, 0..1480));
        assert_eq!(first, (Outcome::OverSourceLimit, None));
        let second = turn_within(0, &book(true), &fragment(ends, 0, &message, 1480..2960));
        assert_eq!(second.0, Outcome::EchoReply);
    }
}

#[test]
fn the_checksum_follows_the_type_whatever_it_was() {
    for (ends, kind) in [(V4, 8), (V6, 128)] {
        let frame = fragment(ends, 0, &request(ends, 3000), 0..1480);
        let packet = Packet::parse(&frame).unwrap();
        for word in 0..=u16::MAX {
            let mut message = [kind, 0, 0, 0, (word >> 8) as u8, word as u8];
            let sum = checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
            become_reply(&packet, &mut message).unwrap();
            assert_eq!(message[..2], if kind == 8 { [0, 0] } else { [129, 0] });
            assert_eq!(checksum(&message), 0, "{word:#x}");
        }
    }
}

#[test]
fn nobody_home_and_options_behind_the_fragment_header_are_not_answered() {
    for ends in [V4, V6] {
        let message = request(ends, 3000);
        for part in [0..1480, 1480..2960, 2960..3000] {
            let frame = fragment(ends, 0, &message, part);
            assert_eq!(turn(&book(false), &frame), (Outcome::Unhealthy, None));
            assert_eq!(turn(&Book::default(), &frame), (Outcome::NotVip, None));
            let mut to_all = frame;
            to_all[..6].fill(0xff);
            assert_eq!(turn(&book(true), &to_all), (Outcome::Unanswerable, None));
        }
    }
    // Destination options: eight bytes at the start of the first fragment.
    let options = [&[58, 0, 1, 4, 0, 0, 0, 0], &request(V6, 3000)[..]].concat();
    for part in [0..1480, 1480..2960] {
        let mut frame = fragment(V6, 0, &options, part);
        frame[54] = 60;
        assert_eq!(turn(&book(true), &frame), (Outcome::HeaderChain, None));
    }
    let mut timestamp = fragment(V4, 0, &request(V4, 3000), 0..1480);
    timestamp[34] = 13;
    assert_eq!(turn(&book(true), &timestamp), (Outcome::IcmpIgnored, None));
}
