//! A way to an API server that can fall silent: connections stand, new ones are taken, and nothing comes or goes.
//!
//! What a firewall that forgot its connections, a machine that lost its power or a load balancer in front of dead servers looks like.
//! A closed endpoint is another thing: it resets.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use apiserver::Endpoint;
use lab::Node;

/// How often a pump looks whether it is over.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Default)]
struct State {
    silent: AtomicBool,
    /// Connections with a lower number are dead for good.
    dead_below: AtomicU64,
    made: AtomicU64,
    over: AtomicBool,
}

impl State {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn is_dead(&self, number: u64) -> bool {
        self.silent.load(Ordering::Relaxed) || number < self.dead_below.load(Ordering::Relaxed)
    }

    /// What was said before nobody hears any more.
    fn bury(&self) {
        self.dead_below
            .store(self.made.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Stands before an endpoint.
pub(crate) struct Silence {
    state: Arc<State>,
    address: SocketAddr,
    endpoint: Endpoint,
}

impl Silence {
    /// Before an endpoint of this node; it speaks.
    pub(crate) fn before(endpoint: &Endpoint, node: &Node) -> Result<Self> {
        let state = Arc::new(State::default());
        let listener = node.ns().run(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (shared, to) = (Arc::clone(&state), endpoint.address());
        node.ns().spawn(move || {
            while !shared.is_over() {
                match listener.accept() {
                    Ok((stream, _)) => carry(&shared, stream, to)?,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(2)),
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        })?;
        Ok(Self {
            state,
            address,
            endpoint: endpoint.clone(),
        })
    }

    /// A kubeconfig for it.
    pub(crate) fn kubeconfig(&self) -> String {
        let through = format!("http://{}", self.address);
        self.endpoint.kubeconfig(None).replace(&self.endpoint.url(), &through)
    }

    /// From now on nothing comes through, and nothing ends.
    pub(crate) fn fall(&self) {
        self.state.silent.store(true, Ordering::Relaxed);
    }

    /// Connections that are made from now on are carried; those that stand stay dead.
    pub(crate) fn end(&self) {
        self.state.bury();
        self.state.silent.store(false, Ordering::Relaxed);
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
    }
}

fn carry(state: &Arc<State>, client: TcpStream, to: SocketAddr) -> Result<()> {
    let number = state.made.fetch_add(1, Ordering::Relaxed);
    let server = TcpStream::connect(to)?;
    for (from, into) in [
        (client.try_clone()?, server.try_clone()?),
        (server.try_clone()?, client.try_clone()?),
    ] {
        from.set_nonblocking(false)?;
        from.set_read_timeout(Some(LOOK))?;
        let state = Arc::clone(state);
        thread::spawn(move || pump(&state, number, from, into));
    }
    Ok(())
}

fn pump(state: &State, number: u64, mut from: TcpStream, mut into: TcpStream) {
    let mut chunk = vec![0; 64 << 10];
    while !state.is_over() {
        match from.read(&mut chunk) {
            // An end is not told, either.
            _ if state.is_dead(number) => thread::sleep(LOOK),
            Ok(0) => break,
            Ok(length) if into.write_all(&chunk[..length]).is_ok() => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Ok(_) | Err(_) => break,
        }
    }
    // Whoever is at the other end may be gone already.
    let _closed = into.shutdown(Shutdown::Both);
}
