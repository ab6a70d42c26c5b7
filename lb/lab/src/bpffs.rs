//! A BPF file system of a test's own, mounted nowhere: what is pinned in it goes with the last process that holds it.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
    ptr::null,
};

use anyhow::{Context as _, Result};

// include/uapi/linux/mount.h
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOUNT_ATTR_RDONLY: libc::c_uint = 1;

/// A BPF file system, held by a descriptor that child processes inherit.
#[derive(Debug)]
pub struct Bpffs {
    mount: OwnedFd,
}

impl Bpffs {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// Without CAP_SYS_ADMIN, mainly.
    pub fn new() -> Result<Self> {
        Self::make(0)
    }

    /// Makes one in which nothing can be pinned.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn read_only() -> Result<Self> {
        Self::make(MOUNT_ATTR_RDONLY)
    }

    fn make(attributes: libc::c_uint) -> Result<Self> {
        let name: &CStr = c"bpf";
        // Neither descriptor of the mount is closed on exec: a child finds it under the same number.
        // SAFETY: the name is a live string that ends with a zero.
        let context = created(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), 1) }).context("fsopen(bpf)")?;
        // SAFETY: this command takes neither a key nor a value.
        let made = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                FSCONFIG_CMD_CREATE,
                null::<u8>(),
                null::<u8>(),
                0,
            )
        };
        anyhow::ensure!(made == 0, "fsconfig: {}", io::Error::last_os_error());
        // SAFETY: fsmount takes no pointers.
        let mount = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 0, attributes) };
        Ok(Self {
            mount: created(mount).context("fsmount(bpf)")?,
        })
    }

    /// Its root, for this process and for the children that it starts.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.mount.as_raw_fd()).into()
    }
}

fn created(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}
