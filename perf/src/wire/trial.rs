//! One trial: senders and sinks for so long at so many packets a second. Never decides what the next one is.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use lb::xsk::{XskPort, monotonic_ns};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    frames::{FCS, Mix, payload},
    ledger::{Account, Ledger},
    stamp::Stamp,
};
use crate::interrupt::Interrupt;

/// Packets that a sender puts on its ring at a time.
const BURST: u64 = 64;
/// A trial ends when nothing came for so long after the last was sent. RFC 2544, section 23, waits 2 s: this is a path of one machine.
const QUIET: Duration = Duration::from_millis(200);
/// How long a sender waits for the kernel to send what is on its ring.
const SETTLE: Duration = Duration::from_secs(2);
/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(10);

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    pub(crate) mix: &'a Mix,
    /// Packets a second of all senders; `None`: as fast as they go.
    pub(crate) rate: Option<f64>,
    pub(crate) time: Duration,
    /// Of this trial and no other.
    pub(crate) run_id: u32,
    /// How long a packet waits between its stamp and its way out: for a test of the harness.
    pub(crate) hold: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Trial {
    /// Packets that the kernel took from the senders' rings.
    pub(crate) sent: u64,
    pub(crate) seconds: f64,
    pub(crate) account: Account,
    /// Packets that reached the sink's sockets and found no room there: lost by us, not by the device.
    pub(crate) overruns: u64,
    /// Mean length of what came, with the frame check sequence.
    pub(crate) received_bytes: f64,
    pub(crate) latency_ns: Histogram<u64>,
    pub(crate) interrupted: bool,
}

impl Trial {
    pub(crate) fn emitted(&self) -> f64 {
        self.sent as f64 / self.seconds
    }

    pub(crate) fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.account.received)
    }
}

/// Sends and counts.
///
/// # Errors
///
/// Those of the sockets.
pub(crate) fn run(
    senders: &mut [XskPort],
    sinks: &mut [XskPort],
    load: &Load<'_>,
    interrupt: &Interrupt,
) -> Result<Trial> {
    let (stop, all_sent) = (AtomicBool::new(false), AtomicBool::new(false));
    let count = senders.len();
    let overruns = |sinks: &[XskPort]| -> Result<u64> { sinks.iter().map(|sink| Ok(sink.overruns()?)).sum() };
    let before = overruns(sinks)?;
    let mut interrupted = false;
    let start = Instant::now();
    let (sent, seconds, ledgers) = thread::scope(|scope| -> Result<_> {
        let receiving: Vec<_> = sinks
            .iter_mut()
            .map(|sink| {
                let stamped = load.mix.is_stamped();
                scope.spawn({
                    let all_sent = &all_sent;
                    move || receive(sink, count, load.run_id, stamped, all_sent)
                })
            })
            .collect();
        let sending: Vec<_> = (0_u8..)
            .zip(senders.iter_mut())
            .map(|(number, sender)| {
                let stop = &stop;
                scope.spawn(move || send(sender, number, count, load, stop))
            })
            .collect();
        while !sending.iter().all(thread::ScopedJoinHandle::is_finished) {
            interrupted |= interrupt.came();
            stop.store(interrupted || start.elapsed() >= load.time, Ordering::Relaxed);
            thread::sleep(LOOK);
        }
        let mut sent = 0;
        let mut seconds = 0.0_f64;
        let mut failed = None;
        for sender in sending {
            match sender
                .join()
                .ok()
                .context("a sender panicked")
                .and_then(|result| result)
            {
                Ok((packets, took)) => {
                    sent += packets;
                    seconds = seconds.max(took.as_secs_f64());
                }
                Err(error) => failed = Some(error),
            }
        }
        all_sent.store(true, Ordering::Relaxed);
        let ledgers: Vec<Ledger> = receiving
            .into_iter()
            .map(|sink| sink.join().ok().context("a sink panicked")?)
            .collect::<Result<_>>()?;
        failed.map_or(Ok((sent, seconds, ledgers)), Err)
    })?;
    let mut ledger = Ledger::new(count);
    for other in &ledgers {
        ledger.add(other);
    }
    ensure!(seconds > 0.0, "nothing was sent");
    Ok(Trial {
        sent,
        seconds,
        account: ledger.account(),
        overruns: overruns(sinks)?.saturating_sub(before),
        received_bytes: ledger.bytes as f64 / ledger.frames.max(1) as f64,
        latency_ns: ledger.latency_ns,
        interrupted,
    })
}

/// Packets that left, and how long that took.
fn send(port: &mut XskPort, number: u8, senders: usize, load: &Load<'_>, stop: &AtomicBool) -> Result<(u64, Duration)> {
    let pace = load.rate.map(|rate| rate / senders as f64);
    let mut frame = Vec::new();
    let (start, mut made) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let due = match pace {
            Some(pace) => ((start.elapsed().as_secs_f64() * pace) as u64).min(made + BURST),
            None => made + BURST,
        };
        if due == made {
            thread::yield_now();
            continue;
        }
        while made < due {
            let stamp = Stamp {
                run_id: load.run_id,
                sender: number,
                sequence: made,
                ns: monotonic_ns(),
            };
            load.mix.write(senders as u64, stamp, &mut frame);
            if !port.put(&frame) {
                break;
            }
            made += 1;
        }
        if !load.hold.is_zero() {
            let held = Instant::now();
            while held.elapsed() < load.hold {
                std::hint::spin_loop();
            }
        }
        port.flush().context("AF_XDP send")?;
    }
    // What is on the ring has a number, and must go or it would be called lost.
    let deadline = Instant::now() + SETTLE;
    while port.on_their_way() > 0 && Instant::now() < deadline {
        port.flush().context("AF_XDP send")?;
    }
    Ok((made - u64::from(port.on_their_way()), start.elapsed()))
}

fn receive(port: &mut XskPort, senders: usize, run_id: u32, stamped: bool, all_sent: &AtomicBool) -> Result<Ledger> {
    let mut ledger = Ledger::new(senders);
    let mut quiet_since = None;
    loop {
        let count = port
            .take(|frame| {
                match payload(frame) {
                    Some(_) if !stamped => ledger.unstamped += 1,
                    Some(bytes) => match Stamp::read(bytes, run_id) {
                        Some(stamp) => ledger.note(stamp, monotonic_ns()),
                        None => return ledger.foreign += 1,
                    },
                    None => return ledger.foreign += 1,
                }
                ledger.frames += 1;
                ledger.bytes += (frame.len() + FCS) as u64;
            })
            .context("AF_XDP receive")?;
        if count > 0 {
            quiet_since = None;
            continue;
        }
        if all_sent.load(Ordering::Relaxed) {
            let since = *quiet_since.get_or_insert_with(Instant::now);
            if since.elapsed() > QUIET {
                return Ok(ledger);
            }
        }
        let mut descriptors = [PollFd::new(port.fd(), PollFlags::POLLIN)];
        // A signal is no error: the next look will tell.
        let _ = poll(&mut descriptors, PollTimeout::from(5_u8));
    }
}
