//! The live maps for readers in user space: they see what packets see, while it is written and after it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Result;
use lb::datapath::LiveTables;
use lb_core::plan::Write;
use xdp_prog::{
    abi::{BackendIndex, SEGMENT_UNITS, SEGMENT_WORDS},
    host::Host,
    verdict::Verdict,
};

use crate::vip::{XDP_TX, add_backend, add_vip, balancer, syn};

const INGRESS: u32 = 1;

fn verdict(live: &LiveTables) -> Verdict {
    Host::new(live.clone(), INGRESS).balance(&syn()).verdict
}

#[test]
fn a_reader_follows_every_store_and_sees_segments_that_are_made_later() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut balancer = balancer()?;
    let live = balancer.live();
    assert_eq!(verdict(&live), Verdict::PassNotVip);
    // The table lies in the second segment, which does not exist yet: so says the program too.
    add_vip(&balancer, SEGMENT_UNITS as u32)?;
    assert_eq!(verdict(&live), Verdict::DropInternal);
    balancer.slots.add_segment()?;
    assert_eq!(verdict(&live), Verdict::DropInternal);
    balancer.slots.add_segment()?;
    assert_eq!(verdict(&live), Verdict::SlowNoBackend);
    add_backend(&balancer)?;
    for word in 0..64 {
        balancer
            .slots
            .store(SEGMENT_WORDS as u32 + word, 0x0005_0005_0005_0005)?;
    }
    let outcome = Host::new(live.clone(), INGRESS).balance(&syn());
    assert_eq!(outcome.verdict, Verdict::ForwardTx);
    assert_eq!(outcome.choice.map(|choice| choice.backend), Some(BackendIndex(5)));
    let run = balancer.program.test_run(&syn(), 1)?;
    assert_eq!(
        (run.retval, run.data_out),
        (XDP_TX, outcome.frame),
        "as the program does"
    );
    // In another thread, and after the balancer is gone: the maps live on.
    let elsewhere = std::thread::scope(|scope| scope.spawn(|| verdict(&live)).join());
    assert_eq!(elsewhere.ok(), Some(Verdict::ForwardTx));
    drop(balancer);
    assert_eq!(verdict(&live), Verdict::ForwardTx);
    Ok(())
}

#[test]
fn every_grace_period_of_a_plan_waits_for_readers_too() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut balancer = balancer()?;
    let waited = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&waited);
    balancer.on_grace(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    let applied = balancer.apply(&[Write::Grace, Write::AddSegment(0), Write::Grace])?;
    assert_eq!((applied.grace_periods, waited.load(Ordering::Relaxed)), (2, 2));
    balancer.apply(&[Write::AddSegment(1)])?;
    assert_eq!(waited.load(Ordering::Relaxed), 2, "and nothing else does");
    Ok(())
}
