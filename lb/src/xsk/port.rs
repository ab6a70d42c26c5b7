//! One queue's socket for somebody who makes and takes frames himself: a traffic generator, a sink. Never a part of the slow path,
//! and never loads a program: what XDP redirects to the socket is its owner's to decide.

use std::{fmt, io, os::fd::BorrowedFd};

use super::{
    XskError, XskInterface, XskSettings,
    area::{Area, Frame},
    rings::Rings,
    settings::MAX_DESCRIPTORS,
};

/// A bound socket with memory of its own: half of its frames are for receiving, half for sending.
pub struct XskPort {
    rings: Rings,
    area: Area,
    taken: Vec<Frame>,
    /// A packet of several frames, as far as it has come.
    joined: Vec<u8>,
    sent: u64,
}

impl XskPort {
    /// Binds a socket to a queue of an interface of the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// [`XskError`]: a setting out of bounds, no memory, or a queue that cannot be had.
    pub fn open(interface: &XskInterface, queue: u32, settings: &XskSettings) -> Result<Self, XskError> {
        settings.check()?;
        let area = Area::new(settings, 1)?;
        let mut rings = Rings::open(interface, queue, &area, settings, None)?;
        rings.refill(&area);
        Ok(Self {
            rings,
            area,
            taken: Vec::new(),
            joined: Vec::new(),
            sent: 0,
        })
    }

    /// For the map that XDP redirects through, and for poll(2).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.rings.fd()
    }

    /// Whether the card uses the frames itself.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.rings.zero_copy
    }

    /// Whether packets may take several frames.
    #[must_use]
    pub fn is_multi_buffer(&self) -> bool {
        self.rings.multi_buffer
    }

    /// Puts a packet on the send ring; `false`: there is no room now. [`flush`](Self::flush) sends it.
    pub fn put(&mut self, packet: &[u8]) -> bool {
        let Some(filled) = self.area.fill(packet, MAX_DESCRIPTORS) else {
            return false;
        };
        match self.rings.send(filled) {
            Ok(()) => {
                self.sent += 1;
                true
            }
            Err(filled) => {
                self.area.give_all(filled);
                false
            }
        }
    }

    /// Makes the kernel send what is on the ring, and takes back what was sent.
    ///
    /// # Errors
    ///
    /// Those of sendto(2) that are not "later".
    pub fn flush(&mut self) -> io::Result<()> {
        let outcome = self.rings.kick().map(drop);
        self.rings.reap(&self.area);
        outcome
    }

    /// Frames that are on their way out still.
    #[must_use]
    pub fn on_their_way(&self) -> u32 {
        self.rings.sending()
    }

    /// Hands every packet that waits, at most [`BATCH`](super::BATCH) frames of them, to `each`; how many frames there were.
    ///
    /// # Errors
    ///
    /// Those of the call that wakes the driver.
    pub fn take(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        let count = self.rings.receive(&mut self.taken);
        for frame in self.taken.drain(..) {
            let bytes = self.area.contents(&frame);
            if frame.has_more() || !self.joined.is_empty() {
                self.joined.extend_from_slice(bytes);
                if !frame.has_more() {
                    each(&self.joined);
                    self.joined.clear();
                }
            } else {
                each(bytes);
            }
            self.area.give(frame);
        }
        self.rings.refill(&self.area);
        self.rings.wake_receiving()?;
        Ok(count)
    }

    /// Packets that the kernel had for this socket and could not put anywhere: what the sink itself lost.
    ///
    /// # Errors
    ///
    /// getsockopt(2)'s.
    pub fn overruns(&self) -> io::Result<u64> {
        let counts = self.rings.statistics()?;
        Ok(counts.rx_dropped() + counts.rx_ring_full())
    }
}

impl fmt::Debug for XskPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XskPort")
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}
