//! What workers count and say of themselves. Never goes back: counts belong to the queue, not to the worker that happens to
//! serve it.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use lb_core::{config::XskMode, slow::Counts};

use super::{XskInterface, wake::Wake};

/// Something that a worker counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tally {
    /// Packets received.
    Received,
    /// Packets sent out of the worker's own interface, its own and those handed to it.
    Sent,
    /// Packets handed to the worker of another queue for sending.
    HandedOver,
    /// Packets handed to this node's kernel.
    ToKernel,
    /// Received without a verdict that we know in front; dropped.
    NoReason,
    /// Received in more pieces than a packet can have; dropped.
    Malformed,
    /// To be sent, and no frame was free; dropped.
    NoFrame,
    /// To be sent, and the send ring was full; dropped.
    SendFull,
    /// To be handed over, and the inbox was full; dropped.
    InboxFull,
    /// To be sent out of an interface that has no worker; dropped.
    NoInterface,
    /// To be sent, and longer than what the socket takes; dropped.
    TooLong,
    /// To be handed to this node's kernel, and there is no way; dropped.
    ToKernelUnsupported,
    /// Calls to send that the kernel refused.
    SendErrors,
    /// Events lost because the control side did not keep up.
    EventsLost,
    /// Dropped by the kernel: the receive ring was full.
    KernelRingFull,
    /// Times that the kernel found no frame to receive into.
    KernelNoFrame,
    /// Dropped by the kernel before the receive ring, for any reason but that it was full.
    KernelDropped,
    /// Refused by the kernel for a descriptor that it did not like: never expected.
    KernelInvalid,
}

impl Tally {
    /// All of them, by their number.
    pub const ALL: [Self; 18] = [
        Self::Received,
        Self::Sent,
        Self::HandedOver,
        Self::ToKernel,
        Self::NoReason,
        Self::Malformed,
        Self::NoFrame,
        Self::SendFull,
        Self::InboxFull,
        Self::NoInterface,
        Self::TooLong,
        Self::ToKernelUnsupported,
        Self::SendErrors,
        Self::EventsLost,
        Self::KernelRingFull,
        Self::KernelNoFrame,
        Self::KernelDropped,
        Self::KernelInvalid,
    ];

    /// Whether it counts packets that were dropped, or what hints at them.
    pub const fn is_drop(self) -> bool {
        match self {
            Self::Received | Self::Sent | Self::HandedOver | Self::ToKernel => false,
            Self::NoReason
            | Self::Malformed
            | Self::NoFrame
            | Self::SendFull
            | Self::InboxFull
            | Self::NoInterface
            | Self::TooLong
            | Self::ToKernelUnsupported
            | Self::SendErrors
            | Self::EventsLost
            | Self::KernelRingFull
            | Self::KernelNoFrame
            | Self::KernelDropped
            | Self::KernelInvalid => true,
        }
    }

    /// Label in output and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Sent => "sent",
            Self::HandedOver => "handed_over",
            Self::ToKernel => "to_kernel",
            Self::NoReason => "no_reason",
            Self::Malformed => "malformed",
            Self::NoFrame => "no_frame",
            Self::SendFull => "send_full",
            Self::InboxFull => "inbox_full",
            Self::NoInterface => "no_interface",
            Self::TooLong => "too_long",
            Self::ToKernelUnsupported => "to_kernel_unsupported",
            Self::SendErrors => "send_errors",
            Self::EventsLost => "events_lost",
            Self::KernelRingFull => "kernel_ring_full",
            Self::KernelNoFrame => "kernel_no_frame",
            Self::KernelDropped => "kernel_dropped",
            Self::KernelInvalid => "kernel_invalid",
        }
    }
}

/// A worker, as it is now. What comes from the kernel is up to a second old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its interface's name.
    pub interface: String,
    /// Its interface's index.
    pub ifindex: u32,
    /// Its queue.
    pub queue: u32,
    /// Whether it runs; if not, it waits for its restart.
    pub running: bool,
    /// How its frames get to the kernel.
    pub mode: XskMode,
    /// Whether packets may take several frames.
    pub multi_buffer: bool,
    /// Times that it was started again.
    pub restarts: u64,
    /// Why it was started again last, or waits to be.
    pub last_error: Option<String>,
    /// Packets that wait for this worker to send them.
    pub inbox: u32,
    /// Packets that waited on the receive ring when the worker looked last.
    pub waiting: u32,
    /// Frames with the kernel for receiving.
    pub posted: u32,
    /// Frames on their way out.
    pub sending: u32,
    tallies: Tallies,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Tallies([u64; Tally::ALL.len()]);

impl fmt::Debug for Tallies {
    /// Those that are not 0, by name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = Tally::ALL.iter().zip(self.0).filter(|(_, count)| *count > 0);
        f.debug_map().entries(counted).finish()
    }
}

impl WorkerStatus {
    /// One of its counts.
    pub fn tally(&self, tally: Tally) -> u64 {
        self.tallies.0.get(tally as usize).copied().unwrap_or(0)
    }

    /// All of its counts.
    pub fn tallies(&self) -> impl Iterator<Item = (Tally, u64)> + '_ {
        Tally::ALL.into_iter().map(|tally| (tally, self.tally(tally)))
    }
}

/// The frames of a group of sockets, as they are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Frames there are; 0 while the group waits for its restart.
    pub frames: u32,
    /// Of them, free.
    pub free: u32,
}

/// A queue with a worker, through all of the worker's lives.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) interface: XskInterface,
    pub(super) queue: u32,
    /// Name of the worker's thread.
    pub(super) name: String,
    pub(super) wake: Wake,
    /// The handler is to take a turn.
    pub(super) poked: AtomicBool,
    /// A test wants the worker to die.
    pub(super) condemned: AtomicBool,
    pub(super) counts: Mutex<Counts>,
    pub(super) restarts: AtomicU64,
    pub(super) running: AtomicBool,
    pub(super) zero_copy: AtomicBool,
    pub(super) multi_buffer: AtomicBool,
    pub(super) last_error: Mutex<Option<String>>,
    pub(super) inbox: AtomicU32,
    pub(super) waiting: AtomicU32,
    pub(super) posted: AtomicU32,
    pub(super) sending: AtomicU32,
    tallies: [AtomicU64; Tally::ALL.len()],
}

impl Place {
    pub(super) fn new(interface: XskInterface, queue: u32) -> std::io::Result<Self> {
        Ok(Self {
            name: thread_name(&interface.name, queue),
            interface,
            queue,
            wake: Wake::new()?,
            poked: AtomicBool::new(false),
            condemned: AtomicBool::new(false),
            counts: Mutex::default(),
            restarts: AtomicU64::new(0),
            running: AtomicBool::new(false),
            zero_copy: AtomicBool::new(false),
            multi_buffer: AtomicBool::new(false),
            last_error: Mutex::default(),
            inbox: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            posted: AtomicU32::new(0),
            sending: AtomicU32::new(0),
            tallies: [const { AtomicU64::new(0) }; Tally::ALL.len()],
        })
    }

    pub(super) fn add(&self, tally: Tally, count: u64) {
        if count > 0
            && let Some(counter) = self.tallies.get(tally as usize)
        {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(super) fn status(&self) -> WorkerStatus {
        let mut tallies = [0; Tally::ALL.len()];
        for (to, from) in tallies.iter_mut().zip(&self.tallies) {
            *to = from.load(Ordering::Relaxed);
        }
        WorkerStatus {
            interface: self.interface.name.clone(),
            ifindex: self.interface.index,
            queue: self.queue,
            running: self.running.load(Ordering::Acquire),
            mode: if self.zero_copy.load(Ordering::Relaxed) {
                XskMode::ZeroCopy
            } else {
                XskMode::Copy
            },
            multi_buffer: self.multi_buffer.load(Ordering::Relaxed),
            restarts: self.restarts.load(Ordering::Relaxed),
            last_error: lock(&self.last_error).clone(),
            inbox: self.inbox.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            posted: self.posted.load(Ordering::Relaxed),
            sending: self.sending.load(Ordering::Relaxed),
            tallies: Tallies(tallies),
        }
    }
}

/// A worker that panics holds none of our locks, and what they guard is whole between any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `xsk-eth0-q3`, with the interface's name cut where the kernel's 15 bytes are too few.
fn thread_name(interface: &str, queue: u32) -> String {
    let tail = format!("-q{queue}");
    let room = 15_usize.saturating_sub("xsk-".len() + tail.len());
    let interface: String = interface.chars().take(room).collect();
    format!("xsk-{interface}{tail}")
}

#[cfg(test)]
mod tests {
    use super::{Tally, thread_name};

    #[test]
    fn thread_names_fit_the_kernel() {
        assert_eq!(thread_name("eth0", 3), "xsk-eth0-q3");
        assert_eq!(thread_name("enp130s0f0np0", 120), "xsk-enp130-q120");
    }

    #[test]
    fn tallies_stand_at_their_number() {
        for (position, tally) in Tally::ALL.into_iter().enumerate() {
            assert_eq!(tally as usize, position);
        }
    }
}
