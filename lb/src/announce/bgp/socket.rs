//! Connections and listeners with what a peer asks for: password, TTL, source address.
//!
//! Never logs a password, and keeps none: a file is read anew for each connection, so that a new one needs no reload.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
};

use lb_core::{
    bgp::{LocalAddresses, TransportError},
    config::{BgpPeer, Password, Reach},
};
use nix::ifaddrs::getifaddrs;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::datapath::{MAX_TCP_MD5_KEY_BYTES, set_least_ttl, set_tcp_md5, set_ttl};

/// Connections that wait to be accepted: peers connect once in seconds.
const BACKLOG: u32 = 64;

/// Connects to a peer.
pub(super) async fn connect(peer: &BgpPeer) -> Result<TcpStream, TransportError> {
    let socket = if peer.address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
    .map_err(transport)?;
    prepare(&socket, peer)?;
    if let Some(source) = peer.source {
        socket
            .bind(SocketAddr::new(source, 0))
            .map_err(|_| TransportError::Source)?;
    }
    socket
        .connect(SocketAddr::new(peer.address, peer.port))
        .await
        .map_err(transport)
}

/// Password and TTL, before the first packet.
fn prepare(socket: impl AsFd + Copy, peer: &BgpPeer) -> Result<(), TransportError> {
    if let Some(password) = &peer.password {
        let key = key(password).map_err(|_| TransportError::Password)?;
        set_tcp_md5(socket, peer.address, &key).map_err(transport)?;
    }
    secure(socket, peer).map_err(transport)
}

/// TTL, of a connection whoever made it.
pub(super) fn secure(socket: impl AsFd + Copy, peer: &BgpPeer) -> io::Result<()> {
    let is_v6 = peer.address.is_ipv6();
    match peer.reach {
        Reach::Hops(hops) => set_ttl(socket, is_v6, hops),
        Reach::Secured(hops) => {
            set_ttl(socket, is_v6, u8::MAX)?;
            // One hop away it arrives as it was sent.
            set_least_ttl(socket, is_v6, u8::MAX - (hops - 1))
        }
    }
}

/// What segments are signed with.
fn key(password: &Password) -> io::Result<Vec<u8>> {
    let bytes = match password {
        Password::File(path) => std::fs::read(path)?,
        Password::Given(bytes) => bytes.to_vec(),
        Password::Missing => return Err(io::ErrorKind::NotFound.into()),
    };
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line.len() > MAX_TCP_MD5_KEY_BYTES || line.contains(&b'\n') {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(line.to_vec())
}

/// Listens on all addresses of a family.
pub(super) fn listen(is_v6: bool, port: u16) -> io::Result<TcpListener> {
    let (socket, address): (_, IpAddr) = if is_v6 {
        (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into())
    } else {
        (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into())
    };
    if is_v6 {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true)?;
    }
    socket.set_reuseaddr(true)?;
    // An answer to a peer that asks for RFC 5082; connections get the TTL of their peers.
    set_ttl(&socket, is_v6, u8::MAX)?;
    socket.bind(SocketAddr::new(address, port))?;
    socket.listen(BACKLOG)
}

/// Lets a peer connect: with its password, if it has one.
///
/// # Errors
///
/// When the password cannot be read or set: the peer cannot connect then.
pub(super) fn admit(listener: &TcpListener, peer: &BgpPeer) -> io::Result<()> {
    match &peer.password {
        Some(password) => set_tcp_md5(listener, peer.address, &key(password)?),
        None => {
            // There may be none to take away.
            let _ = set_tcp_md5(listener, peer.address, &[]);
            Ok(())
        }
    }
}

/// This node's addresses on a connection: its own, and one of the other family on the same interface.
pub(super) fn local_addresses(local: IpAddr) -> LocalAddresses {
    let local = local.to_canonical();
    let mut addresses = LocalAddresses::default();
    let all: Vec<(String, IpAddr)> = getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
            Some((entry.interface_name, ip))
        })
        .collect();
    let interface = all.iter().find(|(_, ip)| *ip == local).map(|(name, _)| name);
    for (name, ip) in &all {
        if Some(name) == interface {
            match ip {
                IpAddr::V4(ip) => addresses.v4 = addresses.v4.or(Some(*ip)),
                IpAddr::V6(ip) if !ip.is_unicast_link_local() => addresses.v6 = addresses.v6.or(Some(*ip)),
                IpAddr::V6(_) => {}
            }
        }
    }
    match local {
        IpAddr::V4(ip) => addresses.v4 = Some(ip),
        IpAddr::V6(ip) if !ip.is_unicast_link_local() => addresses.v6 = Some(ip),
        IpAddr::V6(_) => {}
    }
    addresses
}

/// This node's first IPv4 address that is not its loopback's: its name in BGP where it is given none.
pub(super) fn first_v4() -> Option<Ipv4Addr> {
    let v4 = getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.address?.as_sockaddr_in().map(|v4| v4.ip()));
    let mut v4 = v4.filter(|ip| !ip.is_loopback());
    v4.next()
}

/// The kernel's word in ours.
pub(super) fn transport(error: io::Error) -> TransportError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => TransportError::Refused,
        io::ErrorKind::TimedOut => TransportError::NoAnswer,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => TransportError::Unreachable,
        io::ErrorKind::AddrNotAvailable => TransportError::Source,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            TransportError::Broken
        }
        _ => TransportError::Other {
            errno: error.raw_os_error().unwrap_or_default(),
        },
    }
}
