//! The operator and the LB node's daemon, each a process of its own, and how much memory it takes.
//!
//! Never another build than this one: the program runs itself under their names. They are killed, not asked to end, when they are
//! restarted: what is in the way of a fresh start is then seen, and nothing is tidied up that a crash would leave.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lab::{Netns, Process};
use serde::{Deserialize, Serialize};

/// Says which program this one is to be.
const ROLE: &str = "VIPLINE_PERF_ROLE";
const OPERATOR: &str = "operator";
const LB: &str = "lb";
/// What the LB node keeps of what it was told, in the directory of both.
pub(crate) const CACHE: &str = "kube.json";
/// Where the operator's metrics are, in the LB node's namespace.
const OPERATOR_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);
/// Ticks of a second in `/proc`: `USER_HZ`, the same on all of Linux' architectures that are left.
const TICKS: f64 = 100.0;
/// Longest wait for an answer over HTTP.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the program that [`ROLE`] asks for, if it asks for one.
pub(crate) fn role() -> Option<ExitCode> {
    match env::var(ROLE).as_deref() {
        Ok(OPERATOR) => Some(vipline_operator::run::main()),
        Ok(LB) => Some(lb::cli::main()),
        Ok(_) | Err(_) => None,
    }
}

/// A program at work; killed on drop.
pub(crate) struct Child {
    process: Process,
    name: &'static str,
    log: PathBuf,
}

/// Memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Resident, in bytes.
    pub(crate) resident: u64,
    /// The most that it was, in bytes.
    pub(crate) most: u64,
}

impl Child {
    /// `vipline-operator run`, alone: no leader's Lease to wait for.
    pub(crate) fn operator(ns: &Netns, directory: &Path, kubeconfig: &Path) -> Result<Self> {
        let listen = OPERATOR_HTTP.to_string();
        let rest = ["--leader-elect", "false", "--listen", &listen];
        Self::start(ns, directory, OPERATOR, kubeconfig, &rest)
    }

    /// `vipline run --kube`.
    pub(crate) fn lb(ns: &Netns, directory: &Path, kubeconfig: &Path) -> Result<Self> {
        let (config, cache) = (directory.join("lb.yaml"), directory.join(CACHE));
        let config = config.to_str().context("a path that is not UTF-8")?;
        let cache = cache.to_str().context("a path that is not UTF-8")?;
        Self::start(
            ns,
            directory,
            LB,
            kubeconfig,
            &["--no-pin", "--kube", "--config", config, "--cache", cache],
        )
    }

    fn start(ns: &Netns, directory: &Path, name: &'static str, kubeconfig: &Path, rest: &[&str]) -> Result<Self> {
        let own = env::current_exe()?;
        let mut command = ns.command(own.to_str().context("the path of this program is not UTF-8")?);
        let log = directory.join(format!("{name}.log"));
        let to = File::options().create(true).append(true).open(&log)?;
        command
            .env(ROLE, name)
            .env("NODE_NAME", "lb-0")
            .env("POD_NAME", format!("{name}-0"))
            .arg("run")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(rest)
            .stdout(to.try_clone()?)
            .stderr(to);
        Ok(Self {
            process: Process::start(command)?,
            name,
            log,
        })
    }

    /// Fails, with the end of its log, when it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.process.ended()? {
            bail!("the {} ended with {status}:\n{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Processor time that it has had, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu(&self.process.id().to_string())
    }

    /// What it takes now (proc_pid_status(5)).
    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let field = |key: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            Ok(number.with_context(|| format!("no {key}"))?.parse::<u64>()? * 1024)
        };
        Ok(Memory {
            resident: field("VmRSS:")?,
            most: field("VmHWM:")?,
        })
    }
}

/// Processor time that this process has had, in seconds: nearly all of it is the API server's double.
pub(crate) fn own_cpu() -> Result<f64> {
    cpu("self")
}

/// User and system time of all threads (proc_pid_stat(5)), in seconds.
fn cpu(process: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is a name in parentheses, which may have spaces in it; the 14th and 15th are the times.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let ticks: Vec<f64> = fields.take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

/// Whether the operator has listed everything and has nothing left to do.
pub(crate) fn is_idle(ns: &Netns) -> Result<bool> {
    let Ok(ready) = get(ns, "/readyz") else {
        return Ok(false);
    };
    if !ready.starts_with("HTTP/1.1 200") {
        return Ok(false);
    }
    let metrics = get(ns, "/metrics")?;
    let left: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("vipline_operator_queue{") && !line.contains("later"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    Ok(left == 0.0)
}

/// An answer of the operator's HTTP server, headers and all.
fn get(ns: &Netns, path: &str) -> Result<String> {
    ns.run(|| {
        let mut stream = TcpStream::connect_timeout(&OPERATOR_HTTP, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::own_cpu;

    #[test]
    fn processor_time_grows_with_work() {
        let (before, start) = (own_cpu().unwrap(), Instant::now());
        while own_cpu().unwrap() < before + 0.1 {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "a busy loop takes no processor time"
            );
        }
    }
}
