//! Anonymous network namespaces. Never named, never mounted: a namespace lives while a descriptor, a thread or a socket
//! of this process is in it.

use std::{
    fs::File,
    net::{IpAddr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    panic::resume_unwind,
    process::Command,
    sync::Arc,
    thread::{Builder, JoinHandle},
};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns, unshare};

use crate::run;

/// What every namespace starts with: addresses work at once, captures are quiet, and nothing is inherited from the host
/// (IPv4 settings are, otherwise).
const QUIET: [(&str, &str); 7] = [
    ("net/ipv6/conf/*/accept_dad", "0"),
    ("net/ipv6/conf/*/router_solicitations", "0"),
    ("net/ipv6/conf/*/accept_ra", "0"),
    ("net/ipv6/conf/*/accept_redirects", "0"),
    ("net/ipv4/conf/*/accept_redirects", "0"),
    ("net/ipv4/conf/*/send_redirects", "0"),
    ("net/ipv4/conf/*/rp_filter", "0"),
];

/// A network namespace, held by a descriptor. Clones hold the same one; it goes when the last holder goes.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
}

impl Netns {
    /// Makes a namespace with `lo` up. `name` is only for error messages and thread names.
    ///
    /// IPv6 duplicate address detection, router solicitations and redirects are off, so that addresses work at once and
    /// captures are quiet.
    ///
    /// # Errors
    ///
    /// Without CAP_SYS_ADMIN, mainly.
    pub fn new(name: &str) -> Result<Self> {
        let file = std::thread::scope(|scope| {
            let made = scope.spawn(|| -> Result<File> {
                unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
                File::open("/proc/thread-self/ns/net").context("open /proc/thread-self/ns/net")
            });
            made.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
        .with_context(|| format!("cannot make the network namespace of {name}"))?;
        let ns = Self {
            name: name.into(),
            file: Arc::new(file),
        };
        ns.ip(&["link", "set", "lo", "up"])?;
        ns.run(|| {
            // A closed connection whose peer is gone keeps its namespace alive while it retransmits: 3 s instead of 100 s.
            write_sysctl("net/ipv4/tcp_orphan_retries", "3")?;
            for (key, value) in QUIET {
                for scope in ["all", "default"] {
                    write_sysctl(&key.replace('*', scope), value)?;
                }
            }
            Ok(())
        })?;
        Ok(ns)
    }

    /// The name given at birth.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `/proc/<pid>/fd/<n>`: what `ip link set X netns PATH` and `nsenter --net=PATH` take while this process lives.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` on a thread inside the namespace and waits for it. Threads and sockets it makes stay in the namespace.
    ///
    /// # Errors
    ///
    /// Those of `work`, and setns(2)'s. A panic of `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let worker = Builder::new()
                .name(self.name.to_string())
                .spawn_scoped(scope, || {
                    self.enter()?;
                    work()
                })
                .context("cannot start a thread")?;
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts `work` on a thread inside the namespace and lets it run.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started. Failure to enter the namespace is the thread's result.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let ns = self.clone();
        Builder::new()
            .name(self.name.to_string())
            .spawn(move || {
                ns.enter()?;
                work()
            })
            .context("cannot start a thread")
    }

    /// Moves the calling thread, for good, into the namespace. For threads that the caller made for this.
    ///
    /// # Errors
    ///
    /// setns(2)'s.
    pub fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).with_context(|| format!("setns({})", self.name))
    }

    /// A command that will run inside the namespace and die with this process.
    ///
    /// `PDEATHSIG` fires when the *thread* that started the child ends: start what must live longer than the calling thread
    /// with [`Process::start`](crate::Process::start). The kernel clears it for programs with file capabilities (Debian's
    /// `ping`): give those a limit of their own (`-c`, `-w`).
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        let parent = std::process::id();
        let setup = move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // The parent may have died between fork and prctl.
            if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(parent) {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe work is allowed: `setup` makes three system calls and
        // allocates nothing (errors hold a number or a kind).
        unsafe { command.pre_exec(setup) };
        command
    }

    /// Runs a command line (words separated by blanks, no quoting, no shell) and returns its standard output.
    ///
    /// # Errors
    ///
    /// When it fails: the command line, its status and its stderr.
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("an empty command line")?);
        run::output(command.args(words)).with_context(|| format!("in {}", self.name))
    }

    /// Runs `ip` with these arguments and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`Netns::sh`].
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        run::output(self.command("ip").args(args)).with_context(|| format!("in {}", self.name))
    }

    /// Runs many `ip` commands (one a line, without the word `ip`) in one process.
    ///
    /// # Errors
    ///
    /// As [`Netns::sh`]; what came before the failing line stays done.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        run::output_with_input(self.command("ip").args(["-batch", "-"]), lines)
            .map(drop)
            .with_context(|| format!("in {}:\n{lines}", self.name))
    }

    /// Feeds a ruleset to `nft -f -`, as one transaction.
    ///
    /// # Errors
    ///
    /// As [`Netns::sh`], with the ruleset.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        run::output_with_input(self.command("nft").args(["-f", "-"]), ruleset)
            .map(drop)
            .with_context(|| format!("in {}:\n{ruleset}", self.name))
    }

    /// Writes `/proc/sys/<key>` (`net/ipv4/ip_forward`) as the namespace sees it.
    ///
    /// # Errors
    ///
    /// open(2)'s and write(2)'s, with the key.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the task that looks, so it must be a thread inside.
        self.run(|| write_sysctl(key, value))
    }

    /// The source address that the namespace's routes choose for `destination`.
    ///
    /// # Errors
    ///
    /// When there is no route.
    pub fn source_for(&self, destination: IpAddr) -> Result<IpAddr> {
        self.run(|| {
            let any: IpAddr = match destination {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket
                .connect((destination, 9))
                .with_context(|| format!("no route to {destination}"))?;
            Ok(socket.local_addr()?.ip())
        })
    }
}

fn write_sysctl(key: &str, value: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/{key}"), value).with_context(|| format!("sysctl {key}={value}"))
}
