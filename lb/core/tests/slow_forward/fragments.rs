//! Fragments, against a model that knows every byte.

use lb_core::slow::{FragmentBounds, Kind, Outcome};
use xdp_prog::verdict::Verdict;

use crate::bed::{Bed, CLIENTS, Dice, TIMEOUT_NS, VIPS, apart, counted, ipv4, ipv6, link, transport};

/// A fragment of a UDP datagram.
fn fragment(v6: bool, id: u16, from: usize, part: &[u8], more: bool) -> Vec<u8> {
    let ends = [CLIENTS[usize::from(v6)], VIPS[usize::from(v6)]];
    let ip = if v6 {
        let place = (from as u16 | u16::from(more)).to_be_bytes();
        let mut body = vec![17, 0, place[0], place[1], 0, 0];
        body.extend(id.to_be_bytes());
        body.extend(part);
        ipv6(ends, 0x10, 44, &body)
    } else {
        let place = (from / 8) as u16 | if more { 0x2000 } else { 0 };
        ipv4(ends, 0x10, id, place, 17, &[], part)
    };
    [link(&[], v6), ip].concat()
}

#[test]
fn fragments_in_any_order_with_losses_duplicates_and_overlaps_do_what_the_model_says() {
    let mut total = [0_u64; 5];
    for case in 0..3000 {
        let mut dice = Dice(case);
        let mut bed = Bed::new();
        let v6 = dice.below(2) == 1;
        let data_len = 16 + dice.below(4000);
        let datagram = transport(17, [1000 + case as u16, 53], &dice.bytes(data_len));
        let id = dice.next() as u16;
        // Pieces: (from, to, more).
        let mut pieces = Vec::new();
        let mut from = 0;
        while from < datagram.len() {
            let to = (from + 8 * (1 + dice.below(120))).min(datagram.len());
            pieces.push((from, to, to < datagram.len()));
            from = to;
        }
        if pieces.len() == 1 {
            continue;
        }
        let honest = pieces.len();
        if dice.below(3) == 0 {
            pieces.push(pieces[dice.below(honest)]);
        }
        if dice.below(3) == 0 {
            pieces.remove(dice.below(honest));
        }
        if dice.below(4) == 0 {
            let from = dice.below(datagram.len() / 8) * 8;
            let to = (from + 8 * (1 + dice.below(30))).min(datagram.len());
            pieces.push((
                from,
                to,
                to < datagram.len() || dice.below(2) == 0 && to.is_multiple_of(8),
            ));
        }
        for position in (1..pieces.len()).rev() {
            pieces.swap(position, dice.below(position + 1));
        }
        // The model: which bytes were seen, what is held, whether it is refused.
        let mut seen: Vec<(usize, usize, bool)> = Vec::new();
        let mut held: Vec<Vec<u8>> = Vec::new();
        let (mut known, mut refused) = (false, false);
        for (step, &(from, to, more)) in pieces.iter().enumerate() {
            let at = format!("case {case}, step {step} of {pieces:?}");
            let frame = fragment(v6, id, from, &datagram[from..to], more);
            let out = bed.step(Verdict::SlowFragment, &frame);
            let inner: Vec<Vec<u8>> = out.frames.iter().map(|sent| apart(&sent.frame).2.to_vec()).collect();
            let end = seen.iter().find(|piece| !piece.2).map(|piece| piece.1);
            let contradicts = end.is_some_and(|end| to > end || to == end && more || to != end && !more)
                || !more && seen.iter().any(|piece| piece.1 > to);
            if refused {
                assert_eq!(counted(&out, Outcome::FragmentOverlap), 1, "{at}");
                assert!(inner.is_empty(), "{at}");
                total[0] += 1;
            } else if seen.contains(&(from, to, more)) {
                assert_eq!(counted(&out, Outcome::FragmentDuplicate), 1, "{at}");
                assert!(inner.is_empty(), "{at}");
                total[1] += 1;
            } else if contradicts || seen.iter().any(|piece| piece.0 < to && from < piece.1) {
                assert_eq!(counted(&out, Outcome::FragmentOverlap), 1 + held.len() as u64, "{at}");
                assert!(inner.is_empty(), "{at}");
                refused = true;
                total[2] += 1;
                held.clear();
            } else {
                seen.push((from, to, more));
                held.push(frame[14..].to_vec());
                known |= from == 0;
                if known {
                    // The one in hand goes first.
                    let last = held.pop().unwrap();
                    held.insert(0, last);
                    assert_eq!(inner, std::mem::take(&mut held), "{at}");
                    assert_eq!(counted(&out, Outcome::Forwarded), inner.len() as u64, "{at}");
                    let to = out.frames[0].to;
                    assert!(out.frames.iter().all(|sent| sent.to == to), "{at}");
                    let backend = out.passed[0].backend;
                    assert!(out.passed.iter().all(|passed| passed.backend == backend), "{at}");
                    total[3] += 1;
                } else {
                    assert_eq!(out.counts.iter().count(), 0, "{at}");
                    total[4] += 1;
                }
                if seen.iter().any(|piece| !piece.2)
                    && seen.iter().map(|piece| piece.1 - piece.0).sum::<usize>() == datagram.len()
                    && known
                {
                    assert_eq!(bed.engine.deadline(&bed.common), None, "{at}: forgotten when complete");
                    seen.clear();
                    known = false;
                }
            }
        }
        let late = bed.wait(TIMEOUT_NS);
        assert_eq!(
            counted(&late, Outcome::FragmentTimeout),
            held.len() as u64,
            "case {case}"
        );
        assert_eq!(bed.engine.deadline(&bed.common), None, "case {case}: nothing is left");
    }
    assert!(total.iter().all(|count| *count > 50), "{total:?}");
}

#[test]
fn the_deadline_is_the_first_fragments_and_never_extended() {
    let mut bed = Bed::new();
    let datagram = transport(17, [1, 53], &[0; 100]);
    bed.step(Verdict::SlowFragment, &fragment(false, 1, 24, &datagram[24..48], true));
    bed.now_ns = TIMEOUT_NS - 1;
    bed.step(Verdict::SlowFragment, &fragment(false, 1, 48, &datagram[48..], false));
    assert_eq!(bed.engine.deadline(&bed.common), Some(TIMEOUT_NS));
    assert_eq!(counted(&bed.wait(1), Outcome::FragmentTimeout), 2);
}

#[test]
fn headers_that_hide_in_later_fragments_are_refused_for_good() {
    let tcp = |place: u16, payload: &[u8]| {
        let ip = ipv4([CLIENTS[0], VIPS[0]], 0, 9, place, 6, &[], payload);
        [link(&[], false), ip].concat()
    };
    let segment = transport(6, [1, 80], &[0; 64]);
    let mut long = segment.clone();
    long[12] = 0xf0;
    for (first, why) in [
        (tcp(0x2000, &segment[..16]), "no flags"),
        (tcp(0x2000 | 1, &segment[8..40]), "offset 8"),
        (tcp(0x2000, &long[..56]), "options cut off"),
    ] {
        let mut bed = Bed::new();
        assert_eq!(
            counted(&bed.step(Verdict::SlowFragment, &first), Outcome::FragmentTiny),
            1,
            "{why}"
        );
        let later = bed.step(Verdict::SlowFragment, &tcp(0x2000 | 10, &segment[..8]));
        assert_eq!(counted(&later, Outcome::FragmentTiny), 1, "{why}");
        let whole = bed.step(Verdict::SlowFragment, &tcp(0x2000, &segment[..24]));
        assert_eq!(counted(&whole, Outcome::FragmentTiny), 1, "{why}");
    }
}

#[test]
fn a_last_fragment_of_one_byte_has_an_outer_header_of_its_own_length() {
    for v6 in [false, true] {
        let mut bed = Bed::new();
        let datagram = transport(17, [1, 53], &[5; 57]);
        bed.step(Verdict::SlowFragment, &fragment(v6, 1, 0, &datagram[..64], true));
        let last = fragment(v6, 1, 64, &datagram[64..], false);
        let mut padded = last.clone();
        padded.resize(80, 0);
        let out = bed.step(Verdict::SlowFragment, &padded);
        assert_eq!(apart(&out.frames[0].frame).2, &last[14..]);
    }
}

#[test]
fn who_never_completes_anything_harms_nobody_else() {
    let bounds = FragmentBounds {
        datagrams: 64,
        bytes: 1 << 20,
        timeout_ms: 5000,
    };
    let mut bed = Bed::with(1500, bounds);
    let mut out = 0;
    for id in 0..1000_u16 {
        let step = bed.step(Verdict::SlowFragment, &fragment(false, id, 800, &[1; 1000], true));
        out += counted(&step, Outcome::FragmentRoom);
        assert!(step.frames.is_empty());
    }
    assert_eq!(out, 996, "his own oldest made way: a sixteenth of 64 is 4");
    let other = |from: usize, part: &[u8], more: bool| {
        let place = (from / 8) as u16 | if more { 0x2000 } else { 0 };
        [
            link(&[], false),
            ipv4(["192.0.2.200", VIPS[0]], 0, 1, place, 17, &[], part),
        ]
        .concat()
    };
    let datagram = transport(17, [1, 53], &[5; 1000]);
    assert_eq!(
        bed.step(Verdict::SlowFragment, &other(800, &datagram[800..], false))
            .counts
            .iter()
            .count(),
        0
    );
    assert_eq!(
        bed.step(Verdict::SlowFragment, &other(0, &datagram[..800], true))
            .frames
            .len(),
        2
    );
    assert_eq!(counted(&bed.wait(TIMEOUT_NS), Outcome::FragmentTimeout), 4);
    assert_eq!(bed.wait(0).counts.of(Kind::Fragment, Outcome::FragmentTimeout), 0);
}
