//! bpf(2) commands that aya 0.14 does not offer, or not in the way we need: batched lookups of per-CPU arrays, links
//! that are file descriptors and nothing else (aya falls back to netlink, which would outlive the process) and say what they
//! replace, a map of maps without an object, and pins with what is pinned.
//!
//! Knows nothing of what the maps and links are for.

use std::{
    ffi::{CStr, c_int, c_uint},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

// include/uapi/linux/bpf.h: enum bpf_cmd, enum bpf_attach_type.
const BPF_MAP_CREATE: c_int = 0;
const BPF_MAP_LOOKUP_ELEM: c_int = 1;
const BPF_MAP_UPDATE_ELEM: c_int = 2;
const BPF_OBJ_PIN: c_int = 6;
const BPF_OBJ_GET: c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: c_int = 15;
const BPF_MAP_LOOKUP_BATCH: c_int = 24;
const BPF_LINK_CREATE: c_int = 28;
const BPF_LINK_UPDATE: c_int = 29;
const BPF_LINK_DETACH: c_int = 34;
const BPF_XDP: u32 = 37;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
const BPF_F_REPLACE: u32 = 1 << 2;
const BPF_LINK_TYPE_XDP: u32 = 6;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

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
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`, as far as a link of an XDP program fills it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    ifindex: u32,
    padding_too: u32,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkDetach {
    link_fd: u32,
}

/// One BPF_MAP_LOOKUP_BATCH of at most `keys.len()` entries of an array, from entry `from` on. `values` takes `stride`
/// words per entry. Returns how many entries came.
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
    // SAFETY: all pointers in `attr` are of live locals and slices; the kernel writes at most `count` keys of 4 bytes
    // and `count` values of `stride` words, checked above; the map's real value size is checked by the caller
    // (`PerCpu`).
    match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => Ok(attr.count as usize),
        // The end of the map was reached; what came is good.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(attr.count as usize),
        Err(error) => Err(error),
    }
}

/// Makes a map of maps with one entry and writes that entry. The kernel returns only when every program run that had
/// begun is done (kernel/bpf/syscall.c, `maybe_wait_bpf_programs`), whatever maps it uses.
///
/// # Minimum kernel version
///
/// 4.20.
pub(crate) fn write_map_of_maps() -> io::Result<()> {
    let mut inner = MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        ..MapCreate::default()
    };
    // SAFETY: `inner` holds no pointers.
    let inner = unsafe { created(bpf(BPF_MAP_CREATE, &mut inner)) }?;
    let mut outer = MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        inner_map_fd: raw(inner.as_fd()),
        ..MapCreate::default()
    };
    // SAFETY: `outer` holds no pointers.
    let outer = unsafe { created(bpf(BPF_MAP_CREATE, &mut outer)) }?;
    let (key, value) = (0_u32, raw(inner.as_fd()));
    let mut update = MapUpdate {
        map_fd: raw(outer.as_fd()),
        key: &raw const key as u64,
        value: &raw const value as u64,
        ..MapUpdate::default()
    };
    // SAFETY: key and value are live locals of the map's sizes, 4 bytes each.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut update) }.map(drop)
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
    unsafe { created(bpf(BPF_LINK_CREATE, &mut attr)) }
}

/// Makes a link that runs `old` run another program, atomically: each packet sees the old one or the new one. EPERM where it runs
/// a third one.
pub(crate) fn link_update(link: BorrowedFd<'_>, old: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: raw(link),
        new_prog_fd: raw(program),
        flags: BPF_F_REPLACE,
        old_prog_fd: raw(old),
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

/// Makes an object outlive its descriptors, under a name in a BPF file system.
pub(crate) fn obj_pin(object: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    let mut attr = Object {
        pathname: path.as_ptr() as u64,
        bpf_fd: raw(object),
        ..Object::default()
    };
    // SAFETY: the path is a live string that ends with a zero.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// A descriptor of a pinned object.
pub(crate) fn obj_get(path: &CStr) -> io::Result<OwnedFd> {
    let mut attr = Object {
        pathname: path.as_ptr() as u64,
        ..Object::default()
    };
    // SAFETY: the path is a live string that ends with a zero; the command makes a descriptor.
    unsafe { created(bpf(BPF_OBJ_GET, &mut attr)) }
}

/// Program id and interface index of a link of an XDP program, the index 0 where the interface is gone; `None` of another object.
///
/// # Minimum kernel version
///
/// 5.9.
pub(crate) fn xdp_link_info(link: BorrowedFd<'_>) -> io::Result<Option<(u32, u32)>> {
    let mut info = LinkInfo::default();
    info_of(link, &mut info)?;
    Ok((info.kind == BPF_LINK_TYPE_XDP).then_some((info.prog_id, info.ifindex)))
}

/// The kernel's id of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = ProgramInfo::default();
    info_of(program, &mut info)?;
    Ok(info.id)
}

fn info_of<I>(object: BorrowedFd<'_>, info: &mut I) -> io::Result<()> {
    let mut attr = GetInfo {
        bpf_fd: raw(object),
        info_len: u32::try_from(size_of::<I>()).unwrap_or(u32::MAX),
        info: &raw mut *info as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to a live local of that size, made of integers.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// A 4-byte element of a map with 4-byte keys: of an array of maps, the id of a map. `None` where there is none.
pub(crate) fn lookup_u32(map: BorrowedFd<'_>, key: u32) -> io::Result<Option<u32>> {
    let mut value = 0_u32;
    let mut attr = MapUpdate {
        map_fd: raw(map),
        key: &raw const key as u64,
        value: &raw mut value as u64,
        ..MapUpdate::default()
    };
    // SAFETY: key and value are live locals of the map's sizes, 4 bytes each.
    match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The descriptor that a creating command returned.
///
/// # Safety
///
/// `result` is that of a command that makes a descriptor, which is used nowhere else.
unsafe fn created(result: io::Result<c_int>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
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
