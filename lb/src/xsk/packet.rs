//! AF_PACKET, for the few frames that are no packet's answer: whole frames out, past the kernel's routes and rules; the TCP segments
//! that come to this host's own probes, before the kernel's TCP sees them; and what neighbours say of addresses.
//!
//! Never a way for traffic: what is received is filtered by the kernel, and a queue that is full drops.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Bytes that are kept: the longest IPv4 header and the longest of TCP; a neighbour's word with some options.
const SNAPLEN: usize = 256;

/// Sends whole frames, from their destination MAC address on, out of any interface.
#[derive(Debug)]
pub struct FrameSender {
    fd: OwnedFd,
}

/// Receives TCP segments of one family that begin, refuse or reset something at a port from `first_port` on, addressed to this host.
#[derive(Debug)]
pub struct SegmentReceiver {
    fd: AsyncFd<OwnedFd>,
}

/// Receives ARP packets and neighbour solicitations and advertisements, without a tag, whoever they are for.
#[derive(Debug)]
pub struct NeighbourReceiver {
    arp: AsyncFd<OwnedFd>,
    discovery: AsyncFd<OwnedFd>,
}

/// Address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl FrameSender {
    /// Opens it, in the network namespace of the calling thread. It receives nothing.
    ///
    /// # Errors
    ///
    /// socket(2)'s: EPERM without CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let fd = socket(libc::SOCK_RAW, 0)?;
        Ok(Self { fd })
    }

    /// Sends a frame.
    ///
    /// # Errors
    ///
    /// sendto(2)'s: ENXIO or ENETDOWN where the interface is gone or down, ENOBUFS where its queue is full.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let mut to = address(0);
        to.sll_ifindex = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENXIO))?;
        // SAFETY: both pointers and lengths are those of live values.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl SegmentReceiver {
    /// Opens it, in the network namespace of the calling thread, for all its interfaces; on a tokio runtime, which it then belongs to.
    ///
    /// # Errors
    ///
    /// As [`FrameSender::open`].
    ///
    /// # Panics
    ///
    /// Without a runtime that has IO.
    pub fn open(family: Family, first_port: u16) -> io::Result<Self> {
        let ethertype = match family {
            Family::V4 => libc::ETH_P_IP,
            Family::V6 => libc::ETH_P_IPV6,
        };
        let fd = receiver(libc::SOCK_DGRAM, ethertype, &mut filter(segments(family, first_port)))?;
        Ok(Self { fd })
    }

    /// Waits for a segment, from its IP header on, cut short after its headers. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    ///
    /// recv(2)'s: ENETDOWN, once, when an interface goes down.
    pub async fn receive(&self) -> io::Result<Vec<u8>> {
        self.fd.async_io(Interest::READABLE, take).await
    }
}

impl NeighbourReceiver {
    /// Opens it, in the network namespace of the calling thread, for all its interfaces; on a tokio runtime, which it then belongs to.
    ///
    /// # Errors
    ///
    /// As [`FrameSender::open`].
    ///
    /// # Panics
    ///
    /// Without a runtime that has IO.
    pub fn open() -> io::Result<Self> {
        let open = |ethertype, steps| receiver(libc::SOCK_RAW, ethertype, &mut filter(steps));
        Ok(Self {
            arp: open(libc::ETH_P_ARP, Vec::new())?,
            discovery: open(libc::ETH_P_IPV6, discovery())?,
        })
    }

    /// Waits for a frame. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    ///
    /// As [`SegmentReceiver::receive`].
    pub async fn receive(&self) -> io::Result<Vec<u8>> {
        tokio::select! {
            frame = self.arp.async_io(Interest::READABLE, take) => frame,
            frame = self.discovery.async_io(Interest::READABLE, take) => frame,
        }
    }
}

/// A socket that receives what a filter lets through.
fn receiver(
    kind: libc::c_int,
    ethertype: libc::c_int,
    filter: &mut [libc::sock_filter],
) -> io::Result<AsyncFd<OwnedFd>> {
    // Nothing comes in before it is filtered.
    let fd = socket(kind, 0)?;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or(u16::MAX),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: pointer and length are those of a live sock_fprog, which points to a live filter; the kernel copies both.
    let attached = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    check(attached)?;
    let at = address(ethertype);
    // SAFETY: pointer and length are those of a live sockaddr_ll.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const at).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    check(bound)?;
    // SAFETY: the descriptor is owned by what is registered: it is closed when that is dropped, and not before.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
    Ok(fd)
}

/// What is there already.
fn take(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; SNAPLEN];
    // SAFETY: pointer and length are those of a live buffer.
    let length = unsafe {
        libc::recv(
            fd.as_raw_fd(),
            packet.as_mut_ptr().cast(),
            packet.len(),
            libc::MSG_DONTWAIT,
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    packet.truncate(length);
    Ok(packet)
}

fn socket(kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, protocol) };
    check(fd)?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn address(ethertype: libc::c_int) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (ethertype as u16).to_be(),
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_AFTER: u16 = 0x48;
const LOAD_BYTE_AFTER: u16 = 0x50;
const HEADER_LENGTH: u16 = 0xb1;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// A step of a filter: classic BPF (linux/filter.h).
#[derive(Clone, Copy)]
enum Step {
    Load(u16, u32),
    /// Go on if it holds, else drop.
    Must(u16, u32),
    /// Drop if it holds, else go on.
    MustNot(u16, u32),
}
use Step::{Load, Must, MustNot};

/// Over a packet from its IP header on: to this host, TCP, SYN or RST, the destination port.
fn segments(family: Family, first_port: u16) -> Vec<Step> {
    /// `SKF_AD_OFF + SKF_AD_PKTTYPE`.
    const PACKET_TYPE: u32 = 0xffff_f000 + 4;
    const PACKET_HOST: u32 = 0;
    const TCP: u32 = 6;
    const SYN_OR_RST: u32 = 0x06;
    let port = u32::from(first_port);
    let mut steps = vec![Load(LOAD_WORD, PACKET_TYPE), Must(IF_EQUAL, PACKET_HOST)];
    steps.extend(match family {
        Family::V4 => vec![
            Load(LOAD_BYTE, 9),
            Must(IF_EQUAL, TCP),
            // No later fragment.
            Load(LOAD_HALF, 6),
            MustNot(IF_ANY_BIT, 0x1fff),
            Load(HEADER_LENGTH, 0),
            Load(LOAD_BYTE_AFTER, 13),
            Must(IF_ANY_BIT, SYN_OR_RST),
            Load(LOAD_HALF_AFTER, 2),
            Must(IF_AT_LEAST, port),
        ],
        Family::V6 => vec![
            Load(LOAD_BYTE, 6),
            Must(IF_EQUAL, TCP),
            Load(LOAD_BYTE, 40 + 13),
            Must(IF_ANY_BIT, SYN_OR_RST),
            Load(LOAD_HALF, 40 + 2),
            Must(IF_AT_LEAST, port),
        ],
    });
    steps
}

/// Over an IPv6 packet from its MAC addresses on: ICMPv6, a neighbour solicitation or advertisement.
fn discovery() -> Vec<Step> {
    const ICMPV6: u32 = 58;
    const SOLICITATION: u32 = 135;
    const ADVERTISEMENT: u32 = 136;
    vec![
        Load(LOAD_BYTE, 14 + 6),
        Must(IF_EQUAL, ICMPV6),
        Load(LOAD_BYTE, 14 + 40),
        Must(IF_AT_LEAST, SOLICITATION),
        MustNot(IF_AT_LEAST, ADVERTISEMENT + 1),
    ]
}

fn filter(steps: Vec<Step>) -> Vec<libc::sock_filter> {
    let count = steps.len();
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter: Vec<_> = steps
        .into_iter()
        .enumerate()
        .map(|(at, step)| {
            // The drop stands behind the last step and the return.
            let to_drop = u8::try_from(count - at).unwrap_or(u8::MAX);
            match step {
                Load(code, k) => instruction(code, 0, 0, k),
                Must(code, k) => instruction(code, 0, to_drop, k),
                MustNot(code, k) => instruction(code, to_drop, 0, k),
            }
        })
        .collect();
    filter.push(instruction(RETURN, 0, 0, SNAPLEN as u32));
    filter.push(instruction(RETURN, 0, 0, 0));
    filter
}
