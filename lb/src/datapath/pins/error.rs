//! What can go wrong with pins.

use std::{fmt, io, path::PathBuf};

/// Why what should outlive the process cannot, or what did is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Not a name.
    #[error("`{name}` is no name of an instance: 1 to 32 letters, digits, `-` and `_`")]
    Name {
        /// What was given.
        name: String,
    },
    /// No BPF file system, and none can be mounted.
    #[error(
        "{} is no BPF file system, and mount(2) does not make it one: {source}; `mount -t bpf bpf {}`, name another by --bpffs, or \
         run with --no-pin: then the data plane ends with the daemon",
        path.display(), path.display()
    )]
    Mount {
        /// Where it should be.
        path: PathBuf,
        /// mount(2)'s error.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "{} is in use: a `vipline run` of this instance is alive; stop that one, or give this one a name of its own by --instance",
        path.display()
    )]
    InUse {
        /// The instance's directory.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{call} of {}: {source}{}", path.display(), Hint(source))]
    Call {
        /// Which one.
        call: &'static str,
        /// Of what.
        path: PathBuf,
        /// Its error.
        source: io::Error,
    },
    /// A pin is not what its name says.
    #[error("{} is not pinned by Vipline: it is no link of an XDP program; take it away by hand", path.display())]
    NoLink {
        /// The pin.
        path: PathBuf,
    },
}

struct Hint<'a>(&'a io::Error);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.raw_os_error() {
            Some(libc::EROFS) => {
                "; it is mounted read-only: in a unit `ReadWritePaths=/sys/fs/bpf`, in a pod a hostPath volume; or run with \
                 --no-pin: then the data plane ends with the daemon"
            }
            Some(libc::EPERM | libc::EACCES) => "; run as root or with CAP_BPF, where /sys/fs/bpf belongs to this user",
            Some(_) | None => "",
        })
    }
}
