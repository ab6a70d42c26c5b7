//! UDP sockets that tell and keep the TTL. Never blocks.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use lb_core::bfd::{Arrival, PACKET_BYTES, Peer, SENT_TTL, SOURCE_PORTS, Wanted};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
        SockaddrLike, bind, recvmsg, setsockopt, socket, sockopt,
    },
};

use super::is_link_local;

/// Network control (RFC 4594 §3.1): what keeps a network up is not to be dropped first.
const CLASS_SELECTOR_6: i32 = 0xc0;
/// Longer than any packet: what is longer still is cut, and its length no longer fits.
pub(super) const MAX_DATAGRAM: usize = 64;

/// Where the packets of one family come in for one port, whoever sends them.
#[derive(Debug)]
pub(super) struct Receiver {
    socket: OwnedFd,
    is_v4: bool,
    port: u16,
}

impl Receiver {
    /// Open.
    ///
    /// # Errors
    ///
    /// Another BFD daemon on this node has the port, mainly.
    pub(super) fn open(is_v4: bool, port: u16) -> io::Result<Self> {
        let family = if is_v4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Datagram, flags, SockProtocol::Udp)?;
        if is_v4 {
            setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
            bind(
                socket.as_raw_fd(),
                &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)),
            )?;
        } else {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
            let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
            bind(socket.as_raw_fd(), &SockaddrIn6::from(any))?;
        }
        Ok(Self { socket, is_v4, port })
    }

    /// The next datagram; `None`: no more for now.
    ///
    /// # Errors
    ///
    /// recvmsg(2)'s.
    pub(super) fn receive(&self, buffer: &mut [u8; MAX_DATAGRAM]) -> io::Result<Option<(Arrival, usize)>> {
        if self.is_v4 {
            let from = |address: &SockaddrIn| (IpAddr::V4(address.ip()), 0);
            self.receive_from(buffer, from)
        } else {
            let from = |address: &SockaddrIn6| (IpAddr::V6(address.ip()), address.scope_id());
            self.receive_from(buffer, from)
        }
    }

    fn receive_from<A: SockaddrLike>(
        &self,
        buffer: &mut [u8; MAX_DATAGRAM],
        from: impl Fn(&A) -> (IpAddr, u32),
    ) -> io::Result<Option<(Arrival, usize)>> {
        let mut control = nix::cmsg_space!(i32);
        let mut slices = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let message = match recvmsg::<A>(fd, &mut slices, Some(&mut control), MsgFlags::empty()) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let ttl = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => u8::try_from(ttl).ok(),
            _ => None,
        });
        let (address, scope_id) = message.address.as_ref().map_or((Ipv4Addr::UNSPECIFIED.into(), 0), from);
        let arrival = Arrival {
            peer: Peer {
                address,
                scope_id: if is_link_local(address) { scope_id } else { 0 },
            },
            ttl,
            port: self.port,
        };
        Ok(Some((arrival, message.bytes)))
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Where the packets of one session go out: always from the same port.
#[derive(Debug)]
pub(super) struct Sender {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Sender {
    /// Open, from a free port of [`SOURCE_PORTS`]; the search begins at `first`, wherever that is.
    ///
    /// # Errors
    ///
    /// The local address is not ours (yet), mainly.
    pub(super) fn open(wanted: &Wanted, first: u16) -> io::Result<Self> {
        let peer = wanted.peer;
        let any = || match peer.address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let local = wanted.local.unwrap_or_else(any);
        let socket = bind_one(local, peer.scope_id, first)?;
        socket.set_nonblocking(true)?;
        match peer.address {
            IpAddr::V4(_) => {
                setsockopt(&socket, sockopt::Ipv4Ttl, &SENT_TTL.into())?;
                setsockopt(&socket, sockopt::Ipv4Tos, &CLASS_SELECTOR_6)?;
            }
            IpAddr::V6(_) => {
                setsockopt(&socket, sockopt::Ipv6Ttl, &SENT_TTL.into())?;
                setsockopt(&socket, sockopt::Ipv6TClass, &CLASS_SELECTOR_6)?;
            }
        }
        Ok(Self {
            socket,
            to: address(peer.address, peer.scope_id, wanted.reach.port()),
        })
    }

    /// Sends a packet, or loses it: the next one follows soon.
    ///
    /// # Errors
    ///
    /// sendto(2)'s: no route, the interface is down.
    pub(super) fn send(&self, packet: &[u8; PACKET_BYTES]) -> io::Result<()> {
        self.socket.send_to(packet, self.to).map(drop)
    }
}

fn bind_one(local: IpAddr, scope_id: u32, first: u16) -> io::Result<UdpSocket> {
    let scope_id = if is_link_local(local) { scope_id } else { 0 };
    let count = SOURCE_PORTS.end() - SOURCE_PORTS.start();
    let mut result = Err(io::ErrorKind::AddrInUse.into());
    for offset in 0..=count {
        let port = SOURCE_PORTS.start() + (first.wrapping_add(offset) & count);
        result = UdpSocket::bind(address(local, scope_id, port));
        match &result {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Ok(_) | Err(_) => break,
        }
    }
    result
}

fn address(address: IpAddr, scope_id: u32, port: u16) -> SocketAddr {
    match address {
        IpAddr::V4(address) => SocketAddrV4::new(address, port).into(),
        IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, scope_id).into(),
    }
}
