//! Every length: checksums are where off-by-ones hide.

use lb_core::slow::Outcome;
use xdp_prog::verdict::Verdict;

use crate::{
    bed::Bed,
    frames::{echo, opened, packet},
};

const FLOWS: [(&str, &str); 2] = [("198.51.100.7", "203.0.113.10"), ("2001:db8:c::7", "2001:db8::10")];

/// All that fit a frame, and some as long as IP can be.
fn lengths(front: usize) -> impl Iterator<Item = usize> {
    let longest = usize::from(u16::MAX) - front;
    (0..=1500).chain([8999, 9000, longest - 1, longest])
}

/// Bytes that no checksum is blind to.
fn data(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8 | 1).collect()
}

#[test]
fn an_echo_reply_of_any_length_is_the_request_with_another_type_and_a_right_checksum() {
    let mut bed = Bed::new();
    for (source, destination) in FLOWS {
        for len in lengths(28) {
            let request = echo(source, destination, &data(len));
            let (outcome, answer) = bed.answer(Verdict::SlowIcmp, &request);
            assert_eq!(outcome, Outcome::EchoReply, "{len} bytes");
            let answer = answer.unwrap();
            let (protocol, message) = opened(&answer);
            let (reply, asked) = (message.split_at(4), request[request.len() - len - 8..].split_at(4));
            assert_eq!(
                (protocol, &reply.0[..2]),
                if source.contains(':') {
                    (58, &[129, 0][..])
                } else {
                    (1, &[0, 0][..])
                }
            );
            assert_eq!(reply.1, asked.1, "{len} bytes: id, sequence and data");
        }
    }
}

#[test]
fn an_echo_request_with_a_damaged_bit_is_not_answered() {
    let mut bed = Bed::new();
    for (source, destination) in FLOWS {
        let request = echo(source, destination, b"abc");
        for bit in (request.len() - 9) * 8..request.len() * 8 {
            let mut damaged = request.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                bed.answer(Verdict::SlowIcmp, &damaged),
                (Outcome::Malformed, None),
                "bit {bit}"
            );
        }
    }
}

#[test]
fn a_datagram_of_any_length_to_a_closed_port_is_quoted_as_far_as_may_be() {
    let mut bed = Bed::new();
    for ((source, destination), most, header) in [(FLOWS[0], 576, 20), (FLOWS[1], 1280, 40)] {
        for len in lengths(28) {
            let datagram = [
                &[0x9c, 0x40, 0, 54],
                &((8 + len) as u16).to_be_bytes()[..],
                &[0, 0],
                &data(len),
            ]
            .concat();
            let frame = packet(source, destination, 17, &datagram);
            let (outcome, answer) = bed.answer(Verdict::SlowUnservedPort, &frame);
            assert_eq!(outcome, Outcome::Unreachable, "{len} bytes");
            let answer = answer.unwrap();
            let (_, message) = opened(&answer);
            let quoted = &message[8..];
            assert!(frame[14..].starts_with(quoted), "{len} bytes");
            let whole = header + 8 + frame.len() - 14;
            assert_eq!(answer.len() - 14, whole.min(most), "{len} bytes");
        }
    }
}

#[test]
fn a_segment_of_any_length_to_a_closed_port_is_acknowledged_to_its_last_byte() {
    let mut bed = Bed::new();
    for (source, destination) in FLOWS {
        for flags in [0, 1, 2, 3, 2 | 0x40 | 0x80, 8 | 0x20] {
            for options in [0, 4, 40] {
                for len in (0..20).chain([1459, 1460, 65_000]) {
                    let sequence = u32::MAX - 700;
                    let mut segment = [&[0x9c, 0x40, 0, 81], &sequence.to_be_bytes()[..], &[0; 12]].concat();
                    segment[12] = ((20 + options) << 2) as u8;
                    segment[13] = flags;
                    segment.extend(vec![1; options]);
                    segment.extend(data(len));
                    let frame = packet(source, destination, 6, &segment);
                    let (outcome, answer) = bed.answer(Verdict::SlowUnservedPort, &frame);
                    assert_eq!(outcome, Outcome::Reset);
                    let answer = answer.unwrap();
                    let (protocol, reset) = opened(&answer);
                    assert_eq!((protocol, reset.len()), (6, 20));
                    let counted = len as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
                    assert_eq!(reset[..4], [0, 81, 0x9c, 0x40]);
                    assert_eq!(reset[4..8], [0; 4]);
                    assert_eq!(
                        reset[8..12],
                        sequence.wrapping_add(counted).to_be_bytes(),
                        "{len} bytes, flags {flags:#x}"
                    );
                    assert_eq!(reset[12..16], [0x50, 0x14, 0, 0]);
                }
            }
        }
    }
}
