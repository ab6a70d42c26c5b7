//! A loaded XDP program: what it is attached with, run with and measured by. Never knows what the program does.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    programs::{ProgramError, ProgramFd, Xdp},
};
use lb_core::config::AttachMode;

use super::{
    DatapathError,
    advice::{Advice, Capability, FRAGMENTS},
    attach::Attachment,
    verifier_log::VerifierTail,
};

/// What the kernel says of a loaded program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramFacts {
    /// The kernel's id of it.
    pub id: u32,
    /// Machine code, in bytes; 0 without the JIT.
    pub jited_len: u32,
    /// Instructions that the verifier walked through, all paths together; 0 before Linux 5.16.
    pub verified_insns: u32,
    /// eBPF code after the verifier dropped what is dead, in bytes.
    pub xlated_len: u32,
}

/// A loaded XDP program and the object that holds it.
#[derive(Debug)]
pub struct Program {
    object: &'static str,
    name: &'static str,
    ebpf: Ebpf,
}

impl Program {
    /// Loads the program `name` of an object whose maps are made.
    pub(crate) fn load(object: &'static str, name: &'static str, ebpf: Ebpf) -> Result<Self, DatapathError> {
        let mut program = Self { object, name, ebpf };
        let missing = DatapathError::Incomplete { object, missing: name };
        let xdp: &mut Xdp = match program.ebpf.program_mut(name) {
            Some(aya::programs::Program::Xdp(xdp)) => xdp,
            Some(_) | None => return Err(missing),
        };
        xdp.load().map_err(|error| load_error(object, name, error))?;
        Ok(program)
    }

    /// Name in the object.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// aya's handle.
    ///
    /// # Errors
    ///
    /// Never, once loaded; the type wants it.
    pub fn xdp(&self) -> Result<&Xdp, DatapathError> {
        match self.ebpf.program(self.name) {
            Some(aya::programs::Program::Xdp(xdp)) => Ok(xdp),
            Some(_) | None => Err(DatapathError::Incomplete {
                object: self.object,
                missing: self.name,
            }),
        }
    }

    /// The program's descriptor, as a map of programs wants it.
    ///
    /// # Errors
    ///
    /// Never, once loaded; the type wants it.
    pub fn fd(&self) -> Result<&ProgramFd, DatapathError> {
        self.xdp()?.fd().map_err(|_not_loaded| DatapathError::Incomplete {
            object: self.object,
            missing: self.name,
        })
    }

    /// Attaches to an interface of the calling thread's network namespace. Dropping the attachment detaches, and so
    /// does the end of this process.
    ///
    /// # Errors
    ///
    /// [`DatapathError::NoInterface`], [`DatapathError::Occupied`] when an XDP program is there, else
    /// [`DatapathError::Attach`].
    pub fn attach(&self, interface: &str, mode: AttachMode) -> Result<Attachment, DatapathError> {
        Attachment::new(self.fd()?.as_fd(), interface, mode)
    }

    /// Takes the place of the program that an attachment holds, atomically: every packet meets the old one or this one. Returns the
    /// old one, for [`Attachment::give_back`].
    ///
    /// # Errors
    ///
    /// [`DatapathError::Link`]; then the old program stays.
    pub fn take_over(&self, attachment: &mut Attachment) -> Result<OwnedFd, DatapathError> {
        attachment.replace(self.fd()?.as_fd())
    }

    /// What the kernel says of it.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn facts(&self) -> Result<ProgramFacts, DatapathError> {
        let info = self.xdp()?.info().map_err(|error| DatapathError::Facts {
            program: self.name,
            source: io_error(error),
        })?;
        Ok(ProgramFacts {
            id: info.id(),
            jited_len: info.size_jitted(),
            verified_insns: info.verified_instruction_count().unwrap_or(0),
            xlated_len: info.size_translated().unwrap_or(0),
        })
    }
}

fn load_error(object: &'static str, program: &'static str, error: ProgramError) -> DatapathError {
    match error {
        ProgramError::LoadError {
            io_error: source,
            verifier_log,
        } => {
            let log = VerifierTail::new(&verifier_log.to_string());
            // The verifier refuses with EACCES or EINVAL too, and then it has said why.
            let advice = if log.is_empty() {
                Advice::for_call(&source, &[Capability::Bpf, Capability::NetAdmin], Some(FRAGMENTS))
            } else {
                Advice::None
            };
            DatapathError::Verifier {
                program,
                source,
                advice,
                log,
            }
        }
        other => DatapathError::Object {
            object,
            source: Box::new(other.into()),
        },
    }
}

/// The system call's error inside aya's, or aya's.
pub(crate) fn io_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(inner) => inner.io_error,
        ProgramError::IOError(inner) => inner,
        other => io::Error::other(other),
    }
}
