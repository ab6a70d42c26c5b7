//! Taking over: a new program in place of the old one, under load.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lab::RawSocket;
use lb::datapath::{AttachMode, Attachment, Balancer, holders};
use xdp_prog::verdict::Verdict;

use crate::{
    attach::wired,
    vip::{add_vip, balancer, syn},
};

/// Swaps under load.
const ROUNDS: usize = 30;

/// Sends SYNs to the VIP while `swap` is called with both balancers in turn; returns how many were sent and how many
/// both programs counted.
fn swapped_under_load(swap: impl Fn(&mut Option<Attachment>, &Balancer) -> Result<()> + Sync) -> Result<(u64, u64)> {
    let (ns, far) = wired()?;
    let mut pair = [balancer()?, balancer()?];
    for one in &mut pair {
        one.slots.add_segment()?;
        add_vip(one, 0)?;
    }
    let socket = RawSocket::open(&far, "wire0")?;
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    ns.run(|| {
        let mut attachment = Some(pair[0].program.attach("lb0", AttachMode::Native)?);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| -> Result<()> {
                while !done.load(Ordering::Relaxed) {
                    // A veth holds 256 frames between its ends and drops what is beyond: that loss would not be ours.
                    for _ in 0..32 {
                        socket.send(&syn())?;
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            });
            let swapping = (0..ROUNDS).try_for_each(|round| swap(&mut attachment, &pair[(round + 1) % 2]));
            done.store(true, Ordering::Relaxed);
            sender.join().expect("the sender panicked")?;
            swapping
        })?;
        // What is still in the veth's ring.
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    })?;
    let counted = pair
        .iter()
        .map(|one| one.counters.verdicts.of(Verdict::SlowNoBackend))
        .sum::<Result<u64, _>>()?;
    Ok((sent.into_inner(), counted))
}

#[test]
fn taking_over_loses_no_packet_and_attaching_anew_does() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (sent, counted) = swapped_under_load(|attachment, next| {
        let attachment = attachment.as_mut().context("attached")?;
        next.program.take_over(attachment)?;
        assert_eq!(holders("lb0")?[0].program_id, next.program.facts()?.id);
        Ok(())
    })?;
    assert!(sent > 100, "{sent}");
    assert_eq!(counted, sent, "every packet met one of the two programs");

    let (sent, counted) = swapped_under_load(|attachment, next| {
        attachment.take().context("attached")?.detach()?;
        *attachment = Some(next.program.attach("lb0", AttachMode::Native)?);
        Ok(())
    })?;
    assert!(
        counted < sent,
        "without an atomic swap packets get past: {counted} of {sent}"
    );
    Ok(())
}
