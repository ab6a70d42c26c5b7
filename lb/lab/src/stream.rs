//! A stream of datagrams at a steady rate, and an exact count of those that arrive.
//!
//! Nobody answers: workers count what comes out of the tunnel in nftables' raw hook, before anything else can lose it, and drop it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{Client, Node, socket};

/// Flows: enough for every worker to have some.
const FLOWS: usize = 64;
/// Payload of a datagram.
const PAYLOAD: [u8; 32] = [b's'; 32];
/// Time between two bursts: short bursts fit the rings of a veth pair.
const BEAT: Duration = Duration::from_micros(500);
/// Longest wait for what is still on its way.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// What became of a [`Stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Those that came out of a tunnel.
    pub arrived: u64,
    /// For how long they were sent.
    pub took: Duration,
}

impl StreamReport {
    /// Datagrams that did not arrive.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.arrived)
    }

    /// Datagrams a second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        (self.sent as f64 / self.took.as_secs_f64()) as u64
    }
}

/// A stream under way; it stops when told to, or when dropped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(u64, Duration)>>>,
    workers: Vec<Node>,
}

impl Stream {
    /// Sends to `vip`, an IPv4 VIP over UDP that nobody else uses, at most `rate` datagrams a second: fewer, where the machine does
    /// not manage.
    ///
    /// # Errors
    ///
    /// When a worker cannot be made to count, or the sender does not start.
    pub fn start(client: &Client, workers: &[Node], vip: SocketAddr, rate: u64) -> Result<Self> {
        ensure!(vip.is_ipv4(), "a stream is IPv4");
        for worker in workers {
            worker.ns().nft(&format!(
                "table ip stream\ndelete table ip stream\ntable ip stream {{\n  counter arrived {{ }}\n  chain arriving {{\n    type filter hook prerouting priority -310;\n    \
                 ip daddr {} udp dport {} counter name arrived drop\n  }}\n}}\n",
                vip.ip(),
                vip.port()
            ))?;
        }
        let stop = Arc::<AtomicBool>::default();
        let told = Arc::clone(&stop);
        let thread = client.ns().spawn(move || send(vip, rate, &told))?;
        Ok(Self {
            stop,
            thread: Some(thread),
            workers: workers.to_vec(),
        })
    }

    /// Stops, waits for what is on its way, and counts.
    ///
    /// # Errors
    ///
    /// When the sender failed, or a count cannot be read.
    pub fn stop(mut self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("stopped already")?;
        let (sent, took) = thread.join().ok().context("the stream's thread panicked")??;
        let start = Instant::now();
        let mut arrived = self.arrived()?;
        while arrived < sent && start.elapsed() < STRAGGLERS {
            std::thread::sleep(Duration::from_millis(20));
            arrived = self.arrived()?;
        }
        Ok(StreamReport { sent, arrived, took })
    }

    fn arrived(&self) -> Result<u64> {
        let count = |worker: &Node| -> Result<u64> {
            let text = worker.ns().sh("nft list counter ip stream arrived")?;
            let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
            let count = words.next().with_context(|| format!("no count in {text}"))?;
            Ok(count.parse()?)
        };
        self.workers.iter().map(count).sum()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn send(vip: SocketAddr, rate: u64, stop: &AtomicBool) -> Result<(u64, Duration)> {
    let sockets: Result<Vec<_>> = (0..FLOWS)
        .map(|_| socket::udp_connect(None, vip, Duration::from_secs(1)))
        .collect();
    let sockets = sockets?;
    let start = Instant::now();
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
        // What was missed is not made up for: that would be a burst.
        let burst = due.saturating_sub(sent).min(rate / 500);
        for _ in 0..burst {
            sockets[sent as usize % FLOWS]
                .send(&PAYLOAD)
                .context("the stream's send")?;
            sent += 1;
        }
        std::thread::sleep(BEAT);
    }
    Ok((sent, start.elapsed()))
}
