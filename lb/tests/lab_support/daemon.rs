//! A `vipline run` or `vipline node` process with a directory of its own: file, control socket, log.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Bpffs, Node, Process};
use lb::control::{self, BackendView, CountedBy, CounterView, ExplainView, Request, StatusView, VipView};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::{LbFile, NodeFile, PATIENCE, eventually};

const VIPLINE: &str = env!("CARGO_BIN_EXE_vipline");

/// Runs the CLI to its end.
pub(crate) fn vipline(args: &[&str]) -> Result<Output> {
    Command::new(VIPLINE).args(args).output().context("cannot run vipline")
}

/// Packets by `fate reason`, of all verdicts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted(pub(crate) BTreeMap<String, u64>);

impl Counted {
    /// Packets with this verdict: `forward tx`.
    pub(crate) fn of(&self, verdict: &str) -> u64 {
        *self.0.get(verdict).unwrap_or_else(|| panic!("no verdict {verdict}"))
    }

    /// What was counted since `before`, without what was not and without what the neighbourhood talks of its own: ARP, neighbour
    /// discovery, and what is for nobody's VIP.
    pub(crate) fn since(&self, before: &Self) -> BTreeMap<&str, u64> {
        let quiet = ["pass not_ip", "pass not_tunnel", "pass not_vip", "pass own_address"];
        let grown = self
            .0
            .iter()
            .map(|(verdict, count)| (verdict.as_str(), count - before.of(verdict)));
        grown
            .filter(|(verdict, count)| *count > 0 && !quiet.contains(verdict))
            .collect()
    }

    /// Packets of all verdicts of a fate.
    pub(crate) fn fate(&self, fate: &str) -> u64 {
        self.0
            .iter()
            .filter(|(verdict, _)| verdict.split(' ').next() == Some(fate))
            .map(|(_, count)| count)
            .sum()
    }
}

/// Packets by `kind/outcome`, of the slow path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slow(BTreeMap<String, u64>);

impl Slow {
    /// Packets of this kind with this outcome.
    pub(crate) fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// What was counted since `before`, without what was not.
    pub(crate) fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        let grown = self
            .0
            .iter()
            .map(|(what, count)| (what.clone(), count - before.of(what)));
        grown.filter(|(_, count)| *count > 0).collect()
    }
}

/// A daemon at work; killed and its directory removed on drop.
pub(crate) struct Daemon {
    process: Process,
    role: &'static str,
    node: Node,
    directory: TempDir,
    /// Where it pins; dropped after the process.
    bpffs: Arc<Bpffs>,
    /// More words on its command line.
    args: Vec<String>,
}

impl Daemon {
    /// Starts `vipline run` in `node`'s namespace and waits until it serves.
    pub(crate) fn lb(node: &Node, file: &LbFile) -> Result<Self> {
        let mut daemon = Self::spawn("run", node, |socket| file.yaml(socket))?;
        daemon.ready()?;
        Ok(daemon)
    }

    /// Starts `vipline node` in `node`'s namespace and waits until it serves.
    pub(crate) fn node(node: &Node, file: &NodeFile) -> Result<Self> {
        let mut daemon = Self::spawn("node", node, |socket| file.yaml(socket))?;
        daemon.ready()?;
        Ok(daemon)
    }

    /// Starts a role and does not wait.
    pub(crate) fn spawn(role: &'static str, node: &Node, yaml: impl FnOnce(&Path) -> String) -> Result<Self> {
        Self::spawn_as(role, node, yaml, &[])
    }

    /// As [`Self::spawn`], with more words on the command line, which may name files of its directory.
    pub(crate) fn spawn_with(
        role: &'static str,
        node: &Node,
        yaml: impl FnOnce(&Path) -> String,
        args: impl FnOnce(&Path) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let directory = directory(yaml)?;
        let mut args = args(directory.path())?;
        let bpffs = Arc::new(Bpffs::new()?);
        args.extend(pins(role, &bpffs));
        Ok(Self {
            process: process(role, node, directory.path(), &[], &args)?,
            role,
            node: node.clone(),
            directory,
            bpffs,
            args,
        })
    }

    /// As [`Self::spawn`] of an LB node, with these words for its pins instead of a BPF file system of its own.
    pub(crate) fn spawn_lb_with(node: &Node, file: &LbFile, wrapper: &[&str], words: &[&str]) -> Result<Self> {
        let directory = directory(|socket| file.yaml(socket))?;
        let args: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Ok(Self {
            process: process("run", node, directory.path(), wrapper, &args)?,
            role: "run",
            node: node.clone(),
            directory,
            bpffs: Arc::new(Bpffs::new()?),
            args,
        })
    }

    /// Starts an LB node's daemon that pins where another one does, and does not wait.
    pub(crate) fn spawn_beside(other: &Self, node: &Node, file: &LbFile) -> Result<Self> {
        let directory = directory(|socket| file.yaml(socket))?;
        Ok(Self {
            process: process("run", node, directory.path(), &[], &other.args)?,
            role: "run",
            node: node.clone(),
            directory,
            bpffs: Arc::clone(&other.bpffs),
            args: other.args.clone(),
        })
    }

    /// As [`Self::spawn`], as root without any capability.
    pub(crate) fn spawn_without_privileges(
        role: &'static str,
        node: &Node,
        yaml: impl FnOnce(&Path) -> String,
    ) -> Result<Self> {
        Self::spawn_as(role, node, yaml, &["setpriv", "--inh-caps=-all", "--bounding-set=-all"])
    }

    /// As [`Self::spawn`], as root with these capabilities only: `+bpf,+net_admin`.
    pub(crate) fn spawn_with_capabilities(
        role: &'static str,
        node: &Node,
        yaml: impl FnOnce(&Path) -> String,
        capabilities: &str,
    ) -> Result<Self> {
        let set = format!("--bounding-set=-all,{capabilities}");
        Self::spawn_as(role, node, yaml, &["setpriv", "--inh-caps=-all", &set])
    }

    fn spawn_as(role: &'static str, node: &Node, yaml: impl FnOnce(&Path) -> String, wrapper: &[&str]) -> Result<Self> {
        let directory = directory(yaml)?;
        let bpffs = Arc::new(Bpffs::new()?);
        let args = pins(role, &bpffs);
        let process = process(role, node, directory.path(), wrapper, &args)?;
        Ok(Self {
            process,
            role,
            node: node.clone(),
            directory,
            bpffs,
            args,
        })
    }

    /// Adds words to its command line for the next start.
    pub(crate) fn next_with(&mut self, words: &[&str]) {
        self.args.extend(words.iter().map(|word| (*word).to_owned()));
    }

    /// Takes words that were added off again.
    pub(crate) fn next_without(&mut self, words: &[&str]) {
        self.args.retain(|arg| !words.contains(&arg.as_str()));
    }

    /// Where it pins.
    pub(crate) fn pins(&self) -> PathBuf {
        self.bpffs.path().join("vipline/default")
    }

    /// Runs `vipline detach` for it, in its node's namespace; its standard output.
    pub(crate) fn detach(&self) -> Result<Output> {
        let mut command = self.node.ns().command(VIPLINE);
        command.arg("detach").arg("--bpffs").arg(self.bpffs.path());
        command.output().context("cannot run vipline detach")
    }

    /// A file of its directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts again, with the same file, after the process has ended.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.ended()?.is_some(), "it still runs");
        self.start_again_unready()?;
        self.ready()
    }

    /// As [`Self::start_again`], without waiting until it serves.
    pub(crate) fn start_again_unready(&mut self) -> Result<()> {
        ensure!(self.process.ended()?.is_some(), "it still runs");
        self.process = process(self.role, &self.node, self.directory.path(), &[], &self.args)?;
        Ok(())
    }

    /// Waits until it serves.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.status().is_ok_and(|status| status.serving) {
            if let Some(status) = self.process.ended()? {
                bail!("vipline {} ended with {status}:\n{}", self.role, self.log()?);
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "vipline {} is not ready:\n{}",
                self.role,
                self.log()?
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    /// Its configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("config.yaml")
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Everything that it has logged.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.path().join("log"))?)
    }

    /// Asks over the control socket.
    pub(crate) fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        Ok(control::ask(&self.socket(), request)?)
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

    /// The backend of this name.
    pub(crate) fn backend(&self, name: &str) -> Result<BackendView> {
        self.backends()?
            .into_iter()
            .find(|view| view.name == name)
            .with_context(|| format!("no backend {name}"))
    }

    pub(crate) fn explain(&self, request: &Request) -> Result<ExplainView> {
        self.ask(request)
    }

    /// All verdicts.
    pub(crate) fn counted(&self) -> Result<Counted> {
        let views: Vec<CounterView> = self.ask(&Request::Counters)?;
        Ok(Counted(
            views
                .into_iter()
                .filter(|view| view.path == CountedBy::Fast)
                .map(|view| (format!("{} {}", view.fate, view.reason), view.packets))
                .collect(),
        ))
    }

    /// Packets that the slow path was done with, by `kind/outcome`: `echo/echo_reply`.
    pub(crate) fn slow(&self) -> Result<Slow> {
        let views: Vec<CounterView> = self.ask(&Request::Counters)?;
        let slow = views.into_iter().filter(|view| view.path == CountedBy::Slow);
        Ok(Slow(slow.map(|view| (view.reason, view.packets)).collect()))
    }

    /// Runs a CLI command against it; its standard output.
    pub(crate) fn cli(&self, args: &[&str]) -> Result<String> {
        let socket = self.socket();
        let mut command = Command::new(VIPLINE);
        command.args(args).arg("--socket").arg(&socket);
        lab::output(&mut command)
    }

    /// As [`Self::cli`] with `-o json`.
    pub(crate) fn cli_json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let text = self.cli(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("`{}` printed:\n{text}", args.join(" ")))
    }

    /// Replaces the file as editors and ConfigMaps do: whole, by renaming.
    pub(crate) fn write(&self, yaml: &str) -> Result<()> {
        let next = self.directory.path().join("config.yaml.next");
        fs::write(&next, yaml)?;
        Ok(fs::rename(next, self.config())?)
    }

    /// Replaces the file, sends SIGHUP and waits until a reload is done; `Err` when it was refused, with why.
    pub(crate) fn reload(&self, yaml: &str) -> Result<()> {
        // It may notice the change by itself first; what counts is the reading that the signal asks for.
        let before = self.readings("SIGHUP")?;
        self.write(yaml)?;
        self.signal(Signal::SIGHUP)?;
        self.after_reading("SIGHUP", before)
    }

    /// Replaces the file and waits until the daemon has seen that by itself.
    pub(crate) fn reload_by_itself(&self, yaml: &str) -> Result<()> {
        let before = self.readings("the file changed")?;
        self.write(yaml)?;
        self.after_reading("the file changed", before)
    }

    /// Replaces the file with that of an LB node.
    pub(crate) fn reload_lb(&self, file: &LbFile) -> Result<()> {
        self.reload(&file.yaml(&self.socket()))
    }

    /// Replaces the file with that of a worker node.
    pub(crate) fn reload_node(&self, file: &NodeFile) -> Result<()> {
        self.reload(&file.yaml(&self.socket()))
    }

    /// How often the file was read, and applied or refused, for this cause.
    fn readings(&self, cause: &str) -> Result<usize> {
        let log = self.log()?;
        let (mut reading, mut done) = (false, 0);
        for line in log.lines() {
            if line.contains("reading the configuration again") {
                reading = line.contains(cause);
            } else if line.contains("configuration applied") || line.contains("configuration refused") {
                done += usize::from(reading);
            }
        }
        Ok(done)
    }

    fn after_reading(&self, cause: &str, before: usize) -> Result<()> {
        eventually("the file is read again", || Ok(self.readings(cause)? > before))?;
        match self.status()?.last_reload.error {
            None => Ok(()),
            Some(error) => bail!("{error}"),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.ended()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        eventually("vipline ends", || {
            status = self.process.ended()?;
            Ok(status.is_some())
        })?;
        status.context("no status")
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait()
    }
}

/// Words of a role that pins.
fn pins(role: &str, bpffs: &Bpffs) -> Vec<String> {
    match role {
        "run" => vec!["--bpffs".to_owned(), bpffs.path().display().to_string()],
        _ => Vec::new(),
    }
}

fn directory(yaml: impl FnOnce(&Path) -> String) -> Result<TempDir> {
    let directory = TempDir::with_prefix("vipline-lab-")?;
    let path = directory.path();
    fs::write(path.join("config.yaml"), yaml(&path.join("control.sock")))?;
    Ok(directory)
}

fn process(role: &str, node: &Node, directory: &Path, wrapper: &[&str], args: &[String]) -> Result<Process> {
    let log = File::options().create(true).append(true).open(directory.join("log"))?;
    let mut words = wrapper.iter().copied().chain([VIPLINE, role]);
    let mut command = node.ns().command(words.next().context("no command")?);
    command
        .args(words)
        .arg("--config")
        .arg(directory.join("config.yaml"))
        .args(args)
        .stderr(log);
    if role == "run" {
        command.arg("--drains").arg(directory.join("drains.json"));
    }
    Process::start(command)
}
