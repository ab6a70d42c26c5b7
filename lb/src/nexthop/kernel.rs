//! Two netlink sockets in the network namespace of the thread that opens them: one is told of changes, one asks. Never the same
//! one for both, so that a storm of changes cannot push out an answer.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use lb_core::nexthop::{Event, RouteAnswer, RouteRefusal, Snapshot};
use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
            socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::{
    decode,
    wire::{Message, Request, messages},
};

/// Receive buffer of the socket that is told of changes: about 8,000 messages before some are lost, and then all is read anew.
const EVENT_BUFFER: usize = 8 << 20;
/// Receive buffer of the socket that asks, and room for one answer. The kernel's datagrams have at most 32 KiB.
const ANSWER_BUFFER: usize = 1 << 20;
const DATAGRAM: usize = 64 << 10;
/// The kernel answers while it is asked, unless another process holds its routing lock.
const ANSWER_TIMEOUT_S: i64 = 5;
/// Dumps that were interrupted by a change are made again, this many times in all; then the last one must do.
const DUMP_ATTEMPTS: usize = 3;

/// Multicast groups by number (`RTNLGRP_*`).
const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A system call on a netlink socket failed.
    #[error("netlink: {call}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The kernel refused a dump.
    #[error("netlink: dump of {what}: {source}")]
    Dump {
        /// What was to be read.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

fn call(call: &'static str) -> impl FnOnce(Errno) -> NetlinkError {
    move |errno| NetlinkError::Call {
        call,
        source: errno.into(),
    }
}

/// A netlink socket that is told of changes; never blocks.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Changes {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        let fd = open(SockFlag::SOCK_NONBLOCK, groups, EVENT_BUFFER)?;
        Ok(Self {
            fd,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// Receives one datagram of changes. `EAGAIN`: there is none. `ENOBUFS`: some were lost.
    pub(super) fn receive(&mut self, each: impl FnMut(Event)) -> Result<(), Errno> {
        let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
        messages(&self.buffer[..length])
            .filter_map(decode::event)
            .for_each(each);
        Ok(())
    }
}

/// A netlink socket to ask with; blocks until the answer is there.
#[derive(Debug)]
pub(super) struct Kernel {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Kernel {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let fd = open(SockFlag::empty(), 0, ANSWER_BUFFER)?;
        let timeout = TimeVal::seconds(ANSWER_TIMEOUT_S);
        setsockopt(&fd, sockopt::ReceiveTimeout, &timeout).map_err(call("setsockopt(SO_RCVTIMEO)"))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// Reads all links, addresses and neighbours.
    pub(super) fn snapshot(&mut self) -> Result<Snapshot, NetlinkError> {
        let mut snapshot = Snapshot::default();
        self.dump("links", Request::dump_links, &mut snapshot)?;
        self.dump("addresses", Request::dump_addresses, &mut snapshot)?;
        self.dump("neighbours", Request::dump_neighbours, &mut snapshot)?;
        Ok(snapshot)
    }

    /// Looks routes up; one answer for each, in order.
    pub(super) fn routes(&mut self, lookups: &[(IpAddr, Option<IpAddr>)]) -> Result<Vec<RouteAnswer>, NetlinkError> {
        let first = self.reserve(lookups.len());
        let mut request = Request::default();
        for (sequence, (destination, source)) in (first..).zip(lookups) {
            request.add_route_lookup(sequence, *destination, *source);
        }
        let mut answers = vec![RouteAnswer::Refused(RouteRefusal::Failed(0)); lookups.len()];
        self.ask(&request, first, lookups.len(), |at, message| {
            if let Some(answer) = decode::answer(message) {
                answers[at] = answer;
            }
        })?;
        Ok(answers)
    }

    /// Makes neighbour entries managed: interface, address, and whether to leave alone what is there. What fails comes again.
    pub(super) fn keep(&mut self, neighbours: &[(u32, IpAddr, bool)]) -> Result<(), NetlinkError> {
        let first = self.reserve(neighbours.len());
        let mut request = Request::default();
        for (sequence, (ifindex, address, create)) in (first..).zip(neighbours) {
            request.add_keep(sequence, *ifindex, *address, *create);
        }
        self.ask(&request, first, neighbours.len(), |at, message| {
            if let Some(errno) = decode::errno(message).filter(|errno| *errno != 0 && *errno != libc::EEXIST) {
                let (ifindex, address, _) = neighbours[at];
                tracing::debug!(ifindex, %address, error = %Errno::from_raw(errno), "cannot keep neighbour");
            }
        })
    }

    /// Lets neighbour entries age again; those without a MAC address are deleted.
    pub(super) fn release(&mut self, neighbours: &[(u32, IpAddr)]) -> Result<(), NetlinkError> {
        let first = self.reserve(neighbours.len());
        let mut request = Request::default();
        for (sequence, (ifindex, address)) in (first..).zip(neighbours) {
            request.add_release(sequence, *ifindex, *address);
        }
        let mut unresolved = Vec::new();
        self.ask(&request, first, neighbours.len(), |at, message| {
            if decode::errno(message) == Some(libc::EINVAL) {
                unresolved.push(neighbours[at]);
            }
        })?;
        let first = self.reserve(unresolved.len());
        let mut request = Request::default();
        for (sequence, (ifindex, address)) in (first..).zip(&unresolved) {
            request.add_delete(sequence, *ifindex, *address);
        }
        self.ask(&request, first, unresolved.len(), |_, _| {})
    }

    /// Sends requests numbered from `first` and hands each answer over with its position, until all have come.
    fn ask(
        &mut self,
        request: &Request,
        first: u32,
        count: usize,
        mut each: impl FnMut(usize, Message<'_>),
    ) -> Result<(), NetlinkError> {
        if count == 0 {
            return Ok(());
        }
        send(self.fd.as_raw_fd(), request.bytes(), MsgFlags::empty()).map_err(call("send"))?;
        let mut open = count;
        while open > 0 {
            let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()).map_err(call("recv"))?;
            for message in messages(&self.buffer[..length]) {
                // Answers that came too late for an earlier request have other numbers.
                let at = message.sequence.wrapping_sub(first) as usize;
                if at < count {
                    each(at, message);
                    open = open.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    fn dump(
        &mut self,
        what: &'static str,
        request: impl Fn(u32) -> Request,
        snapshot: &mut Snapshot,
    ) -> Result<(), NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.reserve(1);
            send(self.fd.as_raw_fd(), request(sequence).bytes(), MsgFlags::empty()).map_err(call("send"))?;
            if self.read_dump(what, sequence, snapshot)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads one dump to its end; whether it was made in one piece. A second try replaces what a first one read: later entries
    /// with the same key count.
    fn read_dump(&mut self, what: &'static str, sequence: u32, snapshot: &mut Snapshot) -> Result<bool, NetlinkError> {
        const INTERRUPTED: u16 = libc::NLM_F_DUMP_INTR as u16;
        const DONE: u16 = libc::NLMSG_DONE as u16;
        let mut whole = true;
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()).map_err(call("recv"))?;
            for message in messages(&self.buffer[..length]).filter(|message| message.sequence == sequence) {
                whole &= message.flags & INTERRUPTED == 0;
                if let Some(errno) = decode::errno(message) {
                    return Err(NetlinkError::Dump {
                        what,
                        source: io::Error::from_raw_os_error(errno),
                    });
                }
                if message.kind == DONE {
                    return Ok(whole);
                }
                decode::collect(message, snapshot);
            }
        }
    }

    /// Takes sequence numbers for this many requests; never 0, the number of notifications.
    fn reserve(&mut self, count: usize) -> u32 {
        let count = count as u32 + 1;
        if self.sequence > u32::MAX - count - 1 {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        self.sequence += count;
        first
    }
}

fn open(flags: SockFlag, groups: u32, receive_buffer: usize) -> Result<OwnedFd, NetlinkError> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute);
    let fd = fd.map_err(call("socket(AF_NETLINK)"))?;
    // Without CAP_NET_ADMIN the size is cut to net.core.rmem_max.
    if setsockopt(&fd, sockopt::RcvBufForce, &receive_buffer).is_err() {
        setsockopt(&fd, sockopt::RcvBuf, &receive_buffer).map_err(call("setsockopt(SO_RCVBUF)"))?;
    }
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(call("bind"))?;
    Ok(fd)
}
