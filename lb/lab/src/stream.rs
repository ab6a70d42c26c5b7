//! A stream of datagrams through a VIP, an exact count of those that arrive, and where the others were seen last.
//!
//! Nobody answers: workers count what comes out of the tunnel in nftables' raw hook, before anything else can lose it, and drop it.
//! The sender looks at that count, and has only so many under way: the ring of a veth interface holds 256, and the thread that
//! empties it may wait for a processor for tens of milliseconds where others want it too. What is sent by the clock alone is lost there
//! then, and no LB node had a part in it.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    LinkKind, Netns, Topology,
    nft_counter::{Family, NftCounter},
    socket,
};

/// Flows: enough for every worker to have some.
const FLOWS: usize = 64;
/// Payload of a datagram.
const PAYLOAD: [u8; 32] = [b's'; 32];
/// Time between two looks at what has arrived.
const BEAT: Duration = Duration::from_micros(50);
/// Datagrams that are sent without a look.
const BURST: u64 = 32;
/// How long nothing arrives until what is under way is given up: lost, or in a ring that has room for more.
const STILL: Duration = Duration::from_millis(50);
/// Longest wait for what is still on its way.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// How fast a [`Stream`] is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Most datagrams a second; fewer, where the machine does not manage.
    pub per_second: u64,
    /// Most datagrams under way.
    pub under_way: u64,
}

/// What became of a [`Stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Those that came out of a tunnel.
    pub arrived: u64,
    /// How many passed the router, and when.
    pub passed: Passed,
    /// Packets, of whomever, that found the ring of a veth interface full: the test bed's loss, and no LB node's.
    pub full: u64,
    /// For how long they were sent.
    pub took: Duration,
}

/// Datagrams as the router saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Came from the client.
    pub from_client: u64,
    /// Went to LB nodes.
    pub to_lb: u64,
    /// Came from LB nodes, in a tunnel.
    pub from_lb: u64,
    /// Went to workers, in a tunnel.
    pub to_workers: u64,
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

impl fmt::Display for StreamReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent, arrived, full, ..
        } = self;
        write!(f, "{sent} datagrams at {}/s, {} lost", self.rate(), self.lost())?;
        if self.lost() > 0 {
            let Passed {
                from_client,
                to_lb,
                from_lb,
                to_workers,
            } = self.passed;
            write!(
                f,
                " (before the router {}, in it {}, at the LB node {}, in the router again {}, behind it {}; {full} packets found a ring full)",
                sent.saturating_sub(from_client),
                from_client.saturating_sub(to_lb),
                to_lb.saturating_sub(from_lb),
                from_lb.saturating_sub(to_workers),
                to_workers.saturating_sub(*arrived),
            )?;
        }
        Ok(())
    }
}

/// A stream under way; it stops when told to, or when dropped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(u64, Duration)>>>,
    arrived: Arc<Arrived>,
    passed: [NftCounter; 4],
    namespaces: Vec<Netns>,
    full_before: u64,
}

impl Stream {
    /// Sends to `vip`, an IPv4 VIP over UDP that nobody else uses.
    ///
    /// # Errors
    ///
    /// When a worker or the router cannot be made to count, or the sender does not start.
    pub fn start(topology: &Topology, vip: SocketAddr, pace: Pace) -> Result<Self> {
        let IpAddr::V4(address) = vip.ip() else {
            bail!("a stream is IPv4");
        };
        let router = topology.router().ns();
        router.nft(&at_router(topology, address, vip.port()))?;
        let counter = |name| NftCounter::open(router, Family::Netdev, TABLE, name);
        let passed = [
            counter("from_client")?,
            counter("to_lb")?,
            counter("from_lb")?,
            counter("to_workers")?,
        ];
        let mut arrived = Vec::new();
        for worker in topology.workers() {
            worker.ns().nft(&format!(
                "table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n  counter arrived {{ }}\n  chain arriving {{\n    type \
                 filter hook prerouting priority -310;\n    ip daddr {address} udp dport {} counter name arrived drop\n  }}\n}}\n",
                vip.port()
            ))?;
            arrived.push(NftCounter::open(worker.ns(), Family::Ip, TABLE, "arrived")?);
        }
        let arrived = Arc::new(Arrived(arrived));
        let stop = Arc::<AtomicBool>::default();
        let (told, seen) = (Arc::clone(&stop), Arc::clone(&arrived));
        let client = topology.client().ns();
        let nodes = topology.lbs().iter().chain(topology.workers());
        let namespaces: Vec<Netns> = nodes.map(|node| node.ns()).chain([router, client]).cloned().collect();
        let full_before = full(&namespaces)?;
        let thread = client.spawn(move || send(vip, pace, &seen, &told))?;
        Ok(Self {
            stop,
            thread: Some(thread),
            arrived,
            passed,
            namespaces,
            full_before,
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
        let mut arrived = self.arrived.count()?;
        while arrived < sent && start.elapsed() < STRAGGLERS {
            sleep(Duration::from_millis(20));
            arrived = self.arrived.count()?;
        }
        let [from_client, to_lb, from_lb, to_workers] = &self.passed;
        let passed = Passed {
            from_client: from_client.packets()?,
            to_lb: to_lb.packets()?,
            from_lb: from_lb.packets()?,
            to_workers: to_workers.packets()?,
        };
        Ok(StreamReport {
            sent,
            arrived,
            passed,
            full: full(&self.namespaces)?.saturating_sub(self.full_before),
            took,
        })
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

const TABLE: &str = "stream";

/// Rules that count the stream on every link of the router.
fn at_router(topology: &Topology, vip: Ipv4Addr, port: u16) -> String {
    let plain = format!("ip daddr {vip} udp dport {port}");
    // The inner destination, behind an outer header without options.
    let inside = format!("ip protocol 4 @nh,288,32 {:#x}", u32::from(vip));
    let mut rules = format!("table netdev {TABLE}\ndelete table netdev {TABLE}\ntable netdev {TABLE} {{\n");
    for name in ["from_client", "to_lb", "from_lb", "to_workers"] {
        rules += &format!("counter {name} {{ }}\n");
    }
    for (link, kind) in topology.router().links() {
        let both = match kind {
            LinkKind::Client => vec![("ingress", &plain, "from_client")],
            LinkKind::Lb => vec![("egress", &plain, "to_lb"), ("ingress", &inside, "from_lb")],
            LinkKind::LbBack => vec![("ingress", &inside, "from_lb")],
            LinkKind::Worker => vec![("egress", &inside, "to_workers")],
        };
        for (hook, what, name) in both {
            rules += &format!(
                "chain {hook}-{link} {{ type filter hook {hook} device \"{link}\" priority 10; {what} counter name {name}\n}}\n"
            );
        }
    }
    rules + "}\n"
}

/// What all interfaces could not hand to their peers, by transmission and by XDP.
fn full(namespaces: &[Netns]) -> Result<u64> {
    let of = |ns: &Netns| {
        let text = ns.run(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?))?;
        // After a heading of two lines, a name, and eight columns of what was received: bytes, packets, errors, dropped.
        let dropped = |line: &str| line.split_once(':')?.1.split_whitespace().nth(11)?.parse::<u64>().ok();
        Ok(text.lines().skip(2).filter_map(dropped).sum::<u64>())
    };
    namespaces.iter().map(of).sum()
}

/// What workers have counted.
#[derive(Debug)]
struct Arrived(Vec<NftCounter>);

impl Arrived {
    fn count(&self) -> Result<u64> {
        self.0.iter().map(NftCounter::packets).sum()
    }
}

fn send(vip: SocketAddr, pace: Pace, arrived: &Arrived, stop: &AtomicBool) -> Result<(u64, Duration)> {
    let sockets: Result<Vec<_>> = (0..FLOWS)
        .map(|_| socket::udp_connect(None, vip, Duration::from_secs(1)))
        .collect();
    let sockets = sockets?;
    let start = Instant::now();
    let (mut sent, mut given_up) = (0_u64, 0_u64);
    let mut last = (0, start);
    while !stop.load(Ordering::Relaxed) {
        let now = arrived.count()?;
        let missing = sent.saturating_sub(now);
        if now != last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > STILL {
            given_up = missing;
            last.1 = Instant::now();
        }
        given_up = given_up.min(missing);
        let room = pace.under_way.saturating_sub(missing - given_up);
        // What was missed is not made up for.
        let due = (start.elapsed().as_secs_f64() * pace.per_second as f64) as u64;
        let burst = due.saturating_sub(sent).min(room).min(BURST);
        for _ in 0..burst {
            sockets[sent as usize % FLOWS]
                .send(&PAYLOAD)
                .context("the stream's send")?;
            sent += 1;
        }
        if burst < BURST {
            sleep(BEAT);
        }
    }
    Ok((sent, start.elapsed()))
}
