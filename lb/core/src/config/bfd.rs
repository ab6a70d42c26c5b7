//! `bfd` of a BGP peer: how fast its silence is noticed.
//!
//! Never looks whether the peer has BFD: one that has not is never up, and never lost.

use std::ops::RangeInclusive;

use super::read::At;
use crate::bfd::{Reach, Timers};

/// [`Timers::min_tx_us`] and [`Timers::min_rx_us`], in milliseconds: with shorter ones a busy machine is taken for a dead one.
const INTERVALS_MS: RangeInclusive<u32> = 10..=60_000;
/// [`Timers::multiplier`]: with 1, a single lost packet is a dead peer.
const MULTIPLIERS: RangeInclusive<u8> = 1..=50;

/// `bfd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BfdConfig {
    /// How fast.
    pub timers: Timers,
    /// Over which port, and whether routers may lie between.
    pub reach: Reach,
}

/// `bfd`. `reach`: where it says nothing of that.
pub(super) fn bfd(at: &At<'_>, reach: Reach) -> Option<BfdConfig> {
    let default = Timers::default();
    at.fields(|fields| {
        let mut interval = |key, default_us| {
            let (least, most) = INTERVALS_MS.into_inner();
            fields.or(key, default_us, |at| at.within(least, most).map(|ms| ms * 1000))
        };
        let min_tx_us = interval("min_tx_ms", default.min_tx_us);
        let min_rx_us = interval("min_rx_ms", default.min_rx_us);
        let (least, most) = MULTIPLIERS.into_inner();
        let multiplier = fields.or("multiplier", default.multiplier, |at| at.within(least, most));
        let reach = fields.or("multihop", reach, |at| {
            let is_multihop = at.bool()?;
            Some(if is_multihop { Reach::Multihop } else { Reach::SingleHop })
        });
        Some(BfdConfig {
            timers: Timers {
                min_tx_us: min_tx_us?,
                min_rx_us: min_rx_us?,
                multiplier: multiplier?,
            },
            reach: reach?,
        })
    })
}
