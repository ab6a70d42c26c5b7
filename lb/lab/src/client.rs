//! The client: real connections and datagrams to VIPs, and who answered them.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{Conn, Node, socket};

/// How many requests of one call are under way at the same time.
const PARALLEL: usize = 8;

/// Who answered, and what it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The server's name: `worker-1`.
    pub server: String,
    /// The client's address and port as the server saw them.
    pub client_seen: SocketAddr,
    /// The client's address and port as the client knows them; equal to `client_seen` when nothing translated them.
    pub local_addr: SocketAddr,
}

/// The client of a topology: a [`Node`] that makes requests.
#[derive(Clone, Debug)]
pub struct Client {
    node: Node,
    timeout: Duration,
}

impl Deref for Client {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Client {
    /// Makes requests from any node; the timeout is 2 s.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self {
            node,
            timeout: Duration::from_secs(2),
        }
    }

    /// The same client with another timeout for connect and for each read.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            node: self.node.clone(),
            timeout,
        }
    }

    /// `count` HTTP requests, each on a new connection, several in parallel.
    ///
    /// # Errors
    ///
    /// The first failure. See [`Client::try_http_get`].
    pub fn http_get(&self, vip: SocketAddr, count: usize) -> Result<Vec<Reply>> {
        self.try_http_get(vip, count)?.into_iter().collect()
    }

    /// As [`Client::http_get`], with the outcome of each request.
    ///
    /// # Errors
    ///
    /// Only when the namespace cannot be entered.
    pub fn try_http_get(&self, vip: SocketAddr, count: usize) -> Result<Vec<Result<Reply>>> {
        self.parallel(count, || self.tcp_once(None, vip))
    }

    /// One HTTP request from this source address (an address of the client) and port.
    ///
    /// # Errors
    ///
    /// When it fails or times out.
    pub fn http_get_from(&self, local: SocketAddr, vip: SocketAddr) -> Result<Reply> {
        self.ns().run(|| self.tcp_once(Some(local), vip))
    }

    /// `count` UDP requests, each from a new source port; the payload comes back or it is an error. Nothing is sent twice.
    ///
    /// # Errors
    ///
    /// The first failure. See [`Client::try_udp_get`].
    pub fn udp_get(&self, vip: SocketAddr, count: usize) -> Result<Vec<Reply>> {
        self.try_udp_get(vip, count)?.into_iter().collect()
    }

    /// As [`Client::udp_get`], with the outcome of each request.
    ///
    /// # Errors
    ///
    /// Only when the namespace cannot be entered.
    pub fn try_udp_get(&self, vip: SocketAddr, count: usize) -> Result<Vec<Result<Reply>>> {
        self.parallel(count, || self.udp_once(None, vip, 16))
    }

    /// One UDP request from this source address and port.
    ///
    /// # Errors
    ///
    /// When it fails or times out.
    pub fn udp_get_from(&self, local: SocketAddr, vip: SocketAddr) -> Result<Reply> {
        self.ns().run(|| self.udp_once(Some(local), vip, 16))
    }

    /// One UDP request with `length` bytes of payload; the reply is about 60 bytes longer.
    ///
    /// # Errors
    ///
    /// When it fails or times out.
    pub fn udp_echo(&self, vip: SocketAddr, length: usize) -> Result<Reply> {
        self.ns().run(|| self.udp_once(None, vip, length))
    }

    /// Opens a connection for many requests.
    ///
    /// # Errors
    ///
    /// When it fails or times out.
    pub fn connect(&self, vip: SocketAddr) -> Result<Conn> {
        self.ns().run(|| self.connect_here(None, vip))
    }

    /// As [`Client::connect`], from this source address and port.
    ///
    /// # Errors
    ///
    /// When it fails or times out.
    pub fn connect_from(&self, local: SocketAddr, vip: SocketAddr) -> Result<Conn> {
        self.ns().run(|| self.connect_here(Some(local), vip))
    }

    /// Receives `length` bytes on a new connection.
    ///
    /// # Errors
    ///
    /// When it breaks or stalls for longer than the timeout.
    pub fn download(&self, vip: SocketAddr, length: u64) -> Result<()> {
        self.connect(vip)?.download(length)
    }

    /// Sends `length` bytes on a new connection.
    ///
    /// # Errors
    ///
    /// When it breaks or stalls for longer than the timeout.
    pub fn upload(&self, vip: SocketAddr, length: u64) -> Result<Reply> {
        self.connect(vip)?.upload(length)
    }

    /// Pings an address from here: 3 packets of `size` payload bytes that must not be fragmented, all to be answered.
    ///
    /// # Errors
    ///
    /// When one is not.
    pub fn ping(&self, address: IpAddr, size: usize) -> Result<()> {
        let text = self
            .ns()
            .sh(&format!("ping -n -M do -c 3 -i 0.05 -w 3 -s {size} {address}"))?;
        ensure!(text.contains(" 0% packet loss"), "ping {address}: {text}");
        Ok(())
    }

    pub(crate) fn connect_here(&self, local: Option<SocketAddr>, vip: SocketAddr) -> Result<Conn> {
        Conn::new(socket::tcp_connect(local, vip, self.timeout)?, vip)
    }

    pub(crate) fn tcp_once(&self, local: Option<SocketAddr>, vip: SocketAddr) -> Result<Reply> {
        self.connect_here(local, vip)?.get_and_close()
    }

    pub(crate) fn udp_socket(&self, local: Option<SocketAddr>, vip: SocketAddr) -> Result<std::net::UdpSocket> {
        socket::udp_connect(local, vip, self.timeout)
    }

    fn udp_once(&self, local: Option<SocketAddr>, vip: SocketAddr, length: usize) -> Result<Reply> {
        udp_exchange(&self.udp_socket(local, vip)?, &vec![b'u'; length]).with_context(|| format!("UDP to {vip}"))
    }

    fn parallel(&self, count: usize, one: impl Fn() -> Result<Reply> + Sync) -> Result<Vec<Result<Reply>>> {
        let started = AtomicUsize::new(0);
        self.ns().run(|| {
            Ok(std::thread::scope(|scope| {
                let threads: Vec<_> = (0..PARALLEL.min(count))
                    .map(|_| {
                        scope.spawn(|| {
                            let mut outcomes = Vec::new();
                            while started.fetch_add(1, Ordering::Relaxed) < count {
                                outcomes.push(one());
                            }
                            outcomes
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect()
            }))
        })
    }
}

/// Sends `payload` and waits for the reply that carries it.
pub(crate) fn udp_exchange(socket: &std::net::UdpSocket, payload: &[u8]) -> Result<Reply> {
    socket.send(payload).context("send")?;
    let mut buffer = vec![0; payload.len() + 512];
    let length = socket.recv(&mut buffer).context("no reply")?;
    let reply = &buffer[..length];
    let Some(end) = reply.iter().position(|byte| *byte == b'\n') else {
        bail!("a reply without an end of line");
    };
    ensure!(&reply[end + 1..] == payload, "the payload did not come back");
    parse_reply(&reply[..end], socket.local_addr()?)
}

pub(crate) fn parse_reply(json: &[u8], local_addr: SocketAddr) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Identity {
        server: String,
        client: SocketAddr,
    }
    let identity: Identity = serde_json::from_slice(json).context("not an answer of a lab server")?;
    Ok(Reply {
        server: identity.server,
        client_seen: identity.client,
        local_addr,
    })
}
