//! What goes in and what comes out.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use aya::programs::XdpMode;
use lb::xsk::{BusyPoll, Tally, XskMode, XskSettings};
use lb_core::slow::Event;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use xdp_prog::{abi::BackendIndex, verdict::Verdict};

use crate::bed::{BARE, Bed, Op, Plan, REFLECTED, TO_XSK, WAIT, Wiring, frame, grown, refused, start, swapped};

#[test]
fn a_handler_sees_the_verdict_and_every_byte() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for xdp in [XdpMode::Driver, XdpMode::Skb] {
        let bed = Bed::new(Plan { xdp, ..Plan::default() })?;
        for (number, len) in [64, 65, 500, 1514].into_iter().enumerate() {
            let verdict = Verdict::SlowIcmp as u8 + number as u8;
            let sent = frame(TO_XSK, verdict, Op::Keep, number as u32, len);
            bed.wires[0].send(&sent)?;
            let (ifindex, queue, seen, bytes) = bed.kept()?;
            assert_eq!((ifindex, queue), (bed.interfaces[0].index, 0));
            assert_eq!(seen as u8, verdict);
            assert_eq!(bytes, sent);
        }
        assert_eq!(bed.tally(Tally::Received), 4);
        assert_eq!(bed.path.status()[0].mode, XskMode::Copy);
    }
    Ok(())
}

#[test]
fn what_a_handler_sends_is_on_the_wire() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for xdp in [XdpMode::Driver, XdpMode::Skb] {
        let bed = Bed::new(Plan { xdp, ..Plan::default() })?;
        for number in 0..100 {
            let sent = frame(
                TO_XSK,
                Verdict::SlowIcmp as u8,
                Op::Echo,
                number,
                64 + 14 * number as usize,
            );
            bed.wires[0].send(&sent)?;
            bed.comes_out(0, &swapped(sent))?;
        }
        bed.until("all sent", |workers| workers[0].tally(Tally::Sent) == 100)?;
    }
    Ok(())
}

#[test]
fn a_frame_without_a_verdict_is_dropped_and_counted() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    // So many that every frame has been used with metadata before it is without.
    for number in 0..3000 {
        bed.wires[0].send(&frame(TO_XSK, Verdict::SlowIcmp as u8, Op::Event, number, 64))?;
        if number % 500 == 0 {
            bed.until("all seen", |workers| {
                workers[0].tally(Tally::Received) == u64::from(number) + 1
            })?;
        }
    }
    bed.until("all seen", |workers| workers[0].tally(Tally::Received) == 3000)?;
    for number in 0..10 {
        bed.wires[0].send(&frame(TO_XSK, BARE, Op::Keep, number, 64))?;
        // A number that no verdict has.
        bed.wires[0].send(&frame(TO_XSK, 200, Op::Keep, number, 64))?;
    }
    bed.until("all without a reason", |workers| {
        workers[0].tally(Tally::NoReason) == 20
    })?;
    ensure!(bed.seen.try_recv().is_err(), "the handler saw one");
    Ok(())
}

#[test]
fn two_interfaces_exchange_frames_through_one_memory() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        interfaces: 2,
        ..Plan::default()
    })?;
    assert_eq!(bed.path.groups().len(), 1);
    for number in 0..200 {
        let (from, to) = if number % 2 == 0 { (0, 1) } else { (1, 0) };
        let sent = frame(
            TO_XSK,
            Verdict::SlowTooBig as u8,
            Op::Cross,
            number,
            64 + number as usize,
        );
        bed.wires[from].send(&sent)?;
        bed.comes_out(to, &swapped(sent))?;
    }
    let status = bed.path.status();
    for worker in &status {
        assert_eq!(worker.tally(Tally::HandedOver), 100, "{worker:?}");
        assert_eq!(worker.tally(Tally::Sent), 100, "{worker:?}");
    }
    Ok(())
}

#[test]
fn what_nobody_can_send_is_counted() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    bed.wires[0].send(&frame(TO_XSK, Verdict::SlowIcmp as u8, Op::Nowhere, 1, 64))?;
    bed.wires[0].send(&frame(TO_XSK, Verdict::SlowIcmp as u8, Op::Kernel, 2, 64))?;
    bed.until("counted", |workers| {
        workers[0].tally(Tally::NoInterface) == 1 && workers[0].tally(Tally::ToKernelUnsupported) == 1
    })?;
    Ok(())
}

#[test]
fn jumbo_frames_are_put_together_and_sent_in_pieces() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for frame_bytes in [2048, 4096] {
        let bed = Bed::new(Plan {
            mtu: 9000,
            settings: XskSettings {
                frame_bytes,
                ..XskSettings::default()
            },
            ..Plan::default()
        })?;
        assert!(bed.path.status()[0].multi_buffer);
        for (number, len) in [1792, 1793, 3840, 3841, 5000, 9014].into_iter().enumerate() {
            let sent = frame(TO_XSK, Verdict::SlowTooBig as u8, Op::Keep, number as u32, len);
            bed.wires[0].send(&sent)?;
            let (.., verdict, bytes) = bed.kept()?;
            assert_eq!(verdict, Verdict::SlowTooBig);
            assert!(
                bytes == sent,
                "{len} bytes in frames of {frame_bytes} came as {}",
                bytes.len()
            );
            let sent = frame(TO_XSK, Verdict::SlowTooBig as u8, Op::Echo, number as u32, len);
            bed.wires[0].send(&sent)?;
            bed.comes_out(0, &swapped(sent))?;
        }
        // Longer than anything that came in.
        let sent = frame(TO_XSK, Verdict::SlowTooBig as u8, Op::Grow, 9, 2800);
        bed.wires[0].send(&sent)?;
        bed.comes_out(0, &grown(&sent))?;
        bed.until("all frames are back", |_| {
            let (accounted, all) = bed.frames();
            accounted == all
        })?;
    }
    Ok(())
}

#[test]
fn every_queue_has_a_worker() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        queues: 4,
        ..Plan::default()
    })?;
    assert_eq!(bed.path.status().len(), 4);
    assert_eq!(bed.path.groups().len(), 4, "queues of one interface share nothing");
    let cpus = std::thread::available_parallelism()?.get();
    assert_eq!(from_every_cpu(&bed)?.len(), cpus.min(4));
    Ok(())
}

#[test]
fn workers_without_a_queue_to_send_by_use_anothers() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        queues: 4,
        tx_queues: Some(1),
        ..Plan::default()
    })?;
    assert_eq!((bed.interfaces[0].rx_queues, bed.interfaces[0].tx_queues), (4, 1));
    assert_eq!(bed.path.groups().len(), 1, "frames pass between queues");
    let queues = from_every_cpu(&bed)?;
    let sent = queues.len() as u64;
    bed.until("all sent", |workers| workers[0].tally(Tally::Sent) == sent)?;
    assert_eq!(bed.tally(Tally::Sent), sent, "by the first queue only");
    Ok(())
}

/// Sends from each CPU, which is from each queue for a packet socket: one frame to keep and one to send back. Returns the queues
/// that they came in by.
fn from_every_cpu(bed: &Bed) -> Result<BTreeSet<u32>> {
    let mut queues = BTreeSet::new();
    for cpu in 0..std::thread::available_parallelism()?.get() {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set)?;
        let sent = frame(TO_XSK, Verdict::SlowIcmp as u8, Op::Keep, cpu as u32, 64);
        bed.wires[0].send(&sent)?;
        let (_, queue, _, bytes) = bed.kept()?;
        ensure!(bytes == sent);
        queues.insert(queue);
        let sent = frame(TO_XSK, Verdict::SlowIcmp as u8, Op::Echo, cpu as u32, 64);
        bed.wires[0].send(&sent)?;
        bed.comes_out(0, &swapped(sent))?;
    }
    Ok(queues)
}

#[test]
fn events_come_to_the_control_side_and_what_does_not_fit_is_counted() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    bed.wires[0].send(&frame(TO_XSK, Verdict::SlowNextHop as u8, Op::Event, 1, 64))?;
    let event = bed.path.events().recv_timeout(WAIT)?;
    assert_eq!(event, Event::NextHopWanted(BackendIndex(7)));
    let many = lb::xsk::EVENTS as u32 + 100;
    for number in 0..many {
        bed.wires[0].send(&frame(TO_XSK, Verdict::SlowNextHop as u8, Op::Event, number, 64))?;
        if number % 256 == 0 {
            bed.until("all seen", |workers| {
                workers[0].tally(Tally::Received) == u64::from(number) + 2
            })?;
        }
    }
    bed.until("some lost", |workers| workers[0].tally(Tally::EventsLost) == 100)?;
    Ok(())
}

#[test]
fn fast_path_and_kernel_get_what_is_theirs() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    let sent = frame(REFLECTED, 0, Op::Keep, 1, 64);
    bed.wires[0].send(&sent)?;
    bed.comes_out(0, &swapped(sent))?;
    assert_eq!(bed.tally(Tally::Received), 0);
    Ok(())
}

#[test]
fn busy_polling_workers_work() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        settings: XskSettings {
            busy_poll: Some(BusyPoll {
                duration_us: 50,
                budget_packets: 64,
            }),
            ..XskSettings::default()
        },
        ..Plan::default()
    })?;
    for number in 0..100 {
        let sent = frame(TO_XSK, Verdict::SlowIcmp as u8, Op::Echo, number, 64);
        bed.wires[0].send(&sent)?;
        bed.comes_out(0, &swapped(sent))?;
    }
    Ok(())
}

#[test]
fn zero_copy_where_there_is_none_is_refused_with_what_to_do() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut wiring = Wiring::new(&Plan::default())?;
    let settings = XskSettings {
        mode: XskMode::ZeroCopy,
        ..XskSettings::default()
    };
    let register = wiring.register()?;
    let error = refused(start(
        &wiring,
        settings,
        Box::new(|_, _| unreachable!()),
        register,
        false,
    ))?
    .to_string();
    assert!(
        error.contains("n0 queue 0") && error.contains("use copy mode"),
        "{error}"
    );
    Ok(())
}
