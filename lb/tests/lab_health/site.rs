//! Workers that say how they are, behind an LB node that asks them.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lab::{Node, Proto, Topology};
use lb::control::CheckView;

use crate::lab_support::{Bed, Daemon, LbFile, eventually};

/// Where workers say how they are.
pub(crate) const PORT: u16 = 9100;
pub(crate) const WORKERS: [&str; 4] = ["worker-1", "worker-2", "worker-3", "worker-4"];

/// A server on a worker itself that answers each request with a status of the test's choice; 0: it closes the connection.
pub(crate) struct Says {
    status: Arc<AtomicU16>,
    stop: Arc<AtomicU16>,
    node: Node,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Says {
    pub(crate) fn start(node: &Node) -> Result<Self> {
        let (status, stop) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(0)));
        let listener = node
            .ns()
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).context("listen"))?;
        let (says, stopped, name) = (Arc::clone(&status), Arc::clone(&stop), node.name().to_owned());
        let thread = node.ns().spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if stopped.load(Ordering::Acquire) > 0 {
                    break;
                }
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                let status = says.load(Ordering::Acquire);
                // Whoever asks may be gone at any time: probes of the port only are.
                let asked = stream.read(&mut [0; 1024]).unwrap_or_default();
                if asked > 0 && status > 0 {
                    let length = name.len();
                    let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {length}\r\n\r\n{name}");
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
            Ok(())
        })?;
        Ok(Self {
            status,
            stop,
            node: node.clone(),
            thread: Some(thread),
        })
    }

    /// Answers with this from now on.
    pub(crate) fn says(&self, status: u16) {
        self.status.store(status, Ordering::Release);
    }
}

impl Drop for Says {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::Release);
        let at = (self.node.addr_v4(), PORT).into();
        let _ = self
            .node
            .ns()
            .run(move || Ok(std::net::TcpStream::connect_timeout(&at, Duration::from_secs(1)).map(drop)?));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Four workers with a server each, behind an LB node that probes them as `health` says.
pub(crate) struct Site {
    pub(crate) says: Vec<Option<Says>>,
    pub(crate) bed: Bed,
}

impl Site {
    pub(crate) fn start(health: &str) -> Result<Self> {
        Self::start_with(&format!("health: {{ {health} }}"))
    }

    /// With these lines in the LB node's file, some of which make it probe.
    pub(crate) fn start_with(lines: &str) -> Result<Self> {
        Self::start_at(Topology::builder().workers(4).build()?, lines)
    }

    /// As [`Self::start_with`], in this network.
    pub(crate) fn start_at(topology: Topology, lines: &str) -> Result<Self> {
        let says = topology.workers().iter().map(|node| Says::start(node).map(Some));
        let says = says.collect::<Result<Vec<_>>>()?;
        let bed = Bed::start(topology, |topology, lb| {
            LbFile::new(topology, lb)
                .vips(&[(Proto::Tcp, VIP), (Proto::Udp, VIP)], "v4")
                .more(lines)
        })?;
        let site = Self { says, bed };
        site.all("healthy")?;
        Ok(site)
    }

    pub(crate) fn lb(&self) -> &Daemon {
        self.bed.lb()
    }

    /// Waits until all checks of all backends are in this state.
    pub(crate) fn all(&self, state: &str) -> Result<()> {
        eventually(&format!("all are {state}"), || {
            Ok(self
                .lb()
                .backends()?
                .iter()
                .all(|backend| !backend.checks.is_empty() && backend.checks.iter().all(|check| check.state == state)))
        })
        .map(drop)
        .with_context(|| {
            format!(
                "{:#?}",
                self.lb()
                    .backends()
                    .map(|all| all.into_iter().map(|b| b.checks).collect::<Vec<_>>())
            )
        })
    }

    /// The one check of a worker.
    pub(crate) fn check(&self, worker: usize) -> Result<CheckView> {
        let mut checks = self.lb().backend(WORKERS[worker])?.checks;
        ensure!(checks.len() == 1, "{checks:?}");
        checks.pop().context("one")
    }

    /// Waits until a worker is in this state.
    pub(crate) fn is(&self, worker: usize, state: &str) -> Result<CheckView> {
        eventually(&format!("{} is {state}", WORKERS[worker]), || {
            Ok(self.check(worker)?.state == state)
        })
        .with_context(|| format!("{:?}", self.check(worker)))?;
        self.check(worker)
    }

    /// Lines of the log that say that a worker's health changed.
    pub(crate) fn changes(&self, worker: usize) -> Result<usize> {
        let change = format!("health changed backend={}", WORKERS[worker]);
        Ok(self.lb().log()?.lines().filter(|line| line.contains(&change)).count())
    }

    /// VIPs of which all backends are used for want of healthy ones, and VIPs that refuse.
    pub(crate) fn too_few(&self) -> Result<(usize, usize)> {
        let health = self.lb().status()?.health.context("health")?;
        Ok((health.vips_in_panic, health.vips_refused))
    }

    /// Tells a worker's server what to answer.
    pub(crate) fn says(&self, worker: usize, status: u16) -> Result<()> {
        self.says[worker].as_ref().context("a server")?.says(status);
        Ok(())
    }

    /// Slots of the TCP VIP's table that a worker takes new flows of.
    pub(crate) fn slots(&self, worker: usize) -> Result<usize> {
        let backend = self.lb().backend(WORKERS[worker])?;
        Ok(backend.sets.iter().map(|set| set.slots).sum())
    }
}

/// TCP and UDP.
pub(crate) const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)), 80);
/// So that a test need not wait for long: unhealthy within a second of the third failure, back within a second.
pub(crate) const QUICK: &str = "interval_ms: 300, timeout_ms: 300, damping_ms: 400";
