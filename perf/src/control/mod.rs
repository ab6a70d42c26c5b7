//! `vipline-perf control`: the control plane at scale. The real operator and the real LB node, an API server double, one machine.
//!
//! Never believes what the daemon says of itself: a VIP is there when the program's own match table has it, and a change is done when
//! the lookup table that a packet would meet names the new nodes.

mod args;
mod latency;
mod maps;
mod measure;
mod process;
mod report;
mod site;
mod world;

use std::{
    collections::BTreeSet,
    net::SocketAddrV4,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

pub(crate) use args::Args;
pub(crate) use process::role;
pub(crate) use report::{Report, write_table};

use self::{
    maps::Maps,
    report::{Cpu, Creation, MemoryRow, Restart, Writes},
    site::{Site, Written},
    world::World,
};
use crate::{interrupt::Interrupt, machine::Machine, progress::Progress};

/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(5);
/// Between two looks at whether the operator is done.
const IDLE_LOOK: Duration = Duration::from_millis(500);
/// Between two looks for a program, each of which is a process of its own.
const PROGRAM_LOOK: Duration = Duration::from_millis(50);
/// How long nothing more may be written for everything to count as written.
const QUIET: Duration = Duration::from_secs(3);

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Services.
    pub(crate) services: u32,
    /// How many of them have policy Local.
    pub(crate) local: u32,
    /// Worker nodes.
    pub(crate) nodes: u32,
    /// EndpointSlice changes.
    pub(crate) changes: u32,
    /// How many of them a second.
    pub(crate) rate: u32,
    /// Restarts of each kind.
    pub(crate) restarts: u32,
}

/// Measures everything.
///
/// # Errors
///
/// Without root, and when nothing could be measured; what fails later is in the report.
pub(crate) fn run(options: &Options, interrupt: &Interrupt, progress: &Progress) -> Result<Report> {
    ensure!(
        options.local <= options.services && options.nodes > 3,
        "at most as many Local Services as Services, and four nodes at least"
    );
    let mut report = Report {
        machine: Machine::this(),
        services: options.services,
        local: options.local,
        nodes: options.nodes,
        creation: None,
        restarts: Vec::new(),
        changes: None,
        node_changes: Vec::new(),
        memory: Vec::new(),
        lb_node: None,
        failed: Vec::new(),
        interrupted: false,
    };
    let mut run = Run {
        options,
        interrupt,
        progress,
        world: World {
            services: options.services,
            local: options.local,
            nodes: options.nodes,
        },
        site: Site::build()?,
        vips: Vec::new(),
    };
    let sampler = measure::LbNodeSampler::start(run.site.server.clone());
    let outcome = run.all(&mut report);
    report.lb_node = Some(sampler.stop());
    progress.done();
    match outcome {
        Ok(()) => {}
        Err(error) if error.is::<Interrupted>() => report.interrupted = true,
        Err(error) => report.failed.push(format!("{error:#}")),
    }
    Ok(report)
}

/// Somebody pressed Ctrl-C.
#[derive(Debug)]
struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A run under way.
struct Run<'a> {
    options: &'a Options,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    world: World,
    site: Site,
    /// VIPs of all Services, by number.
    vips: Vec<SocketAddrV4>,
}

impl Run<'_> {
    fn all(&mut self, report: &mut Report) -> Result<()> {
        report.creation = Some(self.creation()?);
        self.note_memory(report, "first creation")?;
        let (both, lb) = ((true, false), (false, false));
        for (what, is_cold_sync, (with_operator, with_cache)) in [
            ("operator and LB node, nothing kept on disk", true, both),
            ("LB node alone, nothing kept on disk", false, lb),
            ("LB node alone, with what it kept on disk", false, (false, true)),
        ] {
            let restart = Restart {
                what: what.to_owned(),
                is_cold_sync,
                found_s: Vec::new(),
                idle_s: Vec::new(),
                cpu: Vec::new(),
                writes: Vec::new(),
            };
            report.restarts.push(restart);
            let before = self.site.written();
            for number in 0..self.options.restarts {
                self.progress.at(
                    "restarts",
                    &format!("restart {} of {}: {what}", number + 1, self.options.restarts),
                );
                let (found, idle, cpu) = self.restart(with_operator, with_cache)?;
                if let Some(restart) = report.restarts.last_mut() {
                    restart.found_s.push(found.as_secs_f64());
                    restart.idle_s.extend(idle.map(|idle| idle.as_secs_f64()));
                    restart.cpu.push(cpu);
                    restart.writes = self.operator_writes(&before);
                }
            }
            self.note_memory(report, what)?;
        }
        measure::changes(self, report)?;
        self.note_memory(report, "EndpointSlice changes")?;
        measure::node_changes(self, report)?;
        self.note_memory(report, "node changes")
    }

    /// All Services anew, with both at work.
    fn creation(&mut self) -> Result<Creation> {
        self.progress.at("first creation", "nodes and pool");
        for object in self.world.ground() {
            self.site
                .server
                .create(object)
                .context("the double refuses what this benchmark makes")?;
        }
        self.site.start_operator()?;
        self.site.start_lb()?;
        self.wait("both to start", Duration::from_secs(30), |run| {
            Ok(run.site.maps()?.is_some() && process::is_idle(&run.site.ns)?)
        })?;
        let before = self.site.written();
        let start = Instant::now();
        for number in 0..self.world.services {
            for object in self.world.service(number) {
                self.site
                    .server
                    .create(object)
                    .context("the double refuses what this benchmark makes")?;
            }
            if number % 100 == 0 {
                self.progress.at("first creation", &format!("{number} Services made"));
                self.look()?;
            }
        }
        let posted = start.elapsed();
        self.wait("all Services to have an address", self.patience(), |run| {
            // A list is large: not before there can be enough of them.
            let statuses: u64 = status_writes(&run.site.written().since(&before));
            run.progress
                .at("first creation", &format!("{statuses} statuses written"));
            if statuses < u64::from(run.world.services) {
                thread::sleep(Duration::from_millis(50));
                return Ok(false);
            }
            run.vips = run.listed_vips();
            Ok(run.vips.len() == run.world.services as usize)
        })?;
        self.wait_for_all()?;
        let served = start.elapsed();
        self.settle()?;
        let writes = rows(&self.site.written().since(&before));
        let of_services = ["services", "services/status", "addressclaims", "viptables"];
        let own = writes.iter().filter(|row| of_services.contains(&row.resource.as_str()));
        let per_service = own.map(|row| row.count).sum::<u64>() as f64 / f64::from(self.world.services.max(1));
        Ok(Creation {
            posted_s: posted.as_secs_f64(),
            served_s: served.as_secs_f64(),
            writes,
            per_service,
        })
    }

    /// Addresses by number; shorter than the Services while some have none.
    fn listed_vips(&self) -> Vec<SocketAddrV4> {
        let listed: std::collections::BTreeMap<String, SocketAddrV4> = self
            .site
            .server
            .list("services")
            .iter()
            .filter_map(|service| Some((service["metadata"]["name"].as_str()?.to_owned(), world::vip(service)?)))
            .collect();
        self.world
            .names()
            .map_while(|name| listed.get(&name).copied())
            .collect()
    }

    /// Kills, starts, and waits until all VIPs are found; and, with the operator, until it has nothing left to do. How long each took,
    /// and the processor time of both.
    fn restart(&mut self, with_operator: bool, with_cache: bool) -> Result<(Duration, Option<Duration>, Cpu)> {
        self.site.lb = None;
        if with_operator {
            self.site.operator = None;
        }
        if !with_cache {
            self.site.drop_cache()?;
        }
        self.wait("the old program to go", Duration::from_secs(10), |run| {
            Ok(run.site.maps()?.is_none())
        })?;
        let (start, server_s) = (Instant::now(), process::own_cpu()?);
        if with_operator {
            self.site.start_operator()?;
        }
        self.site.start_lb()?;
        let ns = self.site.ns.clone();
        let patience = self.patience();
        let (found, idle) = thread::scope(|scope| {
            let idle = scope.spawn(move || {
                while with_operator && start.elapsed() < patience {
                    if process::is_idle(&ns).unwrap_or(false) {
                        return Some(start.elapsed());
                    }
                    // An answer of the metrics looks at every Service: asked often, it would be what is measured.
                    thread::sleep(IDLE_LOOK);
                }
                None
            });
            let found = self.wait_for_all().map(|()| start.elapsed());
            (found, idle.join().ok().flatten())
        });
        let found = found?;
        ensure!(
            !with_operator || idle.is_some(),
            "the operator is not done after {patience:?}"
        );
        let of = |child: &Option<process::Child>| child.as_ref().map_or(Ok(0.0), process::Child::cpu);
        let cpu = Cpu {
            operator_s: if with_operator { of(&self.site.operator)? } else { 0.0 },
            lb_s: of(&self.site.lb)?,
            server_s: process::own_cpu()? - server_s,
        };
        self.settle()?;
        Ok((found, idle, cpu))
    }

    /// Until every VIP is in the match table with a lookup table that has backends.
    fn wait_for_all(&mut self) -> Result<()> {
        let mut maps: Option<Maps> = None;
        let mut next = 0;
        self.wait("all VIPs to be in the match table", self.patience(), |run| {
            if maps.is_none() {
                maps = run.site.maps()?;
                next = 0;
            }
            let Some(known) = &maps else {
                thread::sleep(PROGRAM_LOOK);
                return Ok(false);
            };
            // Found once is found: tables only grow here. A program that was replaced begins anew.
            while let Some(vip) = run.vips.get(next) {
                if !is_served(known, *vip)? {
                    maps = None;
                    return Ok(false);
                }
                next += 1;
            }
            Ok(true)
        })
    }

    /// Waits until nothing more is written, node status and Leases left out.
    fn settle(&mut self) -> Result<()> {
        let (mut last, mut since) = (self.site.written(), Instant::now());
        self.wait("writes to end", self.patience(), |run| {
            thread::sleep(Duration::from_millis(50));
            if !run.operator_writes(&last).is_empty() {
                (last, since) = (run.site.written(), Instant::now());
            }
            Ok(since.elapsed() > QUIET)
        })
    }

    /// Waits for something, and looks at Ctrl-C and whether both processes live meanwhile.
    fn wait(&mut self, what: &str, patience: Duration, mut is_so: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !is_so(self)? {
            self.look()?;
            if start.elapsed() > patience {
                let words =
                    [&self.site.operator, &self.site.lb].map(|child| child.as_ref().map(process::Child::last_words));
                anyhow::bail!(
                    "waited {patience:?} for {what}; the operator's last words:\n{}\nthe LB node's:\n{}",
                    words[0].as_deref().unwrap_or("-"),
                    words[1].as_deref().unwrap_or("-")
                );
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn look(&mut self) -> Result<()> {
        if self.interrupt.came() {
            return Err(Interrupted.into());
        }
        self.site.check()
    }

    /// Longest that anything may take that concerns all Services.
    fn patience(&self) -> Duration {
        Duration::from_secs(60) + Duration::from_millis(30) * self.world.services
    }

    /// The operator's writes since: all but Events, Leases and what the LB node says of itself.
    fn operator_writes(&self, before: &Written) -> Vec<Writes> {
        let mut writes = rows(&self.site.written().since(before));
        writes.retain(|row| {
            !row.resource.starts_with("lbnodes") && !["events", "leases"].contains(&row.resource.as_str())
        });
        writes
    }

    fn note_memory(&self, report: &mut Report, after: &str) -> Result<()> {
        if let (Some(operator), Some(lb)) = (&self.site.operator, &self.site.lb) {
            report.memory.push(MemoryRow {
                after: after.to_owned(),
                operator: operator.memory()?,
                lb: lb.memory()?,
            });
        }
        Ok(())
    }
}

fn is_served(maps: &Maps, vip: SocketAddrV4) -> Result<bool> {
    // Unit 0 is the table without backends.
    Ok(maps.vip(vip)?.is_some_and(|meta| meta.unit().0 != 0))
}

fn status_writes(writes: &[(String, String, u64)]) -> u64 {
    let statuses = writes.iter().filter(|(_, resource, _)| resource == "services/status");
    statuses.map(|(_, _, count)| count).sum()
}

fn rows(writes: &[(String, String, u64)]) -> Vec<Writes> {
    let row = |(verb, resource, count): &(String, String, u64)| Writes {
        verb: verb.clone(),
        resource: resource.clone(),
        count: *count,
    };
    writes.iter().map(row).collect()
}

/// Where a VIP's packets go.
fn destinations(maps: &Maps, vip: SocketAddrV4) -> Result<BTreeSet<std::net::Ipv4Addr>> {
    let Some(meta) = maps.vip(vip)? else {
        return Ok(BTreeSet::new());
    };
    Ok(maps.spread(meta)?.into_keys().collect())
}
