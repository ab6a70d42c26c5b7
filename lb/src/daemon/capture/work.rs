//! What the thread of a capture does: rings, filter by address, names, lines. Never keeps more than a turn of each ring.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::IpAddr,
    ops::ControlFlow,
    os::{fd::AsFd as _, unix::net::UnixStream},
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, TryRecvError};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};
use xdp_prog::{abi::SampleHeader, verdict::Verdict};

use super::{Names, STALLED, Update};
use crate::{
    control::{CaptureEvent, SampleView},
    daemon::flow,
    datapath::SampleRing,
};

/// Longest that samples are still sent after the client has enough: the program goes on making them.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Longest between two looks for new names and rings, in milliseconds.
const LOOK_EVERY_MS: u16 = 100;
/// Samples taken from one ring before the next one has its turn: at most 1 MiB of frames per CPU in hand.
const TURN: usize = 64;

/// The thread's own.
pub(super) struct Work {
    names: Names,
    rings: Vec<SampleRing>,
    address: Option<IpAddr>,
    /// Samples that may still be sent.
    left: u64,
    samples: u64,
    lines: Vec<u8>,
}

impl Work {
    pub(super) fn new(address: Option<IpAddr>, count: u64) -> Self {
        Self {
            names: Names::default(),
            rings: Vec::new(),
            address,
            left: count,
            samples: 0,
            lines: Vec::new(),
        }
    }

    /// Samples sent.
    pub(super) fn samples(&self) -> u64 {
        self.samples
    }

    /// Carries until the client has enough, or has had what it asked for, or nobody sends news any more.
    pub(super) fn run(&mut self, client: &UnixStream, updates: &Receiver<Update>) -> io::Result<()> {
        client.set_write_timeout(Some(STALLED))?;
        loop {
            loop {
                match updates.try_recv() {
                    Ok(update) => self.learn(update, client)?,
                    Err(TryRecvError::Empty) => break,
                    // The main loop is gone.
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.carry(client)?;
            if self.left == 0 {
                return Ok(());
            }
            if self.wait(client)? {
                return self.finish(client);
            }
        }
    }

    fn learn(&mut self, update: Update, client: &UnixStream) -> io::Result<()> {
        if let Some(rings) = update.rings {
            // What the program before this one sampled is named as it was then.
            while self.rings.iter().any(SampleRing::is_readable) && self.left > 0 {
                self.carry(client)?;
            }
            self.rings = rings;
        }
        self.names = update.names;
        Ok(())
    }

    /// Sends what had been sampled when the client had enough. A client that is gone says so here.
    fn finish(&mut self, client: &UnixStream) -> io::Result<()> {
        let start = Instant::now();
        while self.left > 0 && start.elapsed() < LAST_WORDS && self.rings.iter().any(SampleRing::is_readable) {
            self.carry(client)?;
        }
        Ok(())
    }

    /// Waits for a sample or for news; whether the client has enough.
    fn wait(&self, client: &UnixStream) -> io::Result<bool> {
        let timeout = if self.rings.iter().any(SampleRing::is_readable) {
            PollTimeout::ZERO
        } else {
            PollTimeout::from(LOOK_EVERY_MS)
        };
        let mut fds = vec![PollFd::new(client.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.rings
                .iter()
                .map(|ring| PollFd::new(ring.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, timeout) {
            // Whatever comes from the client is its end: it has nothing to say.
            Ok(_) => Ok(fds.first().and_then(PollFd::any).unwrap_or(true)),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what the rings hold, one turn of each, in the order of time.
    fn carry(&mut self, client: &UnixStream) -> io::Result<()> {
        let mut samples = Vec::new();
        for ring in &mut self.rings {
            let mut turn = TURN;
            ring.drain(|header, frame| {
                samples.push((header, frame));
                turn = turn.saturating_sub(1);
                if turn == 0 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
        }
        if samples.is_empty() {
            return Ok(());
        }
        samples.sort_by_key(|(header, _)| header.time_ns);
        let offset = clock_offset()?;
        for (header, frame) in &samples {
            let Some(view) = self.view(header, frame, offset) else {
                continue;
            };
            if self.left == 0 {
                break;
            }
            serde_json::to_writer(&mut self.lines, &CaptureEvent::Sample(Box::new(view)))?;
            self.lines.push(b'\n');
            self.samples = self.samples.saturating_add(1);
            self.left = self.left.saturating_sub(1);
        }
        let sent = (&*client).write_all(&self.lines);
        self.lines.clear();
        sent
    }

    /// A sample for people; none where it is another address's.
    fn view(&self, header: &SampleHeader, frame: &[u8], offset: i128) -> Option<SampleView> {
        let verdict = u32::try_from(header.verdict).ok().and_then(Verdict::from_counter)?;
        let vip = self.names.vips.get(&header.vip);
        let flow = flow::of(frame);
        if let Some(address) = self.address {
            let is_claimed = vip.is_some_and(|vip| vip.address == address);
            if !is_claimed && !flow::names(&flow, address) {
                return None;
            }
        }
        let named = |index: u64, name: Option<String>| name.or_else(|| is_index(index).then(|| format!("#{index}")));
        let backend = self.names.backends.get(&header.backend);
        let interface = self.names.interfaces.get(&header.ifindex).cloned();
        Some(SampleView {
            time_ns: u64::try_from(i128::from(header.time_ns).saturating_add(offset)).unwrap_or_default(),
            interface: interface.unwrap_or_else(|| format!("#{}", header.ifindex)),
            queue: header.queue,
            verdict: verdict.fate().name().to_owned(),
            reason: verdict.reason().to_owned(),
            vip: named(header.vip, vip.map(ToString::to_string)),
            // Position 0 is no backend.
            backend: (header.backend != 0)
                .then(|| named(header.backend, backend.map(ToString::to_string)))
                .flatten(),
            flow,
            received_len: header.original_len,
            len: header.len,
            data: hex(frame),
        })
    }
}

fn is_index(index: u64) -> bool {
    index != SampleHeader::NONE
}

/// What `CLOCK_REALTIME` is ahead of `CLOCK_MONOTONIC`, in nanoseconds: the kernel stamps with the latter.
fn clock_offset() -> io::Result<i128> {
    let now = |clock| {
        let time = clock_gettime(clock)?;
        Ok::<_, Errno>(i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
    };
    Ok(now(ClockId::CLOCK_REALTIME)? - now(ClockId::CLOCK_MONOTONIC)?)
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use lb_core::desired::{BackendId, Protocol, VipKey};
    use xdp_prog::{abi::SampleHeader, verdict::Verdict};

    use super::{super::Names, Work};

    fn work(address: Option<[u8; 4]>) -> Work {
        let key = VipKey {
            address: [203, 0, 113, 10].into(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        Work {
            names: Names {
                vips: [(3, key)].into(),
                backends: [(5, BackendId("worker-1".into()))].into(),
                interfaces: [(2, "eth0".to_owned())].into(),
            },
            rings: Vec::new(),
            address: address.map(Into::into),
            left: 1,
            samples: 0,
            lines: Vec::new(),
        }
    }

    const HEADER: SampleHeader = SampleHeader {
        time_ns: 1000,
        verdict: Verdict::ForwardTx as u64,
        vip: 3,
        backend: 5,
        ifindex: 2,
        queue: 1,
        original_len: 60,
        len: 80,
        captured_len: 0,
    };

    #[test]
    fn indices_get_their_names_and_strangers_keep_their_number() {
        let view = work(None).view(&HEADER, &[0xab], 5).unwrap();
        assert_eq!((view.verdict.as_str(), view.reason.as_str()), ("forward", "tx"));
        assert_eq!(view.vip.as_deref(), Some("tcp 203.0.113.10:80"));
        assert_eq!(view.backend.as_deref(), Some("worker-1"));
        assert_eq!(
            (view.interface.as_str(), view.time_ns, view.data.as_str()),
            ("eth0", 1005, "ab")
        );

        let other = SampleHeader {
            vip: 4,
            backend: 0,
            ifindex: 9,
            ..HEADER
        };
        let view = work(None).view(&other, &[], 0).unwrap();
        assert_eq!(
            (view.vip.as_deref(), view.backend, view.interface.as_str()),
            (Some("#4"), None, "#9")
        );
        let none = SampleHeader {
            vip: SampleHeader::NONE,
            backend: SampleHeader::NONE,
            ..HEADER
        };
        let view = work(None).view(&none, &[], 0).unwrap();
        assert_eq!((view.vip, view.backend), (None, None));
        assert!(
            work(None)
                .view(&SampleHeader { verdict: 99, ..HEADER }, &[], 0)
                .is_none()
        );
    }

    #[test]
    fn an_address_lets_its_own_vips_through_even_when_the_frame_is_cut_short() {
        assert!(work(Some([203, 0, 113, 10])).view(&HEADER, &[], 0).is_some());
        assert!(work(Some([203, 0, 113, 11])).view(&HEADER, &[], 0).is_none());
    }
}
