//! bpf(2) commands that aya 0.14 does not offer, or not in the way we need: batched lookups of per-CPU arrays, and links that
//! are file descriptors and nothing else (aya falls back to netlink, which would outlive the process).
//!
//! Knows nothing of what the maps and links are for.

use std::{
    ffi::{c_int, c_uint},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

// include/uapi/linux/bpf.h: enum bpf_cmd, enum bpf_attach_type.
const BPF_MAP_LOOKUP_BATCH: c_int = 24;
const BPF_LINK_CREATE: c_int = 28;
const BPF_LINK_UPDATE: c_int = 29;
const BPF_LINK_DETACH: c_int = 34;
const BPF_XDP: u32 = 37;

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    // The rest of the kernel's union; zero.
    rest: [u64; 4],
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkDetach {
    link_fd: u32,
}

/// One BPF_MAP_LOOKUP_BATCH of at most `keys.len()` entries of an array, from entry `from` on. `values` takes `stride` words
/// per entry. Returns how many entries came.
///
/// # Minimum kernel version
///
/// 5.13 for per-CPU arrays.
pub(crate) fn lookup_batch(
    map: BorrowedFd<'_>,
    from: u32,
    keys: &mut [u32],
    values: &mut [u64],
    stride: usize,
) -> io::Result<usize> {
    assert!(
        values.len() >= keys.len() * stride,
        "the caller's buffers do not fit each other"
    );
    // The kernel continues *after* the key in in_batch; no in_batch is the start.
    let previous = from.wrapping_sub(1);
    let mut next = 0_u32;
    let mut attr = Batch {
        in_batch: if from == 0 { 0 } else { &raw const previous as u64 },
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        map_fd: raw(map),
        ..Batch::default()
    };
    // SAFETY: all pointers in `attr` are of live locals and slices; the kernel writes at most `count` keys of 4 bytes and
    // `count` values of `stride` words, checked above; the map's real value size is checked by the caller (`PerCpu`).
    match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => Ok(attr.count as usize),
        // The end of the map was reached; what came is good.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(attr.count as usize),
        Err(error) => Err(error),
    }
}

/// Attaches an XDP program to an interface of the calling thread's network namespace. `flags` are `XDP_FLAGS_*_MODE`.
///
/// # Minimum kernel version
///
/// 5.9.
pub(crate) fn link_create(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(program),
        target_ifindex: ifindex,
        attach_type: BPF_XDP,
        flags,
        ..LinkCreate::default()
    };
    // SAFETY: `attr` holds no pointers.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a link run another program, atomically: each packet sees the old one or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: raw(link),
        new_prog_fd: raw(program),
        ..LinkUpdate::default()
    };
    // SAFETY: `attr` holds no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link's program. The link stays, detached, until its descriptor is closed.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetach { link_fd: raw(link) };
    // SAFETY: `attr` holds no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// bpf(2). The kernel reads `size_of::<A>()` bytes and takes what is beyond for zero.
///
/// # Safety
///
/// Pointers in `attr` must be valid for what `command` does with them.
unsafe fn bpf<A>(command: c_int, attr: &mut A) -> io::Result<c_int> {
    let size = size_of::<A>() as c_uint;
    // SAFETY: `attr` is valid for reads and writes of `size` bytes; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size) };
    match c_int::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}
