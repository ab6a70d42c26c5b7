//! Changes with everything at work: EndpointSlices at a pace, nodes that come and go, and how often the LB node reports.
//!
//! Never waits for a change before the next is due.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use apiserver::ApiServer;
use serde_json::json;
use xdp_prog::abi::VipMeta;

use super::{
    Run, destinations,
    latency::Latency,
    maps::Maps,
    report::{Changes, LbNodeWrites, NodeChange, Report},
    world,
};

/// Between two looks at the maps: what the latency may be off by.
const GRAIN: Duration = Duration::from_micros(200);
/// How long a change is waited for.
const LOST_AFTER: Duration = Duration::from_secs(20);
/// Over which the rate of the LB node's writes is taken: a second would count two that are 0.99 s apart.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Between two looks at how much the LB node has written.
const SAMPLE: Duration = Duration::from_millis(200);

/// A change that is on its way.
struct Sent {
    at: Instant,
    vip: SocketAddrV4,
    /// What the match table said before it was sent.
    before: Option<VipMeta>,
    destinations: BTreeSet<Ipv4Addr>,
}

/// EndpointSlices of Local Services, at a pace; each moves a pod to another node.
pub(super) fn changes(run: &mut Run<'_>, report: &mut Report) -> Result<()> {
    let (count, rate, local) = (run.options.changes, run.options.rate.max(1), run.world.local);
    if count == 0 || local == 0 {
        return Ok(());
    }
    let maps = run.site.maps()?.context("the LB node has no program")?;
    let own = run.site.maps()?.context("the LB node has no program")?;
    let before = run.site.written();
    let (sender, inbox) = channel();
    let watcher = thread::spawn(move || watch(&maps, &inbox));
    let start = Instant::now();
    let mut interrupted = Ok(());
    for number in 0..count {
        let due = start + Duration::from_secs(1) * number / rate;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        interrupted = run.look();
        if interrupted.is_err() {
            break;
        }
        run.progress.at(
            "EndpointSlice changes",
            &format!("{number} of {count} EndpointSlice changes"),
        );
        // One after the other, so that a Service's own changes are as far apart as can be.
        let (service, turn) = (number % local, number / local + 1);
        let vip = *run.vips.get(service as usize).context("a VIP")?;
        let sent = Sent {
            before: own.vip(vip)?,
            vip,
            destinations: run.world.destinations(service, turn),
            at: Instant::now(),
        };
        let patch = json!({"endpoints": run.world.endpoints(service, turn)});
        let name = world::slice_name(service);
        run.site
            .server
            .merge("endpointslices", world::SERVICES_NAMESPACE, &name, "", patch)?;
        // Its end is seen when it is joined.
        let _ = sender.send(sent);
    }
    drop(sender);
    let (times, lost) = watcher
        .join()
        .ok()
        .context("the thread that watches the maps has panicked")??;
    if interrupted.is_ok() {
        run.settle()?;
    }
    report.changes = Some(Changes {
        per_second: rate,
        latency: Latency::of(&times, lost),
        writes: run.operator_writes(&before),
    });
    interrupted
}

/// Times in ms of the changes that were seen, and how many were not.
fn watch(maps: &Maps, inbox: &Receiver<Sent>) -> Result<(Vec<f64>, usize)> {
    let (mut times, mut lost) = (Vec::new(), 0);
    let mut open: Vec<Sent> = Vec::new();
    // What was looked into already and did not fit.
    let mut seen: BTreeMap<SocketAddrV4, Option<VipMeta>> = BTreeMap::new();
    loop {
        let more = loop {
            match inbox.try_recv() {
                Ok(sent) => {
                    seen.insert(sent.vip, sent.before);
                    open.push(sent);
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => break true,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => break false,
            }
        };
        let mut still = Vec::new();
        for sent in open {
            let now = maps.vip(sent.vip)?;
            // Looking into a lookup table is many system calls: once for each that there is.
            if seen.get(&sent.vip) != Some(&now) {
                seen.insert(sent.vip, now);
                let at = sent.at.elapsed();
                if destinations(maps, sent.vip)? == sent.destinations {
                    times.push(at.as_secs_f64() * 1e3);
                    continue;
                }
            }
            if sent.at.elapsed() > LOST_AFTER {
                lost += 1;
            } else {
                still.push(sent);
            }
        }
        open = still;
        if !more && open.is_empty() {
            return Ok((times, lost));
        }
        thread::sleep(GRAIN);
    }
}

/// A worker node joins, and leaves again.
pub(super) fn node_changes(run: &mut Run<'_>, report: &mut Report) -> Result<()> {
    let shared: Vec<SocketAddrV4> = run.vips.iter().skip(run.world.local as usize).copied().collect();
    if shared.is_empty() {
        return Ok(());
    }
    let number = run.world.nodes;
    let address = world::node_address(number);
    for joins in [true, false] {
        let what = if joins { "joins" } else { "leaves" };
        run.progress.at("node changes", &format!("a node {what}"));
        let before = run.site.written();
        let start = Instant::now();
        if joins {
            run.site.server.create(world::node(number))?;
        } else {
            run.site.server.delete("nodes", "", &world::node_name(number))?;
        }
        let maps = run.site.maps()?.context("the LB node has no program")?;
        // Tables are shared: each is looked into once.
        let mut known: BTreeMap<u32, bool> = BTreeMap::new();
        let mut next = 0;
        run.wait(&format!("a node that {what}"), run.patience(), |_| {
            while let Some(vip) = shared.get(next) {
                let meta = maps.vip(*vip)?.context("a VIP that is gone")?;
                let has = match known.get(&meta.unit().0) {
                    Some(true) => true,
                    Some(false) | None => maps.spread(meta)?.contains_key(&address) == joins,
                };
                known.insert(meta.unit().0, has);
                if !has {
                    return Ok(false);
                }
                next += 1;
            }
            Ok(true)
        })?;
        let took = start.elapsed();
        run.settle()?;
        report.node_changes.push(NodeChange {
            what: what.to_owned(),
            all_ms: took.as_secs_f64() * 1e3,
            writes: run.operator_writes(&before),
        });
    }
    Ok(())
}

/// Counts the LB node's writes of its own status beside everything else.
pub(super) struct LbNodeSampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<LbNodeWrites>,
}

impl LbNodeSampler {
    pub(super) fn start(server: ApiServer) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let start = Instant::now();
            let mut samples: Vec<(Instant, u64)> = Vec::new();
            let mut most = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                let now = (Instant::now(), server.writes().of("*", "lbnodes", "*"));
                let window = samples.partition_point(|(at, _)| now.0.duration_since(*at) > RATE_WINDOW);
                samples.drain(..window);
                most = most.max(now.1 - samples.first().map_or(now.1, |(_, count)| *count));
                samples.push(now);
                thread::sleep(SAMPLE);
            }
            LbNodeWrites {
                writes: server.writes().of("*", "lbnodes", "*"),
                seconds: start.elapsed().as_secs_f64(),
                // So many writes are one interval fewer.
                most_per_second: most.saturating_sub(1) as f64 / RATE_WINDOW.as_secs_f64(),
            }
        });
        Self { stop, thread }
    }

    /// What it has counted.
    pub(super) fn stop(self) -> LbNodeWrites {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(LbNodeWrites {
            writes: 0,
            seconds: 0.0,
            most_per_second: 0.0,
        })
    }
}
