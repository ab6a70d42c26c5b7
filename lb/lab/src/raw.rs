//! Raw Ethernet frames on an interface: sent and captured through AF_PACKET.

use std::{
    io::{Error, ErrorKind},
    mem::{size_of, zeroed},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd as _;

use crate::Netns;

/// Receive buffer: room for a burst while a test is not looking, 8 MiB.
const BUFFER_BYTES: libc::c_int = 8 << 20;

/// Injects and captures frames on one interface, of both directions.
///
/// It sees what leaves the interface and what comes in *after* XDP: what a program takes or sends with `XDP_TX` is seen at the
/// peer. Frames are as on the wire: a VLAN tag that the kernel took out of an incoming frame is put back.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
}

impl RawSocket {
    /// Opens `iface` in `ns`. Frames from now on are captured.
    ///
    /// # Errors
    ///
    /// Without CAP_NET_RAW, or when there is no such interface.
    pub fn open(ns: &Netns, iface: &str) -> Result<Self> {
        ns.run(|| {
            let index = nix::net::if_::if_nametoindex(iface).with_context(|| format!("no interface {iface}"))?;
            let all = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: socket(2) takes no pointers; protocol 0 captures nothing until bound.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
            check(fd).context("socket(AF_PACKET)")?;
            // SAFETY: `fd` is a fresh descriptor that nobody else owns.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            set(&fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1).context("PACKET_QDISC_BYPASS")?;
            set(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1).context("PACKET_AUXDATA")?;
            set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER_BYTES).context("SO_RCVBUFFORCE")?;
            // SAFETY: all zeroes is a valid sockaddr_ll.
            let mut address: libc::sockaddr_ll = unsafe { zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = i32::try_from(index)?;
            // SAFETY: the pointer and the length are those of a live sockaddr_ll.
            let bound = unsafe {
                libc::bind(
                    fd.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                )
            };
            check(bound).with_context(|| format!("bind to {iface}"))?;
            Ok(Self { fd })
        })
    }

    /// Sends a frame, from its destination address on, as it is: past tc (which would add the lab's VLAN tags) and the egress counters.
    ///
    /// # Errors
    ///
    /// send(2)'s: ENETDOWN, EMSGSIZE.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: pointer and length are those of a live slice.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(Error::last_os_error()).context("send a frame");
        }
        Ok(())
    }

    /// The next frame for which `wanted` holds; `None` when there is none within `timeout`. Others are dropped.
    ///
    /// # Errors
    ///
    /// poll(2)'s and recvmsg(2)'s.
    pub fn next(&self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + timeout;
        loop {
            while let Some(frame) = self.receive()? {
                if wanted(&frame) {
                    return Ok(Some(frame));
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let wait = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// All frames within `time` for which `wanted` holds.
    ///
    /// # Errors
    ///
    /// As [`RawSocket::next`].
    pub fn collect(&self, time: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + time;
        let mut frames = Vec::new();
        while let Some(frame) = self.next(end.saturating_duration_since(Instant::now()), &wanted)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// A frame that is there already.
    fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0_u8; 1 << 16];
        let mut control = [0_u64; 16];
        let mut part = libc::iovec {
            iov_base: frame.as_mut_ptr().cast(),
            iov_len: frame.len(),
        };
        // SAFETY: all zeroes is a valid msghdr.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the message points to live buffers with their lengths.
        let length = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let Ok(length) = usize::try_from(length) else {
            let error = Error::last_os_error();
            return match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(None),
                _ => Err(error).context("recvmsg"),
            };
        };
        frame.truncate(length);
        if let Some(tag) = stripped_tag(&message)
            && frame.len() >= 12
        {
            frame.splice(12..12, tag);
        }
        Ok(Some(frame))
    }
}

/// The VLAN tag that the kernel holds beside the frame.
fn stripped_tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the kernel filled control buffer and length, which CMSG_FIRSTHDR checks.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so it lies inside the control buffer, which is u64-aligned.
        let part = unsafe { &*header };
        if part.cmsg_level == libc::SOL_PACKET && part.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: this type's data is a tpacket_auxdata; read without assuming its alignment.
            let aux: libc::tpacket_auxdata =
                unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            if aux.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
                return None;
            }
            let [a, b] = aux.tp_vlan_tpid.to_be_bytes();
            let [c, d] = aux.tp_vlan_tci.to_be_bytes();
            return Some([a, b, c, d]);
        }
        // SAFETY: header came from this message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

fn set(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<()> {
    // SAFETY: pointer and length are those of a live int.
    let outcome = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(outcome)
}

fn check(outcome: libc::c_int) -> Result<()> {
    if outcome < 0 {
        return Err(Error::last_os_error().into());
    }
    Ok(())
}
