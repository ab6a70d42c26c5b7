//! What can go wrong with AF_XDP. Never a bare errno: every error names the interface, the queue and the call, and says what to
//! do where that is known.

use std::{error::Error, fmt, io};

/// Why the slow path could not start, or a part of it ended.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// An interface was not there or did not answer.
    #[error("{interface}: {call}: {source}")]
    Interface {
        /// Its name.
        interface: String,
        /// What was called.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Another interface has the name now: the daemon has to start over with it.
    #[error("{interface} has index {found} now and had {expected}: it was removed and made again")]
    Replaced {
        /// Its name.
        interface: String,
        /// Index at the start.
        expected: u32,
        /// Index now.
        found: u32,
    },
    /// The memory for frames was not had.
    #[error("{bytes} bytes of memory for AF_XDP frames (UMEM): {source}{advice}")]
    Umem {
        /// How much was asked for.
        bytes: u64,
        /// Why not.
        source: io::Error,
        /// What to do.
        advice: XskAdvice,
    },
    /// A socket was not made or not bound, or ended.
    #[error("AF_XDP socket on {interface} queue {queue}: {call}: {source}{advice}")]
    Socket {
        /// The interface's name.
        interface: String,
        /// The queue.
        queue: u32,
        /// What was called.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        advice: XskAdvice,
    },
    /// A socket was not put into the map that XDP redirects through.
    #[error("AF_XDP socket on {interface} queue {queue}: not registered: {source}")]
    Register {
        /// The interface's name.
        interface: String,
        /// The queue.
        queue: u32,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A thread was not started, or not as asked.
    #[error("worker {name}: {call}: {source}")]
    Thread {
        /// The thread's name.
        name: String,
        /// What was called.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A worker panicked.
    #[error("worker {name} panicked: {message}")]
    Panicked {
        /// The thread's name.
        name: String,
        /// What it said.
        message: String,
    },
    /// A setting is out of its bounds.
    #[error("{setting}: {value} is not {wanted}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it was.
        value: u64,
        /// What it must be.
        wanted: &'static str,
    },
}

/// What to do about a failure. Displays as nothing or as `; …`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XskAdvice {
    /// Nothing known.
    None,
    /// Not permitted.
    Capabilities,
    /// The limit of locked memory.
    LockedMemory,
    /// No memory.
    Memory,
    /// Someone else has the queue.
    QueueTaken,
    /// The driver has no zero-copy.
    NoZeroCopy,
    /// The interface has fewer queues now, or is gone.
    NoQueue,
    /// The kernel knows no AF_XDP.
    NoAfXdp,
}

impl XskAdvice {
    /// For a failed call while a socket is made. `zero_copy`: that was asked for.
    pub(super) fn for_socket(error: &io::Error, zero_copy: bool) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Capabilities,
            Some(libc::EBUSY) => Self::QueueTaken,
            Some(libc::EOPNOTSUPP | libc::EINVAL) if zero_copy => Self::NoZeroCopy,
            Some(libc::EINVAL | libc::ENODEV | libc::ENXIO | libc::ENETDOWN) => Self::NoQueue,
            Some(libc::EAFNOSUPPORT) => Self::NoAfXdp,
            Some(libc::ENOMEM) => Self::Memory,
            Some(libc::ENOBUFS) => Self::LockedMemory,
            Some(_) | None => Self::None,
        }
    }

    /// For a failed call while the frames' memory is made. Registering it needs CAP_IPC_LOCK or room under RLIMIT_MEMLOCK.
    pub(super) fn for_umem(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOBUFS | libc::EAGAIN) => Self::LockedMemory,
            Some(libc::EPERM | libc::EACCES) => Self::Capabilities,
            Some(libc::EAFNOSUPPORT) => Self::NoAfXdp,
            Some(libc::ENOMEM) => Self::Memory,
            Some(_) | None => Self::None,
        }
    }
}

impl fmt::Display for XskAdvice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "",
            Self::Capabilities => "; run as root or with CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF",
            Self::LockedMemory => {
                "; run with CAP_IPC_LOCK or raise the limit of locked memory (`ulimit -l`, LimitMEMLOCK=), or ask for fewer frames"
            }
            Self::Memory => "; ask for fewer frames per queue, or give the service more memory",
            Self::QueueTaken => "; another AF_XDP program has this queue: stop it (`ss --xdp` shows who)",
            Self::NoZeroCopy => "; the driver has no zero-copy for this queue or set-up: use copy mode",
            Self::NoQueue => "; the interface is gone or down, or has fewer queues now (`ethtool -l`)",
            Self::NoAfXdp => "; this kernel was built without CONFIG_XDP_SOCKETS: turn the slow path off",
        })
    }
}
