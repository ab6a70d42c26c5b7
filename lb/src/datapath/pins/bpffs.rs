//! The BPF file system, and what a directory of it holds.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::PinError;
use crate::datapath::syscall;

/// Whether a BPF file system is mounted there.
pub(super) fn is_mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|answer| answer.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts one, unless it is there.
pub(super) fn ensure_mounted(path: &Path) -> Result<(), PinError> {
    if is_mounted(path) {
        return Ok(());
    }
    let mounted = mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"));
    mounted.map_err(|errno| PinError::Mount {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    tracing::info!("mounted a BPF file system at {}", path.display());
    Ok(())
}

pub(super) fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError + use<> {
    let path = path.to_owned();
    move |source| PinError::Call { call, path, source }
}

/// Makes a directory that only root looks into, with those above it.
pub(super) fn make_directory(path: &Path) -> Result<(), PinError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(failed("mkdir", path))
}

/// What a directory holds, in the order of names; nothing, where there is no directory.
pub(super) fn list(path: &Path) -> Result<Vec<PathBuf>, PinError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("readdir", path)(error)),
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(failed("readdir", path))?;
    paths.sort();
    Ok(paths)
}

/// The last part of a path, as a number.
pub(super) fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

pub(super) fn unlink(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("unlink", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes a directory of pins away, with all of them.
pub(super) fn remove_directory(path: &Path) -> Result<(), PinError> {
    for pin in list(path)? {
        unlink(&pin)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("rmdir", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes a directory away if nothing is in it.
pub(super) fn remove_if_empty(path: &Path) {
    // Others' pins are a reason to stay.
    drop(fs::remove_dir(path));
}

pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), PinError> {
    let name = name(path).map_err(failed("BPF_OBJ_PIN", path))?;
    syscall::obj_pin(object, &name).map_err(failed("BPF_OBJ_PIN", path))
}

pub(super) fn get(path: &Path) -> Result<OwnedFd, PinError> {
    let name = name(path).map_err(failed("BPF_OBJ_GET", path))?;
    syscall::obj_get(&name).map_err(failed("BPF_OBJ_GET", path))
}

fn name(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|nul| io::Error::new(io::ErrorKind::InvalidInput, nul))
}
