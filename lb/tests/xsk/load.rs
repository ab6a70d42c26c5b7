//! Many frames: none is lost to us, and none of the memory.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb::xsk::{Tally, WorkerStatus, XskSettings};
use xdp_prog::verdict::Verdict;

use crate::bed::{Bed, Op, Plan, TO_XSK, frame};

/// Sends as fast as it can; the kernel drops what does not fit.
fn flood(bed: &Bed, wire: usize, op: Op, frames: u32, len: usize) {
    let sent = frame(TO_XSK, Verdict::SlowIcmp as u8, op, 0, len);
    for _ in 0..frames {
        // ENOBUFS is a frame that was not sent.
        let _ = bed.wires[wire].send(&sent);
    }
}

/// Waits until nothing is on its way, and every frame is somewhere.
fn settled(bed: &Bed, frames_per_queue: u32) -> Result<()> {
    bed.until("all frames are accounted for", |workers| {
        let (accounted, all) = bed.frames();
        let quiet = |worker: &WorkerStatus| worker.sending + worker.inbox + worker.waiting == 0;
        accounted == all
            && workers
                .iter()
                .all(|worker| quiet(worker) && worker.posted == frames_per_queue / 2)
    })
}

#[test]
fn two_hundred_thousand_frames_leave_no_frame_behind() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for frames_per_queue in [256, 2048] {
        let bed = Bed::new(Plan {
            interfaces: 2,
            mtu: 9000,
            settings: XskSettings {
                frames_per_queue,
                ..XskSettings::default()
            },
            ..Plan::default()
        })?;
        settled(&bed, frames_per_queue)?;
        let free = bed.path.groups();
        for _ in 0..10 {
            flood(&bed, 0, Op::Echo, 5_000, 64);
            flood(&bed, 1, Op::Cross, 5_000, 64);
            // What is dropped at every place gives its frames back, too: too many at once, too long, for nobody.
            flood(&bed, 0, Op::Burst, 20, 64);
            flood(&bed, 1, Op::CrossBurst, 20, 5_000);
            flood(&bed, 0, Op::CrossBurst, 20, 64);
            flood(&bed, 1, Op::Nowhere, 20, 5_000);
        }
        settled(&bed, frames_per_queue)?;
        assert_eq!(bed.path.groups(), free);
        let received = bed.tally(Tally::Received);
        // Most are dropped, by design; how many depends on who else wants a CPU.
        ensure!(received > 200, "only {received} received");
        let dropped = [Tally::NoFrame, Tally::InboxFull].map(|tally| bed.tally(tally));
        // A small memory has too few frames to fill an inbox, a large one has more than an inbox takes.
        ensure!(
            dropped[usize::from(frames_per_queue > 512)] > 0,
            "{:?}",
            bed.path.status()
        );
    }
    Ok(())
}

/// Not a test: how many packets a second one worker echoes. `cargo test -p lb --test xsk --release -- --ignored --nocapture echo_rate`
#[test]
#[ignore = "a measurement"]
fn echo_rate() -> Result<()> {
    let bed = Bed::new(Plan::default())?;
    for op in [Op::Keep, Op::Event, Op::Echo] {
        let (begin, before, cpu) = (Instant::now(), bed.tally(Tally::Received), thread_cpu("xsk-n0-q0")?);
        while begin.elapsed() < Duration::from_secs(3) {
            flood(&bed, 0, op, 1000, 64);
            while bed.seen.try_recv().is_ok() {}
        }
        let received = bed.tally(Tally::Received) - before;
        let cpu = thread_cpu("xsk-n0-q0")? - cpu;
        println!(
            "{op:?}: {received} packets in {:?}, {cpu:?} of the worker's CPU: {:.0} packets/s per core",
            begin.elapsed(),
            received as f64 / cpu.as_secs_f64()
        );
    }
    let cpu = thread_cpu("xsk-n0-q0")?;
    std::thread::sleep(Duration::from_secs(5));
    println!("idle: {:?} of the worker's CPU in 5 s", thread_cpu("xsk-n0-q0")? - cpu);
    println!("{:#?}", bed.path.status());
    Ok(())
}

/// Time that a thread of this process has run (/proc/self/task/*/schedstat, nanoseconds).
fn thread_cpu(name: &str) -> Result<Duration> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim_end() == name {
            let stat = std::fs::read_to_string(task.join("schedstat"))?;
            let run = stat.split_whitespace().next().unwrap_or("0").parse()?;
            return Ok(Duration::from_nanos(run));
        }
    }
    anyhow::bail!("no thread {name}")
}
