//! Where it is measured: a generator and an LB node with the real daemon, one wire between them, backends behind the generator.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{End, Netns, Process, RawSocket, Veth};
use lb::control::{self, CountedBy, CounterView, Request, StatusView};
use nix::unistd::{SysconfVar, sysconf};

use super::frames::Addresses;
use crate::{prog::Sink, vipline::vipline};

const GENERATOR: &str = "generator";
const BALANCER: &str = "balancer";
const PATIENCE: Duration = Duration::from_secs(10);

/// Dropped in this order: the daemon first.
pub(crate) struct Site {
    daemon: Process,
    _sink: Sink,
    generator: Netns,
    directory: PathBuf,
    control: PathBuf,
    pub(crate) addresses: Addresses,
}

impl Site {
    /// `unbounded`: with budgets that nothing reaches.
    pub(crate) fn build(unbounded: bool) -> Result<Self> {
        let (near, far) = (Netns::new(GENERATOR)?, Netns::new(BALANCER)?);
        let addresses = Addresses {
            generator: [2, 0, 0, 0, 0, 2],
            balancer: [2, 0, 0, 0, 0, 1],
            vip: Ipv4Addr::new(203, 0, 113, 10),
            port: 53,
        };
        let end = |ns: &Netns, name: &str, mac, last| End {
            ns: ns.clone(),
            name: name.to_owned(),
            mac,
            v4: Some((Ipv4Addr::new(192, 0, 2, last), 24)),
            v6: None,
        };
        let _pair = Veth::new(
            end(&near, GENERATOR, addresses.generator, 2),
            end(&far, BALANCER, addresses.balancer, 1),
            1_500,
            1,
        )?;
        let sink = near.run(|| Sink::attach(GENERATOR))?;
        far.ip(&[
            "neigh",
            "replace",
            "192.0.2.2",
            "lladdr",
            "02:00:00:00:00:02",
            "dev",
            BALANCER,
            "nud",
            "permanent",
        ])?;
        let directory = std::env::temp_dir().join(format!("vipline-perf-{}-{unbounded}", std::process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let (config, control) = (directory.join("lb.yaml"), directory.join("lb.sock"));
        fs::write(&config, file(&control, unbounded))?;
        let mut command = far.command(&vipline()?);
        command.arg("run").arg("--no-pin").arg("--config").arg(&config);
        command.stderr(fs::File::create(directory.join("log"))?);
        let site = Self {
            daemon: Process::start(command)?,
            _sink: sink,
            generator: near,
            directory,
            control,
            addresses,
        };
        let start = Instant::now();
        while !site.status().is_ok_and(|status| status.backends_ready == 1) {
            ensure!(
                start.elapsed() < PATIENCE,
                "the daemon did not start:\n{}",
                fs::read_to_string(site.directory.join("log"))?
            );
            thread::sleep(Duration::from_millis(50));
        }
        Ok(site)
    }

    /// A socket to send by.
    pub(crate) fn socket(&self) -> Result<RawSocket> {
        RawSocket::open(&self.generator, GENERATOR)
    }

    pub(crate) fn status(&self) -> Result<StatusView> {
        Ok(control::ask(&self.control, &Request::Status)?)
    }

    fn counters(&self, counts: impl Fn(&CounterView) -> bool) -> Result<u64> {
        let counters: Vec<CounterView> = control::ask(&self.control, &Request::Counters)?;
        Ok(counters
            .iter()
            .filter(|counter| counts(counter))
            .map(|counter| counter.packets)
            .sum())
    }

    /// Packets that the slow path answered or forwarded.
    pub(crate) fn handled(&self) -> Result<u64> {
        self.counters(|counter| counter.path == CountedBy::Slow && counter.fate != "dropped")
    }

    /// Packets that the fast path forwarded.
    pub(crate) fn forwarded(&self) -> Result<u64> {
        self.counters(|counter| counter.path == CountedBy::Fast && counter.fate == "forward")
    }

    /// Packets that the fast path shed.
    pub(crate) fn shed(&self) -> Result<u64> {
        self.counters(|counter| counter.path == CountedBy::Fast && counter.reason == "slow_budget")
    }

    /// Packets that workers received.
    pub(crate) fn received(&self) -> Result<u64> {
        let slow = self.status()?.slow_path.context("the slow path is off")?;
        Ok(slow.workers.iter().map(|worker| worker.received).sum())
    }

    /// Processor time of all workers so far, user and kernel, from /proc (proc_pid_stat(5)).
    pub(crate) fn worker_time(&self) -> Result<Duration> {
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
        let mut ticks = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.daemon.id()))? {
            let stat = fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
            if let Some((head, tail)) = stat.rsplit_once(')')
                && head.contains("(xsk-")
                && !head.contains("supervi")
            {
                let fields: Vec<&str> = tail.split_whitespace().collect();
                ticks += [11, 12]
                    .iter()
                    .filter_map(|at| fields.get(*at)?.parse::<u64>().ok())
                    .sum::<u64>();
            }
        }
        Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // The daemon goes with its handle.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn file(control: &std::path::Path, unbounded: bool) -> String {
    let kinds = [
        "neighbour",
        "echo",
        "icmp_error",
        "too_big",
        "fragment",
        "unusual",
        "next_hop",
        "reject",
    ];
    let limits: String = kinds
        .iter()
        .map(|kind| format!("    {kind}: {{ per_second: 10000000 }}\n"))
        .collect();
    let slow_path = if unbounded {
        format!(
            "slow_path:\n  frames_per_queue: 8192\n  replies_per_source_per_second: 10000000\n  \
             fragments: {{ datagrams: 65536, timeout_ms: 100 }}\n  limits:\n{limits}"
        )
    } else {
        String::new()
    };
    format!(
        "interfaces: [{{ name: {BALANCER}, mode: native }}]\nseed: '{}'\ncontrol_socket: {}\n{slow_path}vips:\n  \
         - {{ address: 203.0.113.10, protocol: udp, port: 53, backends: [{{ name: one, address: 192.0.2.2 }}] }}\n",
        "3f9a1c07d2e84b56a0c7f1e92d3b5846790ab1c2d3e4f5061728394a5b6c7d8e",
        control.display()
    )
}
