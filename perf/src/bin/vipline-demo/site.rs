//! The demo's site: a client, a router, an LB node and three worker nodes, with the real daemons.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{Mtus, Process, Proto, Server, Topology};
use lb::control::{self, BackendView, ExplainView, ProtocolName, Request, StatusView, VipView};
use serde::de::DeserializeOwned;

/// Longest wait for a daemon or a change.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// A seed like any other: a real one is a secret.
const SEED: &str = "3f9a1c07d2e84b56a0c7f1e92d3b5846790ab1c2d3e4f5061728394a5b6c7d8e";

pub(crate) const WORKERS: usize = 3;
/// Of every wire: no room for an outer header, as on most networks.
pub(crate) const LINK_MTU: u32 = 1500;

pub(crate) struct Site {
    // Fields drop in this order: daemons and servers before their namespaces.
    daemons: Vec<(PathBuf, Process)>,
    _servers: Vec<Server>,
    pub(crate) topology: Topology,
    config: PathBuf,
    socket: PathBuf,
}

/// The VIPs: HTTP over both families, UDP over both.
pub(crate) fn vips() -> Result<[(Proto, SocketAddr); 4]> {
    let (v4, v6) = ("203.0.113.10:80".parse()?, "[2001:db8:f00d::10]:80".parse()?);
    Ok([(Proto::Tcp, v4), (Proto::Tcp, v6), (Proto::Udp, v4), (Proto::Udp, v6)])
}

impl Site {
    pub(crate) fn build(directory: &Path) -> Result<Self> {
        let topology = Topology::builder()
            .workers(WORKERS as u8)
            .mtus(Mtus {
                client: LINK_MTU,
                lb: LINK_MTU,
                worker: LINK_MTU,
            })
            .build()
            .context("cannot build the lab")?;
        let servers = topology.serve(&vips()?)?;
        let mut site = Self {
            daemons: Vec::new(),
            _servers: servers,
            config: directory.join("lb.yaml"),
            socket: directory.join("lb.sock"),
            topology,
        };
        for index in 0..WORKERS {
            let worker = site.topology.worker(index).clone();
            let socket = directory.join(format!("{}.sock", worker.name()));
            let config = directory.join(format!("{}.yaml", worker.name()));
            let (v4, v6) = (site.topology.lb(0).addr_v4(), site.topology.lb(0).addr_v6());
            let text = format!(
                "interfaces: [{{name: {}, mode: native}}]\n\
                 lb_sources: [{v4}/32, '{v6}/128']\n\
                 vip_prefixes: [203.0.113.0/24, '2001:db8:f00d::/64']\n\
                 control_socket: {}\n",
                worker.eth0().name,
                socket.display()
            );
            fs::write(&config, text)?;
            site.start(
                worker.ns().command(&vipline()?),
                "node",
                &config,
                directory,
                worker.name(),
                socket,
            )?;
        }
        site.configure([1; WORKERS])?;
        let lb = site.topology.lb(0).clone();
        let (config, socket) = (site.config.clone(), site.socket.clone());
        site.start(
            lb.ns().command(&vipline()?),
            "run",
            &config,
            directory,
            lb.name(),
            socket,
        )?;
        site.wait_until_ready()?;
        Ok(site)
    }

    /// Writes the LB node's file with these weights: complete beside it, then renamed into place.
    pub(crate) fn configure(&self, weights: [u16; WORKERS]) -> Result<()> {
        let mut text = format!(
            "interfaces: [{{name: {}, mode: native}}]\nseed: {SEED}\ncontrol_socket: {}\nbackend_sets:\n  web:\n    members:\n",
            self.topology.lb(0).eth0().name,
            self.socket.display()
        );
        for (worker, weight) in self.topology.workers().iter().zip(weights) {
            text += &format!(
                "      - {{name: {}, address: {}, weight: {weight}}}\n",
                worker.name(),
                worker.addr_v4()
            );
        }
        text += "vips:\n";
        for (protocol, vip) in vips()? {
            let protocol = match protocol {
                Proto::Tcp => "tcp",
                Proto::Udp => "udp",
            };
            text += &format!(
                "  - {{address: '{}', protocol: {protocol}, port: {}, mode: DsrIpip, backends: web}}\n",
                vip.ip(),
                vip.port()
            );
        }
        let beside = self.config.with_extension("new");
        fs::write(&beside, text)?;
        fs::rename(&beside, &self.config).context("cannot replace the configuration")
    }

    /// Waits until the daemon has taken the file that was written last.
    pub(crate) fn wait_for_revision(&self, revision: u64) -> Result<Duration> {
        let start = Instant::now();
        self.wait("a new configuration", || {
            let status = self.status()?;
            Ok(status.revision > revision && status.last_reload.error.is_none())
        })?;
        Ok(start.elapsed())
    }

    pub(crate) fn status(&self) -> Result<StatusView> {
        self.ask(&Request::Status)
    }

    pub(crate) fn vips(&self) -> Result<Vec<VipView>> {
        self.ask(&Request::Vips)
    }

    pub(crate) fn backends(&self) -> Result<Vec<BackendView>> {
        self.ask(&Request::Backends)
    }

    pub(crate) fn explain(&self, source: SocketAddr, destination: SocketAddr) -> Result<ExplainView> {
        self.ask(&Request::Explain {
            protocol: ProtocolName::Tcp,
            source,
            destination,
        })
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        Ok(control::ask(&self.socket, request)?)
    }

    fn start(
        &mut self,
        mut command: Command,
        role: &str,
        config: &Path,
        directory: &Path,
        name: &str,
        socket: PathBuf,
    ) -> Result<()> {
        let log = directory.join(format!("{name}.log"));
        command.arg(role).arg("--config").arg(config);
        if role == "run" {
            // What is shown goes with the demo.
            command.arg("--no-pin");
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?);
        self.daemons.push((log, Process::start(command)?));
        self.wait(name, || {
            Ok(control::ask::<StatusView>(&socket, &Request::Status).is_ok())
        })
        .with_context(|| {
            let log = self
                .daemons
                .last()
                .and_then(|(log, _)| fs::read_to_string(log).ok())
                .unwrap_or_default();
            format!("vipline {role} on {name} did not start; its log:\n{log}")
        })
    }

    fn wait_until_ready(&self) -> Result<()> {
        self.wait("next hops", || {
            let status = self.status()?;
            Ok(status.backends == WORKERS && status.backends_ready == WORKERS)
        })
    }

    fn wait(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !holds()? {
            ensure!(start.elapsed() < PATIENCE, "{what}: not there after {PATIENCE:?}");
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// The real binary, built beside this one.
fn vipline() -> Result<String> {
    let path = std::env::current_exe()?.with_file_name("vipline");
    ensure!(
        path.exists(),
        "{} is not there: run `make demo`, which builds it",
        path.display()
    );
    path.into_os_string()
        .into_string()
        .ok()
        .context("the path of this program is not UTF-8")
}
