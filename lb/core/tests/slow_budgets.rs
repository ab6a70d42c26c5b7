//! Budgets under threads, as workers share them. Never sleeps: time is an argument.
#![expect(clippy::disallowed_methods, reason = "lb-core has no threads; its tests do")]

use std::{net::IpAddr, sync::Arc, thread};

use lb_core::{
    desired::Rate,
    slow::{Bounds, Budgets, Common, Kind},
};

const PER_SECOND: u32 = 1000;
const BURST: u32 = 50;
const TRIES: u64 = 200_000;
/// Between two tries of a thread: all of them try ten times for what comes.
const STEP_NS: u64 = 100_000;

/// What two threads get at the same moments.
fn taken(take: impl Fn(&Common, u64) -> bool + Copy + Send + 'static) -> u64 {
    let rate = Rate {
        per_second: PER_SECOND,
        burst: BURST,
    };
    let bounds = Bounds {
        budgets: Budgets::new(|_| rate),
        replies_per_source: PER_SECOND,
        ..Bounds::default()
    };
    let common = Arc::new(Common::new(bounds, 7));
    let threads = [common.clone(), common].map(|common| {
        thread::spawn(move || (0..TRIES).filter(|attempt| take(&common, attempt * STEP_NS)).count() as u64)
    });
    threads
        .into_iter()
        .map(|thread| thread.join().unwrap_or_default())
        .sum()
}

#[test]
fn two_threads_get_the_rate_and_the_burst_and_no_more() {
    let due = u64::from(PER_SECOND) * (TRIES * STEP_NS) / 1_000_000_000;
    let kind = taken(|common, now_ns| common.take(Kind::Echo, now_ns));
    assert!((due..=due + u64::from(BURST)).contains(&kind), "{kind} of {due}");
    let source = IpAddr::from([192, 0, 2, 1]);
    let answers = taken(move |common, now_ns| common.take_for(source, now_ns));
    assert!(
        (due..=due + u64::from(PER_SECOND)).contains(&answers),
        "{answers} of {due}"
    );
}
