//! Bounds hold whatever comes, and what is given back is given back.

use super::{Arrival, Datagram, Entry, FragmentBounds, Fragments, MAX_FRAGMENTS, Outcome, Packet};

const BOUNDS: FragmentBounds = FragmentBounds {
    datagrams: 64,
    bytes: 64 << 10,
    timeout_ms: 1000,
};

/// A fragment of a UDP datagram from 198.51.100.`source`; `at` in units of 8 bytes.
fn fragment(source: u8, id: u16, at: u16, len: usize, more: bool) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(((20 + len) as u16).to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend((at | if more { 0x2000 } else { 0 }).to_be_bytes());
    frame.extend([64, 17, 0, 0, 198, 51, 100, source, 203, 0, 113, 10]);
    frame.resize(frame.len() + len, 7);
    frame
}

fn arrive(fragments: &mut Fragments, now_ns: u64, frame: &[u8]) -> Arrival {
    fragments.arrive(now_ns, &Packet::parse(frame).unwrap())
}

/// What the sums say is what is there, and within the bounds.
fn check(fragments: &Fragments) {
    let entries = fragments.datagrams.values();
    let held: usize = entries.clone().map(|entry| entry.held.len()).sum();
    let charged: u64 = entries
        .clone()
        .flat_map(|entry| &entry.held)
        .map(|frame| frame.len() as u64 + super::FRAME_OVERHEAD)
        .sum();
    assert_eq!(charged, fragments.bytes, "{held} held");
    assert!(fragments.bytes <= BOUNDS.bytes && fragments.datagrams.len() <= BOUNDS.datagrams as usize);
    assert_eq!(fragments.due.len(), fragments.datagrams.len());
    assert_eq!(fragments.oldest.len(), fragments.datagrams.len());
    let accounts = fragments.accounts.values();
    assert_eq!(
        accounts.clone().map(|account| account.bytes).sum::<u64>(),
        fragments.bytes
    );
    let datagrams: u32 = accounts.clone().map(|account| account.datagrams).sum();
    assert_eq!(datagrams as usize, fragments.datagrams.len());
    assert!(
        accounts
            .clone()
            .all(|account| account.datagrams <= BOUNDS.datagrams / super::SHARE)
    );
    assert!(
        accounts
            .clone()
            .all(|account| account.bytes <= BOUNDS.bytes / u64::from(super::SHARE))
    );
    assert!(
        entries
            .clone()
            .all(|entry: &Entry| entry.spans.capacity() <= MAX_FRAGMENTS)
    );
}

#[test]
fn a_storm_from_everywhere_stays_within_the_bounds_and_every_frame_is_accounted_for() {
    let mut fragments = Fragments::new(BOUNDS);
    let mut word = 1_u64;
    let (mut went, mut dropped, mut arrived) = (0, 0, 0);
    for step in 0..50_000_u64 {
        word = word
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bits = word >> 20;
        // Mostly side by side, sometimes one over the other; sometimes the first.
        let at = (bits >> 20 & 7) as u16 * 100;
        let len = if bits >> 8 & 31 == 0 { 1600 } else { 800 };
        let (source, id) = ((bits & 0xf) as u8, (bits >> 16 & 15) as u16);
        let frame = fragment(source, id, at, len, bits >> 30 & 7 > 0);
        let now_ns = step * 1_000_000;
        if bits >> 33 & 15 == 0 {
            dropped += fragments.expire(now_ns);
        }
        arrived += 1;
        match arrive(&mut fragments, now_ns, &frame) {
            Arrival::Held => {}
            Arrival::Go { released, .. } => went += 1 + released.len(),
            Arrival::Drop { released, .. } => dropped += 1 + released,
        }
        dropped += fragments.take_evicted();
        let held: usize = fragments.datagrams.values().map(|entry| entry.held.len()).sum();
        assert_eq!(went + dropped + held, arrived, "step {step}");
        if step % 64 == 0 {
            check(&fragments);
        }
    }
    assert!(went > 1000 && dropped > 1000, "{went} {dropped}");
    fragments.expire(u64::MAX);
    check(&fragments);
    assert!(fragments.datagrams.is_empty() && fragments.accounts.is_empty() && fragments.bytes == 0);
}

#[test]
fn a_full_table_forgets_the_oldest() {
    let mut fragments = Fragments::new(BOUNDS);
    for source in 0..64 {
        assert_eq!(
            arrive(&mut fragments, u64::from(source), &fragment(source, 1, 9, 8, true)),
            Arrival::Held
        );
    }
    let first = arrive(&mut fragments, 64, &fragment(200, 1, 0, 72, true));
    assert!(matches!(first, Arrival::Go { .. }));
    assert_eq!(fragments.take_evicted(), 1);
    let Arrival::Go { released, .. } = arrive(&mut fragments, 65, &fragment(63, 1, 0, 72, true)) else {
        panic!("its first fragment has come");
    };
    assert_eq!(released, [fragment(63, 1, 9, 8, true)]);
    assert_eq!(fragments.take_evicted(), 0);
    let Arrival::Go { released, .. } = arrive(&mut fragments, 66, &fragment(0, 1, 0, 72, true)) else {
        panic!("a first fragment");
    };
    assert!(released.is_empty(), "it had made way");
    check(&fragments);
}

#[test]
fn whoever_forges_sources_keeps_nobody_out_whose_fragments_come_together() {
    for len in [8, 1400] {
        let mut fragments = Fragments::new(BOUNDS);
        for round in 0..1000_u16 {
            for source in 0..32 {
                arrive(&mut fragments, round.into(), &fragment(source, round, 200, len, true));
            }
            let honest = [(9, true), (0, true), (18, false)].map(|(at, more)| fragment(200, round, at, 72, more));
            let gone: usize = honest
                .iter()
                .map(|frame| match arrive(&mut fragments, round.into(), frame) {
                    Arrival::Go { released, .. } => 1 + released.len(),
                    Arrival::Held => 0,
                    Arrival::Drop { outcome, .. } => panic!("{len}, {round}: {outcome:?}"),
                })
                .sum();
            assert_eq!(gone, 3, "{len}, {round}");
            check(&fragments);
        }
    }
}

#[test]
fn datagrams_are_forgotten_together() {
    let mut fragments = Fragments::new(BOUNDS);
    for source in 0..60 {
        arrive(
            &mut fragments,
            u64::from(source) * 1_000_000,
            &fragment(source, 1, 9, 8, true),
        );
    }
    assert_eq!(fragments.deadline(), Some(1_000_000_000), "the first comes alone");
    assert_eq!(fragments.expire(1_000_000_000), 1);
    assert_eq!(fragments.deadline(), Some(1_100_000_000));
    assert_eq!(fragments.expire(1_100_000_000), 59);
    assert_eq!(fragments.deadline(), None);
}

#[test]
fn a_datagram_of_too_many_pieces_is_refused() {
    let mut fragments = Fragments::new(FragmentBounds::default());
    for at in 0..MAX_FRAGMENTS as u16 {
        let arrival = arrive(&mut fragments, 0, &fragment(1, 1, at, 8, true));
        assert!(matches!(arrival, Arrival::Go { .. }), "{at}");
    }
    let refused = Arrival::drop(Outcome::FragmentRoom);
    assert_eq!(arrive(&mut fragments, 0, &fragment(1, 1, 500, 8, true)), refused);
    assert_eq!(arrive(&mut fragments, 0, &fragment(1, 1, 600, 8, false)), refused);
}

#[test]
fn what_the_rules_refuse_is_refused_to_the_last_fragment() {
    let mut fragments = Fragments::new(BOUNDS);
    let first = fragment(1, 1, 0, 16, true);
    arrive(&mut fragments, 0, &first);
    let refused = Datagram::Refused(xdp_prog::verdict::Verdict::DropPacketLimit);
    fragments.settle(&Packet::parse(&first).unwrap(), refused);
    let later = arrive(&mut fragments, 0, &fragment(1, 1, 2, 16, true));
    assert!(matches!(later, Arrival::Go { datagram, .. } if datagram == refused));
}

#[test]
fn the_memory_bound_is_what_the_reference_says() {
    let bound = FragmentBounds::default().memory_bound();
    let per_datagram = (bound - FragmentBounds::default().bytes) / u64::from(FragmentBounds::default().datagrams);
    assert!((1024..2048).contains(&per_datagram), "{per_datagram}");
    assert_eq!(
        FragmentBounds {
            datagrams: u32::MAX,
            bytes: u64::MAX,
            timeout_ms: 1
        }
        .memory_bound(),
        u64::MAX
    );
}

#[test]
fn identifications_are_never_zero() {
    let mut fragments = Fragments::new(BOUNDS);
    let ids: std::collections::BTreeSet<u16> = (0..65_535).map(|_| fragments.fresh_id()).collect();
    assert_eq!(ids.len(), 65_535);
    assert!(!ids.contains(&0));
}
