//! Client sockets with a chosen source address or port and a time limit; std has no such connect.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt},
    time::TimeVal,
};

/// Connects from `local` (or from wherever the kernel likes), in the calling thread's namespace.
pub(crate) fn tcp_connect(local: Option<SocketAddr>, to: SocketAddr, timeout: Duration) -> Result<TcpStream> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("socket")?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).context("SO_REUSEADDR")?;
    // On Linux this bounds connect too, which then ends with EINPROGRESS.
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::from(libc_timeval(timeout))).context("SO_SNDTIMEO")?;
    if let Some(local) = local {
        bind(fd.as_raw_fd(), &SockaddrStorage::from(local)).with_context(|| format!("bind {local}"))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => {}
        Err(nix::Error::EINPROGRESS) => {
            return Err(std::io::Error::from(ErrorKind::TimedOut)).with_context(|| format!("connect to {to}"));
        }
        Err(error) => return Err(error).with_context(|| format!("connect to {to}")),
    }
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connected UDP socket in the calling thread's namespace.
pub(crate) fn udp_connect(local: Option<SocketAddr>, to: SocketAddr, timeout: Duration) -> Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let local = local.unwrap_or(SocketAddr::new(any, 0));
    let socket = UdpSocket::bind(local).with_context(|| format!("bind {local}"))?;
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    socket.set_read_timeout(Some(timeout))?;
    Ok(socket)
}

fn libc_timeval(duration: Duration) -> libc::timeval {
    libc::timeval {
        tv_sec: duration.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_usec: duration.subsec_micros().into(),
    }
}
