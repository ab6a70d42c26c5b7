//! No bytes make the slow path panic, and every packet is counted once or held.

use xdp_prog::verdict::{Fate, Verdict};

use crate::bed::{Bed, CLIENTS, Dice, TIMEOUT_NS, VIPS, ipv4, ipv6, link, transport};

#[test]
fn arbitrary_and_nearly_right_frames_are_counted_once() {
    let verdicts: Vec<_> = Verdict::ALL
        .iter()
        .filter(|verdict| verdict.fate() == Fate::Slow)
        .collect();
    let mut bed = Bed::with(1300, lb_core::slow::FragmentBounds::default());
    let (mut put, mut counted) = (0, 0);
    for case in 0..60_000 {
        let mut dice = Dice(case);
        let v6 = dice.below(2) == 1;
        let ends = [CLIENTS[usize::from(v6)], VIPS[usize::from(v6)]];
        let next = [6, 17, 1, 58, 44, 0, 43, 60, 51][dice.below(9)];
        let len = dice.below(1400);
        let body = if dice.below(2) == 0 {
            dice.bytes(len)
        } else {
            transport(next, [1, 80], &dice.bytes(len))
        };
        let packet = if v6 {
            ipv6(ends, 0, next, &body)
        } else {
            let place = [0, 0x4000, 0x2000, 0x2001, 3][dice.below(5)];
            ipv4(ends, 0, dice.below(9) as u16, place, next, &dice.bytes(4), &body)
        };
        let mut frame = [link(&vec![5; dice.below(6)], v6), packet].concat();
        for _ in 0..dice.below(4) {
            let at = dice.below(frame.len().min(90));
            frame[at] = dice.next() as u8;
        }
        if dice.below(4) == 0 {
            frame.truncate(dice.below(frame.len()));
        }
        let verdict = *verdicts[dice.below(verdicts.len())];
        put += 1;
        counted += bed
            .step(verdict, &frame)
            .counts
            .iter()
            .map(|(_, _, count)| count)
            .sum::<u64>();
        bed.now_ns += 50_000;
    }
    counted += bed
        .wait(2 * TIMEOUT_NS)
        .counts
        .iter()
        .map(|(_, _, count)| count)
        .sum::<u64>();
    assert_eq!(put, counted);
}
