//! Frames that wait for a next hop: first in, first out, each worker its own. Never more than its bounds, in frames and in bytes.

use std::collections::{BTreeMap, VecDeque};

use xdp_prog::abi::BackendIndex;

use super::{FlowKey, HoldBounds, Kind, Outcome};

/// How often a next hop is asked for while frames wait for it.
const ASK_AGAIN_NS: u64 = 1_000_000_000;

/// A frame that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) kind: Kind,
    pub(super) flow: FlowKey,
    pub(super) frame: Vec<u8>,
    pub(super) since_ns: u64,
}

impl Held {
    pub(super) fn deadline_ns(&self, bounds: HoldBounds) -> u64 {
        self.since_ns.saturating_add(u64::from(bounds.timeout_ms) * 1_000_000)
    }
}

/// A backend that frames wait for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    frames: u32,
    asked_ns: u64,
}

/// All that wait at one worker.
#[derive(Debug, Default)]
pub(super) struct Hold {
    held: VecDeque<Held>,
    bytes: u64,
    /// As many as there are backends with frames, at most.
    wanted: BTreeMap<BackendIndex, Wanted>,
    /// Who was asked for when all were let go: those who come back did not come first.
    asked_ns: BTreeMap<BackendIndex, u64>,
}

impl Hold {
    /// Keeps a frame; whether its backend's next hop is to be asked for: with the first frame that waits, and once a second.
    pub(super) fn put(
        &mut self,
        bounds: HoldBounds,
        now_ns: u64,
        backend: BackendIndex,
        held: Held,
    ) -> Result<bool, Outcome> {
        let waiting = self.wanted.get(&backend);
        let bytes = self.bytes.saturating_add(held.frame.len() as u64);
        if self.held.len() >= bounds.frames as usize
            || waiting.map_or(0, |waiting| waiting.frames) >= bounds.per_backend
            || bytes > bounds.bytes()
        {
            return Err(Outcome::HoldRoom);
        }
        let asked_ns = waiting
            .map(|waiting| waiting.asked_ns)
            .or_else(|| self.asked_ns.remove(&backend));
        let ask = asked_ns.is_none_or(|asked_ns| now_ns.saturating_sub(asked_ns) >= ASK_AGAIN_NS);
        let wanted = Wanted {
            frames: waiting.map_or(0, |waiting| waiting.frames).saturating_add(1),
            asked_ns: asked_ns.filter(|_| !ask).unwrap_or(now_ns),
        };
        self.wanted.insert(backend, wanted);
        self.bytes = bytes;
        self.held.push_back(held);
        Ok(ask)
    }

    /// Lets all go, oldest first. Those that are put again keep their places, if in this order.
    pub(super) fn take_all(&mut self) -> VecDeque<Held> {
        self.asked_ns = std::mem::take(&mut self.wanted)
            .into_iter()
            .map(|(backend, wanted)| (backend, wanted.asked_ns))
            .collect();
        self.bytes = 0;
        std::mem::take(&mut self.held)
    }

    /// When the oldest has waited long enough, or a next hop is to be asked for again.
    pub(super) fn deadline(&self, bounds: HoldBounds) -> Option<u64> {
        let oldest = self.held.front().map(|held| held.deadline_ns(bounds));
        let asked_ns = self.wanted.values().map(|wanted| wanted.asked_ns).min();
        let again = asked_ns.map(|asked_ns| asked_ns.saturating_add(ASK_AGAIN_NS));
        oldest.into_iter().chain(again).min()
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Bytes of frames that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xdp_prog::abi::BackendIndex;

    use super::{ASK_AGAIN_NS, Held, Hold};
    use crate::slow::{FlowKey, HoldBounds, Kind, Outcome};

    const BOUNDS: HoldBounds = HoldBounds {
        frames: 8,
        per_backend: 3,
        timeout_ms: 3000,
    };
    const ONE: BackendIndex = BackendIndex(1);
    const TWO: BackendIndex = BackendIndex(2);

    fn held(since_ns: u64, bytes: usize) -> Held {
        let flow = FlowKey {
            source: [192, 0, 2, 1].into(),
            destination: [203, 0, 113, 1].into(),
            protocol: 6,
            source_port: 1,
            destination_port: 80,
        };
        Held {
            kind: Kind::NextHop,
            flow,
            frame: vec![0; bytes],
            since_ns,
        }
    }

    #[test]
    fn a_next_hop_is_asked_for_with_the_first_frame_and_then_once_a_second() {
        let mut hold = Hold::default();
        let mut put = |now_ns, backend| hold.put(BOUNDS, now_ns, backend, held(now_ns, 60));
        assert_eq!(put(5, ONE), Ok(true));
        assert_eq!(put(6, ONE), Ok(false));
        assert_eq!(put(6, TWO), Ok(true), "each backend has its own");
        assert_eq!(put(5 + ASK_AGAIN_NS, ONE), Ok(true));
        assert_eq!(put(6 + ASK_AGAIN_NS, TWO), Ok(true));
    }

    #[test]
    fn frames_that_come_back_do_not_ask_again_and_keep_their_order() {
        let mut hold = Hold::default();
        for since_ns in 0..3 {
            hold.put(BOUNDS, since_ns, ONE, held(since_ns, 60)).unwrap();
        }
        assert_eq!(hold.deadline(BOUNDS), Some(ASK_AGAIN_NS));
        for turn in 0..5 {
            for frame in hold.take_all() {
                assert_eq!(hold.put(BOUNDS, 10 + turn, ONE, frame), Ok(false));
            }
        }
        let asked: Vec<_> = hold
            .take_all()
            .into_iter()
            .map(|frame| (frame.since_ns, hold.put(BOUNDS, ASK_AGAIN_NS, ONE, frame)))
            .collect();
        assert_eq!(asked, [(0, Ok(true)), (1, Ok(false)), (2, Ok(false))]);
        assert_eq!(hold.deadline(BOUNDS), Some(2 * ASK_AGAIN_NS));
        for frame in hold.take_all() {
            hold.put(BOUNDS, 2 * ASK_AGAIN_NS, ONE, frame).unwrap();
        }
        assert_eq!(hold.deadline(BOUNDS), Some(3_000_000_000), "the oldest is due");
    }

    #[test]
    fn a_backend_whose_frames_have_gone_is_asked_for_at_once() {
        let mut hold = Hold::default();
        hold.put(BOUNDS, 1, ONE, held(1, 60)).unwrap();
        assert_eq!(hold.take_all().len(), 1);
        assert_eq!(hold.take_all().len(), 0);
        assert_eq!(hold.deadline(BOUNDS), None);
        assert_eq!(hold.put(BOUNDS, 2, ONE, held(2, 60)), Ok(true));
    }

    #[test]
    fn a_storm_of_jumbo_frames_finds_no_room_for_more_bytes_than_the_bound() {
        let bounds = HoldBounds {
            frames: 8,
            per_backend: 8,
            timeout_ms: 3000,
        };
        let mut hold = Hold::default();
        let kept = (0..8)
            .filter(|_| hold.put(bounds, 1, ONE, held(1, 9000)).is_ok())
            .count() as u64;
        assert_eq!(kept, bounds.bytes() / 9000);
        assert_eq!(hold.put(bounds, 1, TWO, held(1, 9000)), Err(Outcome::HoldRoom));
        assert!(hold.put(bounds, 1, TWO, held(1, 60)).is_ok(), "a small one fits");
    }

    proptest! {
        #[test]
        fn what_waits_is_within_every_bound(
            frames in proptest::collection::vec((1..5u16, 14..9000usize, any::<bool>()), 1..100),
        ) {
            let mut hold = Hold::default();
            let mut kept = 0;
            for (now_ns, (backend, bytes, empty)) in frames.into_iter().enumerate() {
                let now_ns = now_ns as u64;
                if empty && now_ns.is_multiple_of(7) {
                    prop_assert_eq!(hold.take_all().len(), std::mem::take(&mut kept));
                    prop_assert_eq!(hold.bytes(), 0);
                }
                match hold.put(BOUNDS, now_ns, BackendIndex(backend), held(now_ns, bytes)) {
                    Ok(_) => kept += 1,
                    Err(outcome) => prop_assert_eq!(outcome, Outcome::HoldRoom),
                }
                prop_assert_eq!(hold.len(), kept);
                prop_assert!(kept <= 8 && hold.bytes() <= BOUNDS.bytes());
                prop_assert!(hold.wanted.values().all(|wanted| (1..=3).contains(&wanted.frames)));
            }
        }
    }
}
