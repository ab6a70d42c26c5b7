//! Traffic in the background while something happens, and the account of it afterwards.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{Client, Reply, client::udp_exchange};

/// What each thread of a [`Load`] does, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadKind {
    /// A new TCP connection for each request.
    NewConnections,
    /// Request after request on one TCP connection; a new one only when it broke.
    KeepAlive,
    /// UDP requests, each from a new source port.
    NewDatagramFlows,
    /// UDP requests from one source port: one flow.
    DatagramFlow,
}

/// Pause between two requests of one thread.
const PAUSE: Duration = Duration::from_millis(1);
/// How many errors a report keeps as text.
const KEPT_ERRORS: usize = 8;

/// What happened while a [`Load`] ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Requests answered.
    pub ok: u64,
    /// Requests not answered. Of kind [`LoadKind::KeepAlive`]: broken connections, and failures to open one.
    pub failed: u64,
    /// Answers by server.
    pub per_server: BTreeMap<String, u64>,
    /// How often a flow's ([`LoadKind::KeepAlive`], [`LoadKind::DatagramFlow`]) next answer came from another server.
    pub moved: u64,
    /// Answers in which the server saw another client address than the client has.
    pub translated: u64,
    /// The first errors.
    pub errors: Vec<String>,
}

/// Load under way; it stops when told to, or when dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<LoadReport>>>,
}

impl Load {
    /// Starts `threads` threads.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub fn start(client: &Client, vip: SocketAddr, kind: LoadKind, threads: usize) -> Result<Self> {
        let mut load = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..threads {
            let worker = Worker {
                client: client.clone(),
                vip,
                stop: Arc::clone(&load.stop),
                answered: Arc::clone(&load.answered),
                last: None,
                report: LoadReport::default(),
            };
            load.threads.push(client.ns().spawn(move || Ok(worker.run(kind)))?);
        }
        Ok(load)
    }

    /// Requests answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until `count` more requests have been answered.
    ///
    /// # Errors
    ///
    /// When that takes longer than `limit`.
    pub fn wait_for(&self, count: u64, limit: Duration) -> Result<()> {
        let (start, goal) = (Instant::now(), self.answered() + count);
        while self.answered() < goal {
            anyhow::ensure!(
                start.elapsed() < limit,
                "{} of {count} answers in {limit:?}",
                count - goal.saturating_sub(self.answered())
            );
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Stops and accounts.
    ///
    /// # Errors
    ///
    /// When a thread could not enter the namespace or panicked.
    pub fn stop(mut self) -> Result<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = LoadReport::default();
        for thread in self.threads.drain(..) {
            let report = thread.join().ok().context("a load thread panicked")??;
            sum.add(report);
        }
        Ok(sum)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl LoadReport {
    fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.moved += other.moved;
        self.translated += other.translated;
        for (server, count) in other.per_server {
            *self.per_server.entry(server).or_default() += count;
        }
        self.errors.extend(other.errors);
        self.errors.truncate(KEPT_ERRORS);
    }
}

struct Worker {
    client: Client,
    vip: SocketAddr,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    /// The server that last answered on this thread's flow.
    last: Option<String>,
    report: LoadReport,
}

impl Worker {
    fn run(mut self, kind: LoadKind) -> LoadReport {
        let (client, vip) = (self.client.clone(), self.vip);
        match kind {
            LoadKind::NewConnections => self.repeat(false, |_: &mut Option<()>| client.tcp_once(None, vip)),
            LoadKind::KeepAlive => self.repeat(true, |open| {
                let conn = match open {
                    Some(conn) => conn,
                    None => open.insert(client.connect_here(None, vip)?),
                };
                conn.get()
            }),
            LoadKind::NewDatagramFlows => self.repeat(false, |_: &mut Option<()>| {
                udp_exchange(&client.udp_socket(None, vip)?, b"load")
            }),
            LoadKind::DatagramFlow => {
                let mut sequence = 0_u64;
                self.repeat(true, |open| {
                    let socket = match open {
                        Some(socket) => socket,
                        None => open.insert(client.udp_socket(None, vip)?),
                    };
                    sequence += 1;
                    udp_exchange(socket, &sequence.to_be_bytes())
                });
            }
        }
        self.report
    }

    /// Makes requests until told to stop; a failure drops what is open.
    fn repeat<T>(&mut self, one_flow: bool, mut request: impl FnMut(&mut Option<T>) -> Result<Reply>) {
        let mut open = None;
        while !self.stop.load(Ordering::Relaxed) {
            match request(&mut open) {
                Ok(reply) => self.note(reply, one_flow),
                Err(error) => {
                    open = None;
                    self.last = None;
                    self.report.failed += 1;
                    if self.report.errors.len() < KEPT_ERRORS {
                        self.report.errors.push(format!("{error:#}"));
                    }
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn note(&mut self, reply: Reply, one_flow: bool) {
        self.report.ok += 1;
        self.answered.fetch_add(1, Ordering::Relaxed);
        if reply.client_seen != reply.local_addr {
            self.report.translated += 1;
        }
        if one_flow && self.last.as_ref().is_some_and(|last| *last != reply.server) {
            self.report.moved += 1;
        }
        self.last = Some(reply.server.clone());
        *self.report.per_server.entry(reply.server).or_default() += 1;
    }
}
