//! Workers that die, end and start again.

#![expect(clippy::unwrap_used, reason = "a panic is what a test wants of what cannot be")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::TryRecvError,
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lb::xsk::{Tally, XskInterface, XskSettings, monotonic_ns};
use xdp_prog::verdict::Verdict;

use crate::bed::{Bed, Op, Plan, REFLECTED, TO_XSK, WAIT, frame, refused, start, swapped};

const ICMP: u8 = Verdict::SlowIcmp as u8;

/// Numbers of reflected frames that came back while `work` ran, and of those that were sent.
fn reflected_during(bed: &Bed, work: impl FnOnce() -> Result<()>) -> Result<(u32, u32)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let wire = lab::RawSocket::open(&bed.wiring.peer, "p0")?;
        let stop = &stop;
        let flow = scope.spawn(move || -> Result<(u32, u32)> {
            let (mut sent, mut back) = (0, 0);
            let is_back = |frame: &[u8]| frame[12..14] == REFLECTED && frame[..6] == [2, 0, 0, 0, 0, 2];
            while !stop.load(Ordering::Acquire) {
                // ENETDOWN is a frame that was lost before it was sent.
                let _ = wire.send(&frame(REFLECTED, 0, Op::Keep, sent, 64));
                sent += 1;
                while wire.next(Duration::ZERO, is_back)?.is_some() {
                    back += 1;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            back += wire.collect(Duration::from_millis(200), is_back)?.len() as u32;
            Ok((sent, back))
        });
        let worked = work();
        stop.store(true, Ordering::Release);
        let counts = flow.join().unwrap()?;
        worked?;
        Ok(counts)
    })
}

#[test]
fn a_killed_worker_works_again_and_the_fast_path_loses_nothing() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    let (sent, back) = reflected_during(&bed, || {
        for life in 1..=3 {
            ensure!(bed.path.kill_worker(bed.interfaces[0].index, 0), "no worker to kill");
            bed.until("restarted", |workers| workers[0].restarts == life && workers[0].running)?;
            let sent = frame(TO_XSK, ICMP, Op::Echo, life as u32, 64);
            bed.wires[0].send(&sent)?;
            bed.comes_out(0, &swapped(sent))?;
        }
        Ok(())
    })?;
    ensure!(sent > 20, "only {sent} frames of the fast path");
    assert_eq!(back, sent, "frames of the fast path that came back");
    let status = bed.path.status();
    assert!(
        status[0].last_error.as_ref().unwrap().contains("killed by a test"),
        "{status:?}"
    );
    // What was counted in all lives.
    assert_eq!(status[0].tally(Tally::Received), 3);
    Ok(())
}

/// The twin of the test above: what a fast path that loses something looks like.
#[test]
fn a_fast_path_that_is_interrupted_loses_frames() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    let (sent, back) = reflected_during(&bed, || {
        bed.wiring.node.ip(&["link", "set", "n0", "down"])?;
        // On a busy machine the flow may not get to run for a while.
        std::thread::sleep(Duration::from_millis(300));
        bed.wiring.node.ip(&["link", "set", "n0", "up"]).map(drop)
    })?;
    ensure!(back < sent, "{back} of {sent} came back");
    Ok(())
}

#[test]
fn a_packet_that_makes_a_handler_panic_takes_its_group_only() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        queues: 2,
        ..Plan::default()
    })?;
    bed.wires[0].send(&frame(TO_XSK, ICMP, Op::Panic, 0, 64))?;
    bed.until("one restarted", |workers| {
        workers.iter().map(|worker| worker.restarts).sum::<u64>() == 1 && workers.iter().all(|worker| worker.running)
    })?;
    let status = bed.path.status();
    let died = status.iter().find(|worker| worker.restarts == 1).unwrap();
    assert!(
        died.last_error
            .as_ref()
            .unwrap()
            .ends_with("panicked: the frame said so"),
        "{died:?}"
    );
    Ok(())
}

#[test]
fn a_group_of_two_interfaces_is_restarted_as_a_whole() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        interfaces: 2,
        ..Plan::default()
    })?;
    bed.wires[0].send(&frame(TO_XSK, ICMP, Op::Panic, 0, 64))?;
    bed.until("both restarted", |workers| {
        workers.iter().all(|worker| worker.restarts == 1 && worker.running)
    })?;
    for (from, to) in [(0, 1), (1, 0)] {
        let sent = frame(TO_XSK, ICMP, Op::Cross, 1, 100);
        bed.wires[from].send(&sent)?;
        bed.comes_out(to, &swapped(sent))?;
    }
    bed.until("all frames are accounted for", |_| {
        let (accounted, all) = bed.frames();
        accounted == all
    })?;
    Ok(())
}

#[test]
fn an_interface_that_goes_takes_only_its_own_workers_along() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        interfaces: 2,
        ..Plan::default()
    })?;
    bed.wiring.node.ip(&["link", "del", "n0"])?;
    bed.until("the other interface's works again", |workers| {
        !workers[0].running && workers[1].running && workers[1].restarts > 0
    })?;
    let sent = frame(TO_XSK, ICMP, Op::Echo, 1, 100);
    bed.wires[1].send(&sent)?;
    bed.comes_out(1, &swapped(sent))?;
    let frames = bed.path.groups()[0].frames;
    assert_eq!(frames, 2048, "no memory for who is gone");
    Ok(())
}

#[test]
fn a_new_hardware_address_makes_new_handlers() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    bed.wiring
        .node
        .ip(&["link", "set", "n0", "address", "02:00:00:00:77:01"])?;
    bed.until("restarted", |workers| workers[0].running && workers[0].restarts == 1)?;
    let error = bed.path.status()[0].last_error.clone().unwrap();
    assert!(error.ends_with("has another hardware address now"), "{error}");
    // Longer than the worker looks again: it has taken the address on.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(bed.path.status()[0].restarts, 1);
    Ok(())
}

#[test]
fn live_and_restarted_sockets_follow_to_another_map() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    let entered = Arc::new(std::sync::Mutex::new(Vec::new()));
    let list = Arc::clone(&entered);
    bed.path.register_with(Box::new(move |ifindex, queue, _| {
        list.lock().unwrap().push((ifindex, queue));
        Ok(())
    }))?;
    let key = (bed.interfaces[0].index, 0);
    assert_eq!(*entered.lock().unwrap(), [key], "the live one, at once");
    bed.path.kill_worker(key.0, key.1);
    bed.until("restarted", |workers| workers[0].restarts == 1 && workers[0].running)?;
    assert_eq!(*entered.lock().unwrap(), [key, key]);
    Ok(())
}

#[test]
fn a_refused_registration_fails_the_start() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let wiring = crate::bed::Wiring::new(&Plan::default())?;
    let make = Box::new(|_: &XskInterface, _| -> Box<dyn lb::xsk::Handler> { Box::new(Idle) });
    let error = refused(start(
        &wiring,
        XskSettings::default(),
        make,
        Box::new(|_, _, _| Err("no room".into())),
        false,
    ))?;
    assert_eq!(
        error.to_string(),
        "AF_XDP socket on n0 queue 0: not registered: no room"
    );
    Ok(())
}

struct Idle;

impl lb::xsk::Handler for Idle {
    fn batch(&mut self, _: u64, _: &[lb_core::slow::Input<'_>], _: &mut lb_core::slow::Output) {}
    fn turn(&mut self, _: u64, _: &mut lb_core::slow::Output) {}
    fn deadline(&self) -> Option<u64> {
        None
    }
}

#[test]
fn a_second_slow_path_on_a_queue_is_told_who_has_it() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    let make = Box::new(|_: &XskInterface, _| -> Box<dyn lb::xsk::Handler> { Box::new(Idle) });
    let second = start(
        &bed.wiring,
        XskSettings::default(),
        make,
        Box::new(|_, _, _| Ok(())),
        false,
    );
    let error = refused(second)?.to_string();
    assert!(
        error.contains("n0 queue 0: bind:") && error.contains("another AF_XDP program"),
        "{error}"
    );
    // And the first goes on.
    let sent = frame(TO_XSK, ICMP, Op::Echo, 1, 64);
    bed.wires[0].send(&sent)?;
    bed.comes_out(0, &swapped(sent))
}

#[test]
fn deadlines_and_pokes_make_a_handler_take_its_turn() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        queues: 2,
        ..Plan::default()
    })?;
    bed.path.poke();
    let mut queues = [bed.turns.recv_timeout(WAIT)?.0, bed.turns.recv_timeout(WAIT)?.0];
    queues.sort_unstable();
    assert_eq!(queues, [0, 1]);
    let due = monotonic_ns() + 30_000_000;
    *bed.deadline.lock().unwrap() = Some(due);
    // A sleeping worker asks again when it wakes.
    bed.wires[0].send(&frame(TO_XSK, ICMP, Op::Event, 0, 64))?;
    let (_, at) = bed.turns.recv_timeout(WAIT)?;
    ensure!(at >= due, "{} ns early", due - at);
    Ok(())
}

#[test]
fn workers_are_named_nice_and_pinned_where_they_were_told() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let settings = XskSettings {
        cpus: vec![0],
        nice: 7,
        ..XskSettings::default()
    };
    // Other tests of this process have workers, too, but no interface of this name and queue.
    let plan = Plan {
        interfaces: 3,
        settings,
        ..Plan::default()
    };
    let _bed = Bed::new(plan)?;
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let read = |file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        if read("comm").trim_end() == "xsk-n2-q0" {
            let cpus = read("status")
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:\t").map(str::to_owned));
            // proc_pid_stat(5): the fields behind the name begin with the third; niceness is the 19th.
            let stat = read("stat");
            let nice = stat
                .rsplit(')')
                .next()
                .and_then(|rest| rest.split_whitespace().nth(16).map(str::to_owned));
            found.push((cpus, nice));
        }
    }
    assert_eq!(found, [(Some("0".to_owned()), Some("7".to_owned()))]);
    Ok(())
}

#[test]
fn dropping_the_slow_path_ends_its_threads_and_frees_its_queues() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        interfaces: 2,
        queues: 2,
        ..Plan::default()
    })?;
    let Bed { path, wiring, seen, .. } = bed;
    let begin = Instant::now();
    drop(path);
    let took = begin.elapsed();
    ensure!(took < Duration::from_secs(1), "{took:?}");
    // Each worker's handler has a sender, and whoever restarts workers has what makes them.
    assert_eq!(seen.try_recv(), Err(TryRecvError::Disconnected));
    // And at once, which the kernel is not ready for.
    for _ in 0..5 {
        let make = Box::new(|_: &XskInterface, _| -> Box<dyn lb::xsk::Handler> { Box::new(Idle) });
        drop(start(
            &wiring,
            XskSettings::default(),
            make,
            Box::new(|_, _, _| Ok(())),
            false,
        )?);
    }
    Ok(())
}

#[test]
fn a_worker_outlives_its_link_and_says_when_its_interface_is_gone() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan::default())?;
    let node = &bed.wiring.node;
    node.ip(&["link", "set", "n0", "down"])?;
    node.ip(&["link", "set", "n0", "up"])?;
    let sent = frame(TO_XSK, ICMP, Op::Echo, 1, 64);
    bed.wires[0].send(&sent)?;
    bed.comes_out(0, &swapped(sent))?;
    assert_eq!(bed.path.status()[0].restarts, 0);
    node.ip(&["link", "del", "n0"])?;
    bed.until("known to be gone", |workers| {
        !workers[0].running
            && workers[0]
                .last_error
                .as_ref()
                .is_some_and(|error| error.contains("the interface is gone"))
    })?;
    assert_eq!(bed.path.groups()[0].frames, 0, "its memory is free");
    Ok(())
}
