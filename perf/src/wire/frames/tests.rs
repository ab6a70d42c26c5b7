//! The frames, read by an independent parser.

use std::collections::BTreeSet;

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};

use super::{Kind, Mix, Size, payload};
use crate::wire::stamp::Stamp;

fn mix(size: Size, kinds: &[Kind], target: &str) -> Mix {
    Mix {
        source_mac: [2, 0, 0, 0, 0, 2],
        destination_mac: [2, 0, 0, 0, 0, 1],
        targets: vec![target.parse().unwrap()],
        kinds: kinds.to_vec(),
        size,
        flows: 10_000_000,
        seed: 7,
    }
}

fn stamp(sequence: u64) -> Stamp {
    Stamp {
        // A first byte other than QUIC's.
        run_id: 0x8123_4567,
        sender: 1,
        sequence,
        ns: 0x1234_5678_9abc,
    }
}

/// Length, checksums, addresses, and the stamp, of every kind, family and size.
#[test]
fn every_frame_is_what_an_independent_parser_expects() {
    for target in ["203.0.113.10:53", "[2001:db8::1]:443"] {
        for kind in [Kind::Udp, Kind::Quic, Kind::Tcp, Kind::Syn] {
            for size in [78, 98, 128, 1518, 9018] {
                let mix = mix(Size::Fixed(size), &[kind], target);
                if mix.check().is_err() {
                    continue;
                }
                let mut frame = Vec::new();
                for index in 0..50 {
                    mix.write(2, stamp(index), &mut frame);
                    assert_eq!(frame.len(), size - 4);
                    let read = PacketHeaders::from_ethernet_slice(&frame).unwrap();
                    let rest = read.payload.slice();
                    match (read.net.unwrap(), read.transport.unwrap()) {
                        (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => {
                            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                            assert_eq!(udp.checksum, udp.calc_checksum_ipv4(&ip, rest).unwrap());
                        }
                        (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(tcp)) => {
                            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, rest).unwrap());
                            assert_eq!((tcp.syn, tcp.ack), (kind == Kind::Syn, kind == Kind::Tcp));
                        }
                        (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => {
                            assert_eq!(udp.checksum, udp.calc_checksum_ipv6(&ip, rest).unwrap());
                        }
                        (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(tcp)) => {
                            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv6(&ip, rest).unwrap());
                        }
                        other => panic!("{other:?}"),
                    }
                    if mix.is_stamped() {
                        let found = payload(&frame).and_then(|payload| Stamp::read(payload, 0x8123_4567));
                        assert_eq!(found, Some(stamp(index)), "{kind:?} {target} {size}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_stamp_is_found_behind_an_outer_header_of_either_family() {
    for target in ["203.0.113.10:53", "[2001:db8::1]:53"] {
        let mix = mix(Size::Fixed(128), &[Kind::Udp], target);
        let mut frame = Vec::new();
        mix.write(1, stamp(5), &mut frame);
        let inner = &frame[14..];
        let protocol = if mix.targets[0].is_ipv4() { 4 } else { 41 };
        let outers = [
            PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
            PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6([1; 16], [2; 16], 64),
        ];
        for outer in outers {
            let mut encapsulated = Vec::new();
            outer.write(&mut encapsulated, protocol.into(), inner).unwrap();
            let found = payload(&encapsulated).and_then(|payload| Stamp::read(payload, 0x8123_4567));
            assert_eq!(found, Some(stamp(5)));
        }
    }
}

#[test]
fn what_has_no_room_for_a_stamp_is_said_and_what_has_none_for_headers_is_refused() {
    let v4 = "203.0.113.10:53";
    assert!(mix(Size::Fixed(64), &[Kind::Udp], v4).is_stamped());
    let tcp = mix(Size::Fixed(64), &[Kind::Tcp], v4);
    assert!(tcp.check().is_ok() && !tcp.is_stamped());
    let error = mix(Size::Fixed(64), &[Kind::Udp], "[2001:db8::1]:53")
        .check()
        .unwrap_err()
        .to_string();
    assert!(error.contains("at least 66"), "{error}");
}

#[test]
fn flows_are_as_many_as_asked_for_and_no_two_senders_share_one() {
    let mut mix = mix(Size::Fixed(64), &[Kind::Udp], "203.0.113.10:53");
    mix.flows = 1000;
    let (mut frame, mut seen) = (Vec::new(), [BTreeSet::new(), BTreeSet::new()]);
    for sender in 0..2_u8 {
        for index in 0..20_000 {
            let stamp = Stamp { sender, ..stamp(index) };
            mix.write(2, stamp, &mut frame);
            seen[usize::from(sender)].insert(frame[26..36].to_vec());
        }
    }
    assert_eq!(seen.each_ref().map(BTreeSet::len), [500, 500]);
    assert!(seen[0].is_disjoint(&seen[1]));
    mix.kinds = vec![Kind::Syn];
    let mut floods = BTreeSet::new();
    for index in 0..20_000 {
        mix.write(2, stamp(index), &mut frame);
        floods.insert(frame[26..36].to_vec());
    }
    assert!(floods.len() > 19_990, "{}", floods.len());
}

#[test]
fn the_same_seed_makes_the_same_frames_and_another_makes_others() {
    let one = mix(Size::Imix, &[Kind::Udp, Kind::Tcp], "203.0.113.10:53");
    let other = Mix { seed: 8, ..one.clone() };
    let frames = |mix: &Mix| -> Vec<Vec<u8>> {
        let mut frame = Vec::new();
        (0..100)
            .map(|index| {
                mix.write(1, stamp(index), &mut frame);
                frame.clone()
            })
            .collect()
    };
    assert_eq!(frames(&one), frames(&one));
    assert_ne!(frames(&one), frames(&other));
}

#[test]
fn imix_is_seven_to_four_to_one() {
    let mix = mix(Size::Imix, &[Kind::Udp], "203.0.113.10:53");
    let (mut frame, mut counts) = (Vec::new(), [0; 3]);
    for index in 0..1200 {
        mix.write(1, stamp(index), &mut frame);
        let size = [60, 590, 1514].iter().position(|len| *len == frame.len()).unwrap();
        counts[size] += 1;
    }
    assert_eq!(counts, [700, 400, 100]);
    assert!((Size::Imix.mean() - 361.83).abs() < 0.01);
}
