//! How long lookup tables take to build, beside the peer crate `maglev`.
//!
//! Never compares like with unlike: the peer takes a prime number of slots and no weights, and walks its permutations by division;
//! it gets the next prime.

use std::{hint::black_box, time::Instant};

use anyhow::{Context as _, Result};
use lb_core::{
    desired::{BackendId, Member},
    maglev,
};
use serde::{Deserialize, Serialize};

use crate::stats::Summary;

/// Backends and slots of each row; the default table of so many backends, then the largest.
const SIZES: [(usize, usize); 5] = [(3, 256), (10, 1_024), (100, 8_192), (1_000, 65_536), (5_000, 65_536)];
/// The peer takes half a second for the largest table of so many backends.
const PEER_BACKENDS: usize = 1_000;
const PEER_RUNS: u32 = 3;
/// The design's goal for 1,000 backends and 65,536 slots, in ms.
const GOAL_MS: f64 = 0.8;

/// Build time of a lookup table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// Backends.
    pub(crate) backends: usize,
    /// Slots.
    pub(crate) slots: usize,
    /// Our time, in ms.
    pub(crate) ms: Summary,
    /// The peer's, in ms; it takes seconds for the most backends.
    pub(crate) peer_ms: Option<Summary>,
    /// The design's goal, in ms.
    pub(crate) goal_ms: Option<f64>,
}

/// Builds each table `runs` times, and the peer's a few times.
pub(crate) fn measure(runs: u32) -> Result<Vec<Build>> {
    SIZES
        .into_iter()
        .map(|(backends, slots)| {
            let names: Vec<String> = (0..backends).map(|number| format!("node-{number:06}")).collect();
            let members: Vec<Member> = names
                .iter()
                .map(|name| Member {
                    backend: BackendId(name.as_str().into()),
                    weight: 1,
                })
                .collect();
            let (mut ours, mut peer) = (Vec::new(), Vec::new());
            for _ in 0..runs {
                ours.push(ms(|| drop(black_box(maglev::build(black_box(&members), slots)))));
            }
            let peer_runs = if backends <= PEER_BACKENDS {
                runs.min(PEER_RUNS)
            } else {
                0
            };
            for _ in 0..peer_runs {
                peer.push(ms(|| drop(black_box(peer_table(black_box(&names), slots)))));
            }
            Ok(Build {
                backends,
                slots,
                ms: Summary::of(&ours).context("no runs")?,
                peer_ms: Summary::of(&peer),
                goal_ms: (backends == 1_000).then_some(GOAL_MS),
            })
        })
        .collect()
}

fn peer_table(names: &[String], slots: usize) -> ::maglev::Maglev<&String> {
    ::maglev::Maglev::with_capacity(names, slots)
}

fn ms(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e3
}
