//! How much the slow path may do and hold. Never grows by itself: what is over a bound is shed or forgotten, and counted.

use std::ops::Index;

use super::Kind;
use crate::{config::FRAME_BYTES, desired::Rate};

/// What the slow path of one LB node takes, by kind of work: one token bucket each, shared by all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets([Rate; Kind::ALL.len()]);

impl Budgets {
    /// From the rate of each kind.
    pub fn new(rate: impl FnMut(Kind) -> Rate) -> Self {
        Self(Kind::ALL.map(rate))
    }
}

impl From<[Rate; Kind::ALL.len()]> for Budgets {
    /// In the order of [`Kind::ALL`].
    fn from(rates: [Rate; Kind::ALL.len()]) -> Self {
        Self(rates)
    }
}

impl Default for Budgets {
    /// 2,000 a second of neighbour questions, 5,000 of echo and of rejects, 10,000 of ICMP errors and of unknown next hops,
    /// 50,000 of what is too big or unusual, 100,000 of fragments; each burst is what a second brings.
    fn default() -> Self {
        Self::new(|kind| {
            let per_second = match kind {
                Kind::Neighbour => 2000,
                Kind::Echo | Kind::Reject => 5000,
                Kind::IcmpError | Kind::NextHop => 10_000,
                Kind::TooBig | Kind::Unusual => 50_000,
                Kind::Fragment => 100_000,
            };
            Rate {
                per_second,
                burst: per_second,
            }
        })
    }
}

impl Index<Kind> for Budgets {
    type Output = Rate;

    fn index(&self, kind: Kind) -> &Rate {
        let [
            neighbour,
            echo,
            icmp_error,
            too_big,
            fragment,
            unusual,
            next_hop,
            reject,
        ] = &self.0;
        match kind {
            Kind::Neighbour => neighbour,
            Kind::Echo => echo,
            Kind::IcmpError => icmp_error,
            Kind::TooBig => too_big,
            Kind::Fragment => fragment,
            Kind::Unusual => unusual,
            Kind::NextHop => next_hop,
            Kind::Reject => reject,
        }
    }
}

/// Bounds of virtual reassembly, of the whole LB node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentBounds {
    /// Datagrams tracked at once.
    pub datagrams: u32,
    /// Bytes of frames held until their datagram's first fragment comes.
    pub bytes: u64,
    /// How long a datagram is tracked after its first fragment seen, in milliseconds.
    pub timeout_ms: u32,
}

impl Default for FragmentBounds {
    /// 4,096 datagrams, 8 MiB, 5 seconds.
    fn default() -> Self {
        Self {
            datagrams: 4096,
            bytes: 8 << 20,
            timeout_ms: 5000,
        }
    }
}

/// Bounds of what one worker holds while next hops resolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldBounds {
    /// Frames held at once.
    pub frames: u32,
    /// Frames held at once for one backend, at most [`Self::frames`].
    pub per_backend: u32,
    /// How long a frame is held, in milliseconds.
    pub timeout_ms: u32,
}

impl HoldBounds {
    /// Bytes of frames held at once: [`FRAME_BYTES`] for each, whether they are longer or shorter; 4 MiB by default.
    pub fn bytes(&self) -> u64 {
        u64::from(self.frames) * u64::from(FRAME_BYTES)
    }
}

impl Default for HoldBounds {
    /// 1,024 frames, 64 for one backend, 3 seconds.
    fn default() -> Self {
        Self {
            frames: 1024,
            per_backend: 64,
            timeout_ms: 3000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Budgets, Kind};
    use crate::desired::Rate;

    #[test]
    fn each_kind_has_its_own_budget() {
        let rate = |kind: Kind| Rate {
            per_second: kind as u32 + 1,
            burst: 10 + kind as u32,
        };
        let budgets = Budgets::new(rate);
        for kind in Kind::ALL {
            assert_eq!(budgets[kind], rate(kind), "{kind:?}");
        }
    }
}
