//! An AF_XDP socket with its four rings. Never looks into a packet; frames go in and come out.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
};

use lb_core::config::XskMode;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{
        getsockopt, setsockopt,
        sockopt::{SndBufForce, SocketError},
    },
};
use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue,
    config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig},
    socket::XdpStatistics,
};

use super::{
    BusyPoll, XskAdvice, XskError, XskInterface, XskSettings,
    area::{Area, Filled, Frame, io_error},
    settings::BATCH,
};

/// A bound socket.
#[derive(Debug)]
pub(super) struct Rings {
    fill: FillQueue,
    completed: CompQueue,
    receive: RxQueue,
    send: TxQueue,
    scratch: Vec<FrameDesc>,
    /// Room of the send ring, and most frames on their way out.
    send_room: u32,
    /// Most frames that the kernel may have for receiving.
    most_posted: u32,
    /// Frames that the kernel has for receiving, or has received into and we have not seen.
    posted: u32,
    /// Frames that were sent and have not come back.
    sending: u32,
    /// Whether packets may take several frames.
    pub(super) multi_buffer: bool,
    /// Whether the card uses the frames itself.
    pub(super) zero_copy: bool,
    busy_poll: bool,
}

impl Rings {
    /// Makes the socket of a queue and binds it. The first one of an area decides for all, and the kernel ignores what the others
    /// ask for: `first` is what it found out of packets of several frames.
    pub(super) fn open(
        interface: &XskInterface,
        queue: u32,
        area: &Area,
        settings: &XskSettings,
        first: Option<bool>,
    ) -> Result<Self, XskError> {
        let failed = |call: &'static str| {
            move |source: io::Error| XskError::Socket {
                interface: interface.name.clone(),
                queue,
                call,
                advice: XskAdvice::for_socket(&source, settings.mode == XskMode::ZeroCopy),
                source,
            }
        };
        let found = nix::net::if_::if_nametoindex(interface.name.as_str())
            .map_err(|errno| failed("if_nametoindex")(errno.into()))?;
        if found != interface.index {
            return Err(XskError::Replaced {
                interface: interface.name.clone(),
                expected: interface.index,
                found,
            });
        }
        let name: Interface = interface
            .name
            .parse()
            .map_err(|_| failed("bind")(io::ErrorKind::InvalidInput.into()))?;
        let open = |flags| -> io::Result<_> {
            let config = socket_config(settings, flags).ok_or(io::ErrorKind::InvalidInput)?;
            // SAFETY: no program is loaded by libxdp, which is what the contract asks for where a queue is bound twice.
            unsafe { Socket::new(config, area.umem(), &name, queue) }.map_err(|error| io_error(&error))
        };
        let flags = BindFlags::XDP_USE_NEED_WAKEUP
            | match settings.mode {
                XskMode::Copy => BindFlags::XDP_COPY,
                XskMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
            };
        // Kernels before 6.6 do not know the flag, and some drivers' zero-copy does not know fragments.
        let (opened, multi_buffer) = match open(flags | BindFlags::XDP_USE_SG) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => (open(flags), false),
            result @ (Ok(_) | Err(_)) => (result, first.unwrap_or(true)),
        };
        let (send, receive, rings) = opened.map_err(failed("bind"))?;
        let (fill, completed) = rings.ok_or_else(|| failed("bind")(io::Error::from_raw_os_error(libc::EBUSY)))?;
        let socket = receive.fd().as_raw_fd();
        // SAFETY: the descriptor is the socket's, which lives as long as its queues do.
        let borrowed = unsafe { BorrowedFd::borrow_raw(socket) };
        // libxdp does not ask for SOCK_CLOEXEC.
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| failed("fcntl")(errno.into()))?;
        // The kernel's copies of what is sent count against it, 200 KiB by default. What is on its way is bounded by `send_room`
        // already; where we may not raise it, sending is slower and nothing else.
        let _ = setsockopt(
            &borrowed,
            SndBufForce,
            &(settings.half() as usize * settings.frame_bytes as usize),
        );
        if let Some(busy_poll) = settings.busy_poll {
            ask_for_busy_poll(socket, busy_poll).map_err(failed("setsockopt(SO_PREFER_BUSY_POLL)"))?;
        }
        let zero_copy = is_zero_copy(socket).map_err(failed("getsockopt(XDP_OPTIONS)"))?;
        Ok(Self {
            fill,
            completed,
            receive,
            send,
            scratch: vec![FrameDesc::default(); BATCH],
            send_room: settings.half(),
            most_posted: settings.half(),
            posted: 0,
            sending: 0,
            multi_buffer,
            zero_copy,
            busy_poll: settings.busy_poll.is_some(),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the socket's, which lives as long as its queues do, so as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.receive.fd().as_raw_fd()) }
    }

    /// Takes up to [`BATCH`] received frames.
    pub(super) fn receive(&mut self, into: &mut Vec<Frame>) -> usize {
        // SAFETY: the ring's frames are of the area that the socket was made with.
        let count = unsafe { self.receive.consume(&mut self.scratch) };
        self.posted = self.posted.saturating_sub(count as u32);
        // SAFETY: the kernel gave up these frames when they were consumed, and each is taken once.
        into.extend(
            self.scratch
                .iter()
                .take(count)
                .map(|descriptor| unsafe { Frame::from_ring(*descriptor) }),
        );
        count
    }

    /// Lets the kernel have free frames to receive into, up to its half.
    pub(super) fn refill(&mut self, area: &Area) {
        while self.posted < self.most_posted {
            let Some(mut frame) = area.take() else {
                return;
            };
            area.blank(&mut frame);
            // SAFETY: the frame is of the area, is owned here and is gone once the kernel has it.
            if unsafe { self.fill.produce_one(frame.descriptor()) } == 0 {
                return area.give(frame);
            }
            frame.gone();
            self.posted += 1;
        }
    }

    /// Tells the driver of new frames where it asked for that. Copy mode never does.
    pub(super) fn wake_receiving(&mut self) -> io::Result<()> {
        if self.busy_poll || self.fill.needs_wakeup() {
            // SAFETY: a read of nothing into nowhere: it only makes the kernel look at the rings.
            let result = unsafe {
                libc::recvfrom(
                    self.receive.fd().as_raw_fd(),
                    std::ptr::null_mut(),
                    0,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            };
            if result < 0 {
                let error = io::Error::last_os_error();
                return match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::ENETDOWN | libc::EINTR) => Ok(()),
                    Some(_) | None => Err(error),
                };
            }
        }
        Ok(())
    }

    /// Takes back the frames that were sent.
    pub(super) fn reap(&mut self, area: &Area) {
        while self.sending > 0 {
            // SAFETY: the ring's frames are of the area that the socket was made with.
            let count = unsafe { self.completed.consume(&mut self.scratch) };
            if count == 0 {
                return;
            }
            self.sending = self.sending.saturating_sub(count as u32);
            for descriptor in self.scratch.iter().take(count) {
                // SAFETY: the kernel gave up these frames when they were consumed, and each is taken once.
                area.give(unsafe { Frame::from_ring(*descriptor) });
            }
        }
    }

    /// Puts a packet on the send ring, whole or not at all. Never more than half of a queue's frames are on their way out, wherever
    /// in the kernel they are, so that sending leaves enough for receiving.
    pub(super) fn send(&mut self, packet: Filled) -> Result<(), Filled> {
        if self.sending + packet.descriptors() > self.send_room {
            return Err(packet);
        }
        let sent = if packet.rest.is_empty() {
            // SAFETY: the frame is of the area, is owned here and is gone once the kernel has it.
            unsafe { self.send.produce_one(packet.first.descriptor()) }
        } else {
            let all: Vec<FrameDesc> = std::iter::once(&packet.first)
                .chain(&packet.rest)
                .map(|frame| *frame.descriptor())
                .collect();
            // SAFETY: as above, for all of them.
            unsafe { self.send.produce(&all) }
        };
        if sent == 0 {
            return Err(packet);
        }
        self.sending += packet.descriptors();
        packet.first.gone();
        packet.rest.into_iter().for_each(Frame::gone);
        Ok(())
    }

    /// Makes the kernel send what is on the ring. In copy mode a call sends 32 frames; it is repeated while it gets anywhere.
    /// Returns whether something is left that only a later call can send.
    pub(super) fn kick(&mut self) -> io::Result<bool> {
        let mut left = self.unsent();
        while left > 0 {
            if self.send.needs_wakeup() {
                self.send.wakeup()?;
            }
            if self.zero_copy {
                return Ok(false);
            }
            let now = self.unsent();
            if now >= left {
                return Ok(true);
            }
            left = now;
        }
        Ok(false)
    }

    /// Whether the kernel could have more frames to receive into than there were.
    pub(super) fn is_short(&self) -> bool {
        self.posted < self.most_posted
    }

    /// Frames on the send ring.
    fn unsent(&mut self) -> u32 {
        self.send_room.saturating_sub(self.send.nb_free_exact())
    }

    /// Packets that wait on the receive ring.
    pub(super) fn waiting(&mut self) -> u32 {
        self.receive.nb_avail_exact()
    }

    /// See the field.
    pub(super) fn posted(&self) -> u32 {
        self.posted
    }

    /// See the field.
    pub(super) fn sending(&self) -> u32 {
        self.sending
    }

    /// The error that the kernel put on the socket, when the interface went, say.
    pub(super) fn broken(&self) -> io::Result<()> {
        match getsockopt(&self.fd(), SocketError)? {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number)),
        }
    }

    pub(super) fn statistics(&self) -> io::Result<XdpStatistics> {
        self.receive.fd().xdp_statistics()
    }
}

/// Both rings have half of a queue's frames, so the receive ring has room for all frames that the kernel may receive into.
fn socket_config(settings: &XskSettings, flags: BindFlags) -> Option<SocketConfig> {
    let size = QueueSize::new(settings.half()).ok()?;
    let mut config = SocketConfig::builder();
    config.rx_queue_size(size);
    config.tx_queue_size(size);
    config.bind_flags(flags);
    // The program is ours, and attached already.
    config.libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD);
    Some(config.build())
}

fn ask_for_busy_poll(socket: RawFd, busy_poll: BusyPoll) -> io::Result<()> {
    let options = [
        (libc::SO_PREFER_BUSY_POLL, 1),
        (
            libc::SO_BUSY_POLL,
            libc::c_int::try_from(busy_poll.duration_us).unwrap_or(libc::c_int::MAX),
        ),
        (libc::SO_BUSY_POLL_BUDGET, libc::c_int::from(busy_poll.budget_packets)),
    ];
    for (option, value) in options {
        // SAFETY: the kernel reads one int from where one is.
        let result = unsafe {
            libc::setsockopt(
                socket,
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn is_zero_copy(socket: RawFd) -> io::Result<bool> {
    let mut options = libc::xdp_options { flags: 0 };
    let mut length = size_of::<libc::xdp_options>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to a value of that size.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_XDP,
            libc::XDP_OPTIONS,
            (&raw mut options).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}
