//! The memory that frames lie in (UMEM), shared by the sockets of a group. Never hands out a frame twice.
//!
//! **Invariant: a [`Frame`] is owned.** It can be made only from a ring's descriptor and is neither cloned nor copied, so whoever
//! has it is the only one that reads or writes its memory: that is what makes the unsafe calls here sound.

use std::{io, num::NonZeroU32, ptr};

use crossbeam::queue::ArrayQueue;
use xsk_rs::{
    FrameDesc, Umem,
    config::{FrameSize, QueueSize, UmemConfig},
};

use super::{XskAdvice, XskError, XskSettings, settings::PACKET_HEADROOM};

/// What lies in front of a frame that got no metadata: no verdict has this number.
const NOTHING: u64 = u64::MAX;
const METADATA: usize = size_of::<u64>();

/// A frame of the area, by whoever may use it.
#[derive(Debug)]
pub(super) struct Frame(FrameDesc);

impl Frame {
    /// # Safety
    ///
    /// The descriptor came from a ring of the area's sockets, which gave up the frame, or from the area's making; this is the only
    /// `Frame` made of it.
    pub(super) unsafe fn from_ring(descriptor: FrameDesc) -> Self {
        Self(descriptor)
    }

    /// To put on a ring; then this is [`gone`](Self::gone).
    pub(super) fn descriptor(&self) -> &FrameDesc {
        &self.0
    }

    /// The kernel has it now.
    pub(super) fn gone(self) {}

    /// Whether the packet goes on in the next frame.
    pub(super) fn has_more(&self) -> bool {
        self.0.has_more_frames()
    }
}

/// A packet in frames, ready to be sent.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) first: Frame,
    /// Empty but for packets longer than a frame.
    pub(super) rest: Vec<Frame>,
}

/// The memory of a group and its free frames.
#[derive(Debug)]
pub(super) struct Area {
    umem: Umem,
    free: ArrayQueue<Frame>,
    frames: u32,
    frame_bytes: usize,
}

impl Area {
    /// Memory for the sockets of so many queues.
    pub(super) fn new(settings: &XskSettings, queues: usize) -> Result<Self, XskError> {
        let frames = settings
            .frames_per_queue
            .saturating_mul(u32::try_from(queues).unwrap_or(u32::MAX));
        let bytes = u64::from(frames) * u64::from(settings.frame_bytes);
        let failed = |source: io::Error| XskError::Umem {
            bytes,
            advice: XskAdvice::for_umem(&source),
            source,
        };
        let config = umem_config(settings).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let count = NonZeroU32::new(frames).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let (umem, descriptors) = Umem::new(config, count, false).map_err(|error| failed(io_error(&error)))?;
        let free = ArrayQueue::new(descriptors.len().max(1));
        for descriptor in descriptors {
            // SAFETY: the area's making: each descriptor is another frame, and none is in use.
            let frame = unsafe { Frame::from_ring(descriptor) };
            // There is room for all of them.
            let _ = free.push(frame);
        }
        Ok(Self {
            umem,
            free,
            frames,
            frame_bytes: settings.frame_bytes as usize,
        })
    }

    pub(super) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Frames there are in all.
    pub(super) fn frames(&self) -> u32 {
        self.frames
    }

    /// Frames that nobody uses.
    pub(super) fn free_frames(&self) -> usize {
        self.free.len()
    }

    pub(super) fn take(&self) -> Option<Frame> {
        self.free.pop()
    }

    pub(super) fn give(&self, frame: Frame) {
        // There is room for all frames there are.
        let _ = self.free.push(frame);
    }

    pub(super) fn give_all(&self, Filled { first, rest }: Filled) {
        self.give(first);
        for frame in rest {
            self.give(frame);
        }
    }

    /// What the frame holds, as received or written.
    pub(super) fn contents<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        // SAFETY: the frame is of this area and its owner lends it, so nobody writes it meanwhile.
        unsafe { self.umem.data(&frame.0) }.contents()
    }

    /// The metadata word in front of a received packet. XDP's metadata ends where the packet begins, and the kernel copies it along
    /// (net/xdp/xsk.c, `__xsk_rcv`), but does not say how long it was: what [`Area::blank`] wrote is there if it was none.
    pub(super) fn metadata(&self, frame: &Frame) -> u64 {
        let offset = frame.0.addr();
        if offset % self.frame_bytes < METADATA {
            return NOTHING;
        }
        // SAFETY: `word_at` points into this frame, whose owner lends it; any bytes are a u64.
        unsafe { self.word_at(&frame.0, offset - METADATA).read_unaligned() }
    }

    /// Wipes the place where metadata of the next packet would be, so that it is seen when there is none.
    pub(super) fn blank(&self, frame: &mut Frame) {
        let start = frame.0.addr() - frame.0.addr() % self.frame_bytes;
        // SAFETY: `word_at` points into this frame, below the packet's place, and its owner lends it for writing.
        unsafe {
            self.word_at(&frame.0, start + PACKET_HEADROOM - METADATA)
                .write_unaligned(NOTHING)
        };
    }

    /// A word of the frame's headroom; xsk-rs gives access to the packet and to what lies before XDP's headroom, but not to its end.
    fn word_at(&self, descriptor: &FrameDesc, offset: usize) -> *mut u64 {
        // SAFETY: only the address of the packet's start is used, nothing is read.
        let packet = unsafe { self.umem.data(descriptor) }.contents().as_ptr().addr();
        let base = packet.wrapping_sub(descriptor.addr());
        // The whole area's pointer was given to the kernel and to libxdp, so its provenance is exposed.
        ptr::with_exposed_provenance_mut(base.wrapping_add(offset))
    }

    /// The bytes of a packet in as many free frames as it takes; none if it is empty, too long or there are too few.
    pub(super) fn fill(&self, packet: &[u8], most_frames: usize) -> Option<Filled> {
        let most = self.frame_bytes - PACKET_HEADROOM;
        let mut chunks = packet.chunks(most);
        if chunks.len() > most_frames {
            return None;
        }
        let first = self.write(chunks.next()?)?;
        let mut filled = Filled {
            first,
            rest: Vec::new(),
        };
        for chunk in chunks {
            match self.write(chunk) {
                Some(frame) => filled.rest.push(frame),
                None => {
                    self.give_all(filled);
                    return None;
                }
            }
        }
        Some(filled.linked())
    }

    /// Frames that a packet takes.
    pub(super) fn pieces(&self, packet: &[u8]) -> usize {
        packet.len().div_ceil(self.frame_bytes - PACKET_HEADROOM)
    }

    fn write(&self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.take()?;
        // SAFETY: the frame is of this area and owned here.
        let mut data = unsafe { self.umem.data_mut(&mut frame.0) };
        let mut cursor = data.cursor();
        cursor.set_pos(0);
        let fits = io::Write::write_all(&mut cursor, bytes).is_ok();
        if fits {
            Some(frame)
        } else {
            self.give(frame);
            None
        }
    }
}

/// Half of a queue's frames may be with the kernel for receiving, and there is room for all of them to come back from sending.
fn umem_config(settings: &XskSettings) -> Option<UmemConfig> {
    let mut config = UmemConfig::builder();
    config.frame_size(FrameSize::new(settings.frame_bytes).ok()?);
    config.fill_queue_size(QueueSize::new(settings.half()).ok()?);
    config.comp_queue_size(QueueSize::new(settings.frames_per_queue).ok()?);
    config.build().ok()
}

// include/uapi/linux/if_xdp.h
const XDP_PKT_CONTD: u32 = 1;

impl Filled {
    /// Says in all frames but the last that there is more.
    fn linked(mut self) -> Self {
        let last = self.rest.len();
        for (position, frame) in std::iter::once(&mut self.first).chain(&mut self.rest).enumerate() {
            frame.0.set_options(if position == last { 0 } else { XDP_PKT_CONTD });
        }
        self
    }

    pub(super) fn descriptors(&self) -> u32 {
        1 + self.rest.len() as u32
    }
}

/// The system's error inside of one of xsk-rs's.
pub(super) fn io_error(error: &dyn std::error::Error) -> io::Error {
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(source) => match source.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(source.kind(), error.to_string()),
        },
        None => io::Error::other(error.to_string()),
    }
}
