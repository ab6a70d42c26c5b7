//! Packets that do not fit once encapsulated.

use lb_core::slow::{FragmentBounds, Outcome};
use xdp_prog::verdict::Verdict;

use crate::bed::{Bed, CLIENTS, Dice, VIPS, apart, checksum, counted, ipv4, ipv6, link, transport};

#[test]
fn pieces_fit_and_are_the_packet_when_put_together() {
    for case in 0..500 {
        let mut dice = Dice(case);
        let mtu = 100 + dice.below(1400);
        let mut bed = Bed::with(mtu as u16, FragmentBounds::default());
        // Timestamp (not copied), router alert and a stream identifier (copied), no operation.
        let options: &[u8] = [
            &[][..],
            &[148, 4, 0, 0],
            &[68, 5, 5, 0, 0, 1, 0, 0],
            &[1, 136, 4, 9, 9, 0, 0, 0],
        ][dice.below(4)];
        let copied: &[u8] = match options.first() {
            Some(148) => options,
            Some(1) => &[136, 4, 9, 9],
            _ => &[],
        };
        let len = mtu + dice.below(2 * mtu);
        let segment = transport(17, [case as u16, 53], &dice.bytes(len));
        let id = [0, 0x1234][dice.below(2)];
        let packet = ipv4([CLIENTS[0], VIPS[0]], 0xb8, id, 0, 17, options, &segment);
        let out = bed.step(Verdict::SlowTooBig, &[link(&[], false), packet.clone()].concat());
        assert_eq!(counted(&out, Outcome::Split), 1, "case {case}");
        let (mut together, mut new_id) = (Vec::new(), None);
        for (position, sent) in out.frames.iter().enumerate() {
            let (_, outer, inner) = apart(&sent.frame);
            assert!(outer.len() + inner.len() <= mtu, "case {case}");
            let header_len = usize::from(inner[0] & 15) * 4;
            let expected = if position == 0 { options } else { copied };
            assert_eq!(&inner[20..header_len], expected, "case {case}");
            assert_eq!(checksum(&inner[..header_len]), 0, "case {case}");
            assert_eq!(usize::from(u16::from_be_bytes([inner[2], inner[3]])), inner.len());
            let place = u16::from_be_bytes([inner[6], inner[7]]);
            assert_eq!(usize::from(place & 0x1fff) * 8, together.len(), "case {case}");
            assert_eq!(place & 0x2000 != 0, position + 1 < out.frames.len(), "case {case}");
            let piece_id = u16::from_be_bytes([inner[4], inner[5]]);
            assert_eq!(*new_id.get_or_insert(piece_id), piece_id, "case {case}");
            assert_eq!(inner[8..10], packet[8..10]);
            assert_eq!(inner[12..20], packet[12..20]);
            assert_eq!(inner[1], 0xb8);
            together.extend_from_slice(&inner[header_len..]);
        }
        assert_eq!(together, segment, "case {case}");
        let new_id = new_id.unwrap();
        assert!(if id == 0 { new_id != 0 } else { new_id == id }, "case {case}");
    }
}

#[test]
fn pieces_of_a_fragment_are_fragments_of_its_datagram() {
    let mut bed = Bed::new();
    let datagram = transport(17, [7, 53], &[3; 2952]);
    let part = |from: usize, to: usize, more: u16| {
        let ip = ipv4(
            [CLIENTS[0], VIPS[0]],
            0,
            0,
            more | (from / 8) as u16,
            17,
            &[],
            &datagram[from..to],
        );
        [link(&[], false), ip].concat()
    };
    let places = |frame: &[u8]| {
        let out = &apart(frame).2;
        (
            u16::from_be_bytes([out[4], out[5]]),
            u16::from_be_bytes([out[6], out[7]]),
        )
    };
    let first = bed.step(Verdict::SlowFragment, &part(0, 1480, 0x2000));
    let last = bed.step(Verdict::SlowFragment, &part(1480, 2960, 0));
    for (out, base, more) in [(first, 0, 0x2000), (last, 185, 0)] {
        assert_eq!(counted(&out, Outcome::Split), 1);
        let [one, two] = &out.frames[..] else {
            panic!("two pieces")
        };
        let (id, place) = places(&one.frame);
        assert_eq!((id, place), (0, 0x2000 | base), "a fragment keeps its identification");
        let piece = (apart(&one.frame).2.len() - 20) / 8;
        assert_eq!(places(&two.frame), (0, more | (base + piece as u16)));
    }
}

#[test]
fn who_must_not_be_split_is_told_what_fits() {
    let cases = [
        // (IPv6, port, don't fragment, MTU of the way, bytes of payload, outcome)
        (false, 80, 0x4000, 1500, 1480, Outcome::TooBig),
        (false, 81, 0, 1500, 1480, Outcome::TooBig),
        (false, 80, 0, 1500, 1480, Outcome::Split),
        (true, 80, 0, 1500, 1460, Outcome::TooBig),
        (true, 80, 0, 1280, 1460, Outcome::TooBig),
        (true, 80, 0, 1280, 1235, Outcome::MtuTooSmall),
        (false, 80, 0x4000, 80, 200, Outcome::MtuTooSmall),
    ];
    for (v6, port, flags, mtu, len, outcome) in cases {
        let mut bed = Bed::with(mtu, FragmentBounds::default());
        let segment = transport(6, [7, port], &vec![0; len - 20]);
        let ends = [CLIENTS[usize::from(v6)], VIPS[usize::from(v6)]];
        let packet = if v6 {
            ipv6(ends, 0, 6, &segment)
        } else {
            ipv4(ends, 0, 1, flags, 6, &[], &segment)
        };
        let frame = [link(&[], v6), packet].concat();
        let out = bed.step(Verdict::SlowTooBig, &frame);
        let case = format!("{:?}", (v6, port, flags, mtu, len));
        assert_eq!(
            counted(&out, outcome),
            1,
            "{case}: {:?}",
            out.counts.iter().collect::<Vec<_>>()
        );
        if outcome != Outcome::TooBig {
            continue;
        }
        let answer = &out.frames[0].frame[14..];
        let told = if v6 {
            assert_eq!(answer[40..42], [2, 0], "{case}: packet too big");
            u32::from_be_bytes(answer[44..48].try_into().unwrap())
        } else {
            assert_eq!(answer[20..22], [3, 4], "{case}: fragmentation needed");
            u32::from(u16::from_be_bytes([answer[26], answer[27]]))
        };
        let most = u32::from(mtu);
        let fitting = if v6 {
            vec![(most - 40).max(1280), (most - 20).max(1280)]
        } else {
            vec![most - 40, most - 20]
        };
        assert!(fitting.contains(&told), "{case}: {told}");
    }
}
