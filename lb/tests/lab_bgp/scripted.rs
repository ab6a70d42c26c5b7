//! A peer that keeps to nothing: over plain TCP, byte by byte as a test says.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lab::{Topology, require_root};
use nix::sys::signal::Signal;

use super::{
    lab_support::{Daemon, PATIENCE, eventually},
    site::{ROUTER_ASN, bgp, file, peer, peer_view, router_v4, up},
};

struct Scripted {
    topology: Topology,
    daemon: Daemon,
    listener: TcpListener,
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).expect("a short body").to_be_bytes();
    [&[0xff; 16][..], &length, &[kind], body].concat()
}

/// IPv4, four octets of ASN, route refresh.
fn open(hold_s: u8) -> Vec<u8> {
    let [a, b, c, d] = ROUTER_ASN.to_be_bytes();
    let capabilities = [1, 4, 0, 1, 0, 1, 65, 4, a, b, c, d, 2, 0];
    let head = [4, 0x5b, 0xa0, 0, hold_s, 10, 9, 9, 9, 16, 2, 14];
    message(1, &[&head[..], &capabilities].concat())
}

/// The next message's kind and body.
fn next(stream: &mut TcpStream) -> Result<(u8, Vec<u8>)> {
    let mut header = [0; 19];
    stream.read_exact(&mut header)?;
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let mut body = vec![0; length.checked_sub(19).context("a length")?];
    stream.read_exact(&mut body)?;
    Ok((header[18], body))
}

/// The next message of a kind.
fn next_of(stream: &mut TcpStream, kind: u8) -> Result<Vec<u8>> {
    loop {
        let (found, body) = next(stream)?;
        if found == kind {
            return Ok(body);
        }
    }
}

impl Scripted {
    fn new() -> Result<Self> {
        Self::with("", |_| Ok(()))
    }

    /// As [`Self::new`], with more keys of the peer, after this was done to the bench.
    fn with(more: &str, prepare: impl FnOnce(&Topology) -> Result<()>) -> Result<Self> {
        let topology = Topology::builder().workers(1).build()?;
        prepare(&topology)?;
        let lb = topology.lb(0);
        let at = SocketAddr::new(router_v4(lb), 179);
        let listener = topology.router().ns().run(|| Ok(TcpListener::bind(at)?))?;
        let daemon = Daemon::lb(
            lb,
            &file(
                &topology,
                lb,
                &bgp("  listen_port: 179\n", &[peer("tor", at.ip(), more)]),
            ),
        )?;
        Ok(Self {
            topology,
            daemon,
            listener,
        })
    }

    fn accept(&self) -> Result<TcpStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// A session that is up.
    fn session(&self) -> Result<TcpStream> {
        let mut stream = self.accept()?;
        stream.write_all(&open(9))?;
        next_of(&mut stream, 1)?;
        stream.write_all(&message(4, &[]))?;
        up(&self.daemon, "tor", 2)?;
        Ok(stream)
    }

    /// Waits until the last error is of this kind.
    fn fails_with(&self, kind: &str) -> Result<String> {
        let mut text = String::new();
        eventually("the error that is meant", || {
            let error = peer_view(&self.daemon, "tor")?.last_error;
            text = error.as_ref().map_or_else(String::new, |error| error.error.clone());
            Ok(error.is_some_and(|error| error.kind == kind))
        })
        .with_context(|| format!("{kind}: {text}"))?;
        Ok(text)
    }
}

#[test]
fn garbage_stalls_and_half_closed_connections_are_survived() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Scripted::new()?;
    // Garbage, before and after.
    let mut stream = site.accept()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let told = next_of(&mut stream, 3)?;
    assert_eq!(told[..2], [1, 1]);
    let said = site.fails_with("protocol")?;
    assert!(said.contains("Connection Not Synchronized"), "{said}");
    let mut stream = site.session()?;
    stream.write_all(&message(2, &[0, 99, 0]))?;
    assert_eq!(next_of(&mut stream, 3)?[..2], [1, 2]);

    // Half-closed: there is nothing to wait for.
    let stream = site.session()?;
    stream.shutdown(Shutdown::Write)?;
    site.fails_with("closed")?;
    drop(stream);

    // A reset.
    let stream = site.session()?;
    socket_option_linger(&stream)?;
    drop(stream);
    site.fails_with("broken")?;

    // Silence: the hold time that it asked for ends it.
    let mut stream = site.session()?;
    let told = next_of(&mut stream, 3)?;
    assert_eq!(told[..2], [4, 0]);
    site.fails_with("hold_timer")?;

    // And after all of it a session, over a connection that the peer makes.
    let mut stream = site.session()?;
    let counted = peer_view(&site.daemon, "tor")?;
    assert!(counted.flaps >= 4, "{counted:?}");
    // A malformed UPDATE that can be passed over, and one of our routes asked for again.
    stream.write_all(&message(2, &[0, 0, 0, 4, 0x40, 1, 1, 9, 24, 203, 0, 113]))?;
    eventually("it is counted", || Ok(peer_view(&site.daemon, "tor")?.malformed == 1))?;
    stream.write_all(&message(5, &[0, 1, 0, 1]))?;
    let update = loop {
        let update = next_of(&mut stream, 2)?;
        if update.len() > 4 {
            break update;
        }
    };
    assert!(
        update.ends_with(&[32, 203, 0, 113, 1, 32, 203, 0, 113, 2]),
        "{update:?}"
    );
    assert!(peer_view(&site.daemon, "tor")?.up);
    Ok(())
}

/// Closing resets.
fn socket_option_linger(stream: &TcpStream) -> Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(nix::sys::socket::setsockopt(
        stream,
        nix::sys::socket::sockopt::Linger,
        &linger,
    )?)
}

#[test]
fn a_peer_that_connects_is_heard_and_a_stranger_is_not() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Scripted::new()?;
    let lb: IpAddr = site.topology.lb(0).addr_v4().into();
    let at = SocketAddr::new(lb, 179);
    // Somebody else, of whom nobody knows.
    let client = site.topology.client().ns();
    let mut found = None;
    eventually("the LB node listens", || {
        found = client.run(|| Ok(TcpStream::connect_timeout(&at, PATIENCE).ok()))?;
        Ok(found.is_some())
    })?;
    let mut stranger = found.context("a connection")?;
    stranger.set_read_timeout(Some(PATIENCE))?;
    let mut nothing = [0; 1];
    ensure!(
        matches!(stranger.read(&mut nothing), Ok(0) | Err(_)),
        "a stranger was spoken to"
    );
    // The peer connects while this node's own attempt waits for an OPEN: its identifier is lower, so the peer's connection goes when
    // both are open, unless this one is up already.
    let own = site.accept()?;
    let mut theirs = site
        .topology
        .router()
        .ns()
        .run(|| Ok(TcpStream::connect_timeout(&at, PATIENCE)?))?;
    theirs.set_read_timeout(Some(PATIENCE))?;
    theirs.write_all(&open(90))?;
    next_of(&mut theirs, 1)?;
    theirs.write_all(&message(4, &[]))?;
    up(&site.daemon, "tor", 2)?;
    // Of two connections one stays.
    let mut own = own;
    let told = next_of(&mut own, 3)?;
    assert_eq!(told[..2], [6, 7], "Cease/Connection Collision Resolution");
    std::thread::sleep(Duration::from_millis(200));
    assert!(peer_view(&site.daemon, "tor")?.up);
    Ok(())
}

#[test]
fn a_source_address_and_a_least_ttl_are_kept_to() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let own: IpAddr = [10, 20, 1, 77].into();
    let more = format!(", source: {own}, ttl_security: true");
    let site = Scripted::with(&more, |topology| {
        let lb = topology.lb(0);
        let (link, via) = (format!("{own}/32"), lb.addr_v4().to_string());
        lb.ns().ip(&["address", "add", &link, "dev", "eth0"])?;
        // The router must know the way to it.
        topology
            .router()
            .ns()
            .ip(&["route", "replace", &link, "via", &via])
            .map(drop)
    })?;
    // What the kernel sends has a TTL of 64, which says that it may have come over 191 hops.
    site.fails_with("no_answer")?;
    let ours = u8::MAX;
    lb::datapath::set_ttl(&site.listener, false, ours)?;
    let mut stream = site.accept()?;
    assert_eq!(stream.peer_addr()?.ip(), own);
    lb::datapath::set_ttl(&stream, false, ours)?;
    stream.write_all(&open(90))?;
    next_of(&mut stream, 1)?;
    stream.write_all(&message(4, &[]))?;
    up(&site.daemon, "tor", 2)
}

#[test]
fn a_daemon_that_stops_is_the_last_choice_before_it_says_goodbye() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut site = Scripted::new()?;
    let mut stream = site.session()?;
    site.daemon.signal(Signal::SIGTERM)?;
    // GRACEFUL_SHUTDOWN, with both addresses.
    let community = [0xc0, 8, 4, 0xff, 0xff, 0, 0];
    loop {
        let (kind, body) = next(&mut stream)?;
        ensure!(kind != 3, "a goodbye before the community");
        if kind == 2 && body.windows(community.len()).any(|window| window == community) {
            assert!(body.ends_with(&[32, 203, 0, 113, 1, 32, 203, 0, 113, 2]), "{body:?}");
            break;
        }
    }
    let told = next_of(&mut stream, 3)?;
    assert_eq!(told[..2], [6, 2], "Cease/Administrative Shutdown");
    assert_eq!(&told[3..], b"vipline stops");
    assert_eq!(stream.read(&mut [0])?, 0, "closed, not reset");
    site.daemon.wait()?;
    assert!(site.daemon.detach()?.status.success());
    Ok(())
}
