//! A real TCP (HTTP/1.1) and UDP server on one port, for both families, on threads inside a namespace.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, BufWriter, Write as _},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Netns, http};

/// Serves until dropped.
///
/// TCP: `GET /` answers `{"server":"worker-1","client":"ip:port"}`, `GET /bytes/N` answers N bytes, `POST` or `PUT` reads the body
/// and answers as `GET /`; connections stay open for more requests. UDP: answers each datagram with the same JSON line, a newline,
/// and the datagram's payload.
#[derive(Debug)]
pub struct Server {
    name: String,
    port: u16,
    connections: Connections,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Open connections, so that a stop can end them.
type Connections = Arc<Mutex<BTreeMap<u64, TcpStream>>>;

impl Server {
    /// Starts a server in `ns` that calls itself `name`; port 0 lets the kernel choose. It listens when this returns.
    ///
    /// # Errors
    ///
    /// When a port is taken.
    pub fn start(ns: &Netns, name: &str, port: u16) -> Result<Self> {
        let (tcp, udp) = ns.run(|| {
            let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listen")?;
            let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, tcp.local_addr()?.port())).context("bind")?;
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            Ok((tcp, udp))
        })?;
        let port = tcp.local_addr()?.port();
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let connections = Connections::default();
        let service = Service {
            name: name.into(),
            tcp,
            udp,
            stopped,
            connections: Arc::clone(&connections),
        };
        Ok(Self {
            name: name.to_owned(),
            port,
            connections,
            stop: Some(stop),
            thread: Some(ns.spawn(move || service.run())?),
        })
    }

    /// What it calls itself in replies.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port it listens on, TCP and UDP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many TCP connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.connections).len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        for stream in lock(&self.connections).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(connections: &Connections) -> std::sync::MutexGuard<'_, BTreeMap<u64, TcpStream>> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Service {
    name: Arc<str>,
    tcp: TcpListener,
    udp: UdpSocket,
    /// Readable (end of file) once the owner has closed its end.
    stopped: OwnedFd,
    connections: Connections,
}

impl Service {
    fn run(self) -> Result<()> {
        let mut next_id = 0;
        loop {
            let mut waiting = [
                PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.tcp.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.udp.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut waiting, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if waiting[0].any() == Some(true) {
                // Connections accepted since the owner looked.
                for stream in lock(&self.connections).values() {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                return Ok(());
            }
            self.echo_datagrams();
            while let Ok((stream, client)) = self.tcp.accept() {
                next_id += 1;
                self.serve(next_id, stream, client);
            }
        }
    }

    fn echo_datagrams(&self) {
        let mut buffer = [0; 65536];
        while let Ok((length, client)) = self.udp.recv_from(&mut buffer) {
            let mut reply = identity(&self.name, client).into_bytes();
            reply.push(b'\n');
            reply.extend_from_slice(&buffer[..length]);
            let _ = self.udp.send_to(&reply, client);
        }
    }

    fn serve(&self, id: u64, stream: TcpStream, client: SocketAddr) {
        let Ok(registered) = stream.try_clone() else {
            return;
        };
        lock(&self.connections).insert(id, registered);
        let (name, connections) = (Arc::clone(&self.name), Arc::clone(&self.connections));
        std::thread::spawn(move || {
            // The client sees a broken connection by itself.
            let _ = converse(&stream, &identity(&name, client));
            lock(&connections).remove(&id);
        });
    }
}

fn identity(name: &str, client: SocketAddr) -> String {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    serde_json::json!({ "server": name, "client": client }).to_string()
}

fn converse(stream: &TcpStream, identity: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    let mut output = BufWriter::with_capacity(65536, stream);
    while let Some(request) = http::read_head(&mut input)? {
        http::skip(&mut input, request.content_length)?;
        let path = request.first_line.split(' ').nth(1).unwrap_or("/");
        let bulk: Option<u64> = path.strip_prefix("/bytes/").and_then(|count| count.parse().ok());
        let length = bulk.unwrap_or(identity.len() as u64);
        let connection = if request.close { "close" } else { "keep-alive" };
        write!(
            output,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
        )?;
        match bulk {
            Some(length) => http::fill(&mut output, length)?,
            None => output.write_all(identity.as_bytes())?,
        }
        output.flush()?;
        if request.close {
            break;
        }
    }
    // The registered clone keeps the socket open: say goodbye explicitly.
    stream.shutdown(Shutdown::Both)
}
