//! A program at an interface's XDP hook, by a link that is a file descriptor.
//!
//! Never displaces another program. Outlives the process only where it is pinned ([`super::Pins::keep`]): without that the program
//! is off the interface after `detach`, after a drop, and when the process dies however it dies, because the kernel then closes
//! the link's last descriptor.

use std::{
    fmt, fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use lb_core::config::AttachMode;

use super::{
    DatapathError,
    advice::{Advice, Capability, FRAGMENTS, XDP_LINKS},
    hook::holders_of,
    interface::Interface,
    syscall,
};

/// Where in the receive path a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel has made a socket buffer.
    Native,
    /// In the kernel's stack, on any driver, at several times the cost.
    Generic,
    /// On the card itself. Only ever seen of others.
    Offloaded,
}

impl Mode {
    /// As output and configuration write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offloaded => "offloaded",
        }
    }

    // include/uapi/linux/if_link.h: XDP_FLAGS_*_MODE
    const fn flags(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
            Self::Offloaded => 1 << 3,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A program attached to an interface. Dropping it detaches, unless it is kept.
#[derive(Debug)]
pub struct Attachment {
    interface: Interface,
    mode: Mode,
    native_refused: Option<io::Error>,
    link: OwnedFd,
    /// The one in place.
    program: OwnedFd,
    /// Its pin, where it is kept.
    kept: Option<PathBuf>,
}

impl Attachment {
    /// Attaches `program` to an interface of the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Occupied`] when a program is there already; [`DatapathError::Attach`] otherwise.
    ///
    /// # Minimum kernel version
    ///
    /// 5.9.
    pub(crate) fn new(program: BorrowedFd<'_>, interface: &str, ask: AttachMode) -> Result<Self, DatapathError> {
        let interface = Interface::find(interface)?;
        let attach = |mode: Mode| syscall::link_create(program, interface.index, mode.flags());
        let (mode, result, native_refused) = match ask {
            AttachMode::Generic => (Mode::Generic, attach(Mode::Generic), None),
            AttachMode::Native => (Mode::Native, attach(Mode::Native), None),
            AttachMode::Auto => match attach(Mode::Native) {
                Err(refusal) if is_drivers_refusal(&refusal) => (Mode::Generic, attach(Mode::Generic), Some(refusal)),
                result @ (Ok(_) | Err(_)) => (Mode::Native, result, None),
            },
        };
        match result {
            Ok(link) => {
                let program = program.try_clone_to_owned().map_err(|source| DatapathError::Link {
                    interface: interface.name.clone(),
                    call: "fcntl(F_DUPFD_CLOEXEC)",
                    source,
                })?;
                Ok(Self {
                    interface,
                    mode,
                    native_refused,
                    link,
                    program,
                    kept: None,
                })
            }
            Err(source) => Err(explain(interface, mode, source)),
        }
    }

    /// One that an earlier process kept, with the program that it runs.
    pub(crate) fn adopted(interface: Interface, mode: Mode, link: OwnedFd, program: OwnedFd, pin: PathBuf) -> Self {
        Self {
            interface,
            mode,
            native_refused: None,
            link,
            program,
            kept: Some(pin),
        }
    }

    pub(crate) fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// It is pinned from now on.
    pub(crate) fn kept_at(&mut self, pin: PathBuf) {
        self.kept = Some(pin);
    }

    /// Whether it outlives the process.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Where it is attached.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// How it is attached.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Why it is not native although that was asked for first: the driver's error.
    pub fn native_refused(&self) -> Option<&io::Error> {
        self.native_refused.as_ref()
    }

    /// Puts another program in place, atomically: every packet meets the old one or the new one. The old one's maps and
    /// counters stay with their owner. Returns the old one.
    ///
    /// # Errors
    ///
    /// bpf(2)'s; then the old program stays. ENOLINK when the interface is gone, EPERM when somebody else has put a program in
    /// place.
    pub(crate) fn replace(&mut self, program: BorrowedFd<'_>) -> Result<OwnedFd, DatapathError> {
        let new = program.try_clone_to_owned();
        let new = new.map_err(|source| self.error("fcntl(F_DUPFD_CLOEXEC)", source))?;
        syscall::link_update(self.link.as_fd(), self.program.as_fd(), program)
            .map_err(|source| self.error("BPF_LINK_UPDATE", source))?;
        Ok(std::mem::replace(&mut self.program, new))
    }

    /// Puts a program that `replace` returned in place again.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn give_back(&mut self, program: &OwnedFd) -> Result<(), DatapathError> {
        self.replace(program.as_fd()).map(drop)
    }

    /// Takes the program off the interface and its pin away, and says so if that fails, which dropping does not.
    ///
    /// # Errors
    ///
    /// bpf(2)'s, unlink(2)'s.
    pub fn detach(mut self) -> Result<(), DatapathError> {
        syscall::link_detach(self.link.as_fd()).map_err(|source| self.error("BPF_LINK_DETACH", source))?;
        match self.kept.take().map(fs::remove_file) {
            Some(Err(source)) => Err(self.error("unlink", source)),
            Some(Ok(())) | None => Ok(()),
        }
    }

    fn error(&self, call: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Link {
            interface: self.interface.name.clone(),
            call,
            source,
        }
    }
}

impl Drop for Attachment {
    /// Not just a close: a child between fork and exec may hold a copy of the descriptor for a moment, and the program
    /// would stay as long. After `detach` this finds nothing to do.
    fn drop(&mut self) {
        if self.kept.is_none() {
            let _ = syscall::link_detach(self.link.as_fd());
        }
    }
}

/// Whether native mode was refused by the driver for what it is or how it is set up (no XDP, no fragments, the MTU, too
/// few queues), and not because of us or of another program.
fn is_drivers_refusal(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        None | Some(
            libc::EBUSY | libc::EEXIST | libc::EPERM | libc::EACCES | libc::ENODEV | libc::EBADF | libc::ENOMEM
        )
    )
}

/// A refusal with who is in the way, or with what to do.
fn explain(interface: Interface, mode: Mode, source: io::Error) -> DatapathError {
    if matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
        && let Ok(holders) = holders_of(&interface)
        && let Some(holder) = holders.into_iter().next()
    {
        let Interface { name, index: _ } = interface;
        return DatapathError::Occupied {
            interface: name,
            holder,
        };
    }
    let feature = if mode == Mode::Native { FRAGMENTS } else { XDP_LINKS };
    let advice = Advice::for_call(&source, &[Capability::NetAdmin, Capability::Bpf], Some(feature));
    DatapathError::Attach {
        interface: interface.name,
        mode,
        source,
        advice,
    }
}
