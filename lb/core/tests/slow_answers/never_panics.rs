//! Whatever comes: no panic, one outcome, and nothing but sound answers.

use xdp_prog::verdict::{Fate, Verdict};

use crate::{
    bed::{Bed, IFINDEX, MAC},
    frames, golden,
};
use lb_core::slow::{End, To};

const ROUNDS: usize = 1000;
/// Frames that no mutation of a question can be longer than, answered.
const LONGEST_ERROR: usize = 14 + 4 * 4 + 1280;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % bound.max(1) as u64) as usize
    }

    fn mutate(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(frame.len());
            match self.below(6) {
                0 => frame.truncate(at),
                1 => frame.extend(vec![at as u8; 1 + at % 9]),
                2 => frame.insert(at.min(frame.len()), at as u8),
                3 if at < frame.len() => frame[at] = [0, 1, 0x7f, 0x80, 0xff, 44][self.below(6)],
                4 if at < frame.len() => frame[at] ^= 1 << self.below(8),
                _ if at < frame.len() => drop(frame.remove(at)),
                _ => {}
            }
        }
    }
}

fn check(bed: &mut Bed, verdict: Verdict, frame: &[u8]) {
    let out = bed.step(verdict, frame);
    let counted: u64 = out.counts.iter().map(|(_, _, count)| count).sum();
    assert!(counted <= 1, "{verdict:?}: {:?}", out.counts);
    for (_, outcome, _) in out.counts.iter() {
        match outcome.end() {
            End::Answered => assert_eq!(out.frames.len(), 1, "{outcome:?}"),
            End::Dropped => assert!(out.frames.is_empty(), "{outcome:?}"),
            End::Forwarded => continue,
        }
        for sent in &out.frames {
            assert_eq!(sent.to, To::Interface(IFINDEX));
            assert_eq!(sent.frame[6..12], MAC);
            assert!(sent.frame.len() <= LONGEST_ERROR.max(frame.len() + 64));
            frames::opened(&sent.frame);
        }
    }
}

#[test]
fn damaged_questions_get_sound_answers_or_none() {
    let mut bed = Bed::new();
    let mut random = Random(3);
    let slow: Vec<_> = Verdict::ALL
        .iter()
        .filter(|verdict| verdict.fate() == Fate::Slow)
        .collect();
    for golden in golden::all() {
        for _ in 0..ROUNDS {
            let mut frame = golden.question.clone();
            random.mutate(&mut frame);
            check(&mut bed, golden.verdict, &frame);
            check(&mut bed, *slow[random.below(slow.len())], &frame);
        }
        for len in 0..golden.question.len() {
            check(&mut bed, golden.verdict, &golden.question[..len]);
        }
    }
}

#[test]
fn noise_gets_sound_answers_or_none() {
    let mut bed = Bed::new();
    let mut random = Random(4);
    for _ in 0..20_000 {
        let len = random.below(200);
        let mut frame: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
        if let Some(ethertype) = frame.get_mut(12..15) {
            let known = [
                [0x08, 0x00, 0x45],
                [0x86, 0xdd, 0x60],
                [0x08, 0x06, 0x00],
                [0x81, 0x00, 0x00],
            ];
            ethertype.copy_from_slice(&known[random.below(4)]);
        }
        for verdict in Verdict::ALL {
            check(&mut bed, *verdict, &frame);
        }
    }
}
