//! What outlives the process: links, programs and maps, as files of the BPF file system.
//!
//! Never decides what becomes of what it finds.
//!
//! ```text
//! <bpffs>/vipline/<instance>/             locked while a daemon is alive
//!   links/<ifindex>                       what keeps a program at an interface
//!   v<ABI version>/<number>/              a generation: a program and its maps, whole or not there at all
//!     PROGRAM  RECORD  CARRIED  SEGMENT_<n>  and every map by its name
//! ```
//!
//! **Every moment of it is whole.** A generation is pinned under another name and renamed when nothing is missing; then the links
//! are moved to its program, one by one; then the one before is renamed again, and goes. So whatever program a link runs is in one of the generations,
//! and a link is never without one. Generations may share maps.

mod bpffs;
mod error;

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

pub use error::PinError;
use nix::net::if_::if_indextoname;
use xdp_prog::abi::ABI_VERSION;

use self::bpffs::{failed, get, list, make_directory, number, pin, remove_directory, remove_if_empty, unlink};
use super::{Attachment, Balancer, DatapathError, Interface, attach::Mode, hook::holders_of, syscall};

/// Directory under the mount point.
const ROOT: &str = "vipline";
const LINKS: &str = "links";
/// A generation that is not whole yet.
const UNFINISHED: &str = "unfinished";
/// A generation that is going.
const LEAVING: &str = "leaving";
/// The program's name in a generation, the same under every ABI version.
const PROGRAM: &str = "PROGRAM";

/// Which instance of which BPF file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinPlace {
    /// Where the BPF file system is mounted.
    pub bpffs: PathBuf,
    /// Name of the instance.
    pub instance: String,
}

impl PinPlace {
    fn directory(&self) -> Result<PathBuf, PinError> {
        // No dots: the BPF file system keeps names with them for itself.
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if self.instance.is_empty() || self.instance.len() > 32 || !self.instance.chars().all(good) {
            return Err(PinError::Name {
                name: self.instance.clone(),
            });
        }
        Ok(self.bpffs.join(ROOT).join(&self.instance))
    }
}

/// The pins of an instance, locked for as long as this lives.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// The generation that is in place.
    current: Option<PathBuf>,
    _lock: File,
}

/// A link that was found.
#[derive(Debug)]
pub struct PinnedLink {
    path: PathBuf,
    link: OwnedFd,
    /// The kernel's id of its program.
    pub program_id: u32,
    /// Where it is; `None` when the interface is gone.
    pub interface: Option<Interface>,
    /// How its program runs there; `None` where another one does: the interface of that number is one of another network namespace.
    pub mode: Option<Mode>,
}

/// A program and its maps.
#[derive(Debug)]
pub struct Generation {
    directory: PathBuf,
    /// ABI version of its maps.
    pub abi: u64,
    number: u64,
    program: OwnedFd,
    /// The kernel's id of its program.
    pub program_id: u32,
}

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Interfaces whose program went.
    pub interfaces: Vec<String>,
    /// Links whose interface was gone already.
    pub dead_links: usize,
    /// Programs with their maps.
    pub generations: usize,
    /// Pins of all kinds.
    pub pins: usize,
}

impl Pins {
    /// Opens an instance, made and its file system mounted if need be.
    ///
    /// # Errors
    ///
    /// [`PinError::InUse`] while another process has it; no file system, or a read-only one.
    pub fn open(place: &PinPlace) -> Result<Self, PinError> {
        let directory = place.directory()?;
        bpffs::ensure_mounted(&place.bpffs)?;
        make_directory(&directory.join(LINKS))?;
        Self::lock(directory)
    }

    /// Opens an instance if there is one.
    ///
    /// # Errors
    ///
    /// [`PinError::InUse`] while another process has it.
    pub fn find(place: &PinPlace) -> Result<Option<Self>, PinError> {
        let directory = place.directory()?;
        if !bpffs::is_mounted(&place.bpffs) || !directory.is_dir() {
            return Ok(None);
        }
        Self::lock(directory).map(Some)
    }

    fn lock(directory: PathBuf) -> Result<Self, PinError> {
        let lock = File::open(&directory).map_err(failed("open", &directory))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                directory,
                current: None,
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(PinError::InUse { path: directory }),
            Err(TryLockError::Error(error)) => Err(failed("flock", &directory)(error)),
        }
    }

    /// The instance's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All links, as the calling thread's network namespace sees them.
    ///
    /// # Errors
    ///
    /// When one cannot be looked at.
    pub fn links(&self) -> Result<Vec<PinnedLink>, DatapathError> {
        let paths = list(&self.directory.join(LINKS))?;
        paths.into_iter().map(PinnedLink::open).collect()
    }

    /// All generations of all ABI versions, the latest of each last. What is not whole is taken away.
    ///
    /// # Errors
    ///
    /// When one cannot be looked at.
    pub fn generations(&self) -> Result<Vec<Generation>, PinError> {
        let mut generations = Vec::new();
        for versions in list(&self.directory)? {
            let Some(abi) = versions
                .file_name()
                .and_then(|name| name.to_str()?.strip_prefix('v')?.parse().ok())
            else {
                continue;
            };
            for directory in list(&versions)? {
                match number(&directory) {
                    Some(number) if directory.join(PROGRAM).exists() => {
                        generations.push(Generation::open(directory, abi, number)?);
                    }
                    Some(_) | None => remove_directory(&directory)?,
                }
            }
        }
        generations.sort_by_key(|generation| (generation.abi, generation.number));
        Ok(generations)
    }

    /// Generations whose program is not pinned any more: somebody has taken a part of them away. [`Self::generations`] ends that.
    ///
    /// # Errors
    ///
    /// When a directory cannot be listed.
    pub fn halves(&self) -> Result<Vec<PathBuf>, PinError> {
        let mut halves = Vec::new();
        for versions in list(&self.directory)? {
            if !versions.ends_with(LINKS) {
                let directories = list(&versions)?.into_iter();
                halves.extend(directories.filter(|one| number(one).is_some() && !one.join(PROGRAM).exists()));
            }
        }
        Ok(halves)
    }

    /// Pins a program with its maps beside those that are there, all of it or nothing. Segments that are made later join it.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn install(&mut self, balancer: &mut Balancer) -> Result<(), DatapathError> {
        let versions = self.directory.join(format!("v{ABI_VERSION}"));
        make_directory(&versions)?;
        let unfinished = versions.join(UNFINISHED);
        remove_directory(&unfinished)?;
        make_directory(&unfinished)?;
        pin(balancer.program.fd()?.as_fd(), &unfinished.join(PROGRAM))?;
        for (name, map) in balancer.pinnable()? {
            pin(map, &unfinished.join(name))?;
        }
        let last = list(&versions)?.iter().filter_map(|path| number(path)).max();
        let directory = versions.join((last.unwrap_or(0) + 1).to_string());
        fs::rename(&unfinished, &directory).map_err(failed("rename", &unfinished))?;
        balancer.slots.pin_in(Some(directory.clone()));
        self.current = Some(directory);
        Ok(())
    }

    /// Goes back from what was installed last to what was in place before: the links did not move.
    ///
    /// # Errors
    ///
    /// unlink(2)'s.
    pub fn take_back(&mut self, before: Option<PathBuf>) -> Result<(), PinError> {
        let failed = std::mem::replace(&mut self.current, before);
        failed.map_or(Ok(()), |directory| remove_generation(&directory))
    }

    /// The generation that is in place.
    pub fn current(&self) -> Option<PathBuf> {
        self.current.clone()
    }

    /// Takes all generations away but the one in place: no link runs them any more.
    ///
    /// # Errors
    ///
    /// unlink(2)'s.
    pub fn sweep(&self) -> Result<(), PinError> {
        for generation in self.generations()? {
            if Some(&generation.directory) != self.current.as_ref() {
                generation.remove()?;
            }
        }
        Ok(())
    }

    /// Has an attachment outlive this process.
    ///
    /// # Errors
    ///
    /// bpf(2)'s; the attachment is as it was then.
    pub fn keep(&self, attachment: &mut Attachment) -> Result<(), PinError> {
        let path = self
            .directory
            .join(LINKS)
            .join(attachment.interface().index.to_string());
        // Of an interface that had the number before.
        unlink(&path)?;
        pin(attachment.link(), &path)?;
        attachment.kept_at(path);
        Ok(())
    }

    /// Takes everything away: programs off their interfaces, links, maps, directories.
    ///
    /// # Errors
    ///
    /// The first that does not go; what went is gone.
    pub fn remove_all(self) -> Result<Removed, DatapathError> {
        let mut removed = Removed::default();
        for link in self.links()? {
            match &link.interface {
                Some(interface) => removed.interfaces.push(interface.name.clone()),
                None => removed.dead_links += 1,
            }
            removed.pins += 1;
            link.remove()?;
        }
        remove_directory(&self.directory.join(LINKS))?;
        for versions in list(&self.directory)? {
            for directory in list(&versions)? {
                removed.generations += 1;
                removed.pins += list(&directory)?.len();
                remove_generation(&directory)?;
            }
            remove_directory(&versions)?;
        }
        remove_directory(&self.directory)?;
        if let Some(root) = self.directory.parent() {
            remove_if_empty(root);
        }
        Ok(removed)
    }
}

impl PinnedLink {
    fn open(path: PathBuf) -> Result<Self, DatapathError> {
        let link = get(&path)?;
        let info = syscall::xdp_link_info(link.as_fd()).map_err(failed("BPF_OBJ_GET_INFO_BY_FD", &path))?;
        let Some((program_id, index)) = info else {
            return Err(PinError::NoLink { path }.into());
        };
        let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
        let interface = (index != 0).then(|| Interface {
            name: name.unwrap_or_else(|| format!("number {index}")),
            index,
        });
        let holders = match &interface {
            Some(interface) => holders_of(interface).unwrap_or_default(),
            None => Vec::new(),
        };
        let holder = holders.into_iter().find(|holder| holder.program_id == program_id);
        Ok(Self {
            path,
            link,
            program_id,
            interface,
            mode: holder.map(|holder| holder.mode),
        })
    }

    /// Goes on with it, where one of these generations has its program; the link itself otherwise.
    ///
    /// # Errors
    ///
    /// fcntl(2)'s.
    pub fn adopt(self, generations: &[Generation]) -> Result<Result<Attachment, Self>, PinError> {
        let program = generations.iter().find(|one| one.program_id == self.program_id);
        match (program, &self.interface, self.mode) {
            (Some(program), Some(interface), Some(mode)) => {
                let copied = program.program.try_clone();
                let program = copied.map_err(failed("fcntl(F_DUPFD_CLOEXEC)", &self.path))?;
                let interface = interface.clone();
                Ok(Ok(Attachment::adopted(interface, mode, self.link, program, self.path)))
            }
            _ => Ok(Err(self)),
        }
    }

    /// Takes the program off its interface and the link away.
    ///
    /// # Errors
    ///
    /// bpf(2)'s, unlink(2)'s.
    pub fn remove(self) -> Result<(), PinError> {
        if self.interface.is_some() {
            syscall::link_detach(self.link.as_fd()).map_err(failed("BPF_LINK_DETACH", &self.path))?;
        }
        unlink(&self.path)
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Generation {
    fn open(directory: PathBuf, abi: u64, number: u64) -> Result<Self, PinError> {
        let path = directory.join(PROGRAM);
        let program = get(&path)?;
        let program_id = syscall::program_id(program.as_fd()).map_err(failed("BPF_OBJ_GET_INFO_BY_FD", &path))?;
        Ok(Self {
            directory,
            abi,
            number,
            program,
            program_id,
        })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes it away.
    ///
    /// # Errors
    ///
    /// unlink(2)'s.
    pub fn remove(self) -> Result<(), PinError> {
        remove_generation(&self.directory)?;
        if let Some(versions) = self.directory.parent() {
            remove_if_empty(versions);
        }
        Ok(())
    }

    /// The file of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Segments of slot memory that are pinned, by position.
    pub(super) fn segments(&self) -> Result<Vec<(u32, PathBuf)>, PinError> {
        let position = |path: &Path| path.file_name()?.to_str()?.strip_prefix(SEGMENT)?.parse().ok();
        let paths = list(&self.directory)?;
        let mut found: Vec<(u32, PathBuf)> = paths
            .into_iter()
            .filter_map(|path| Some((position(&path)?, path)))
            .collect();
        found.sort();
        Ok(found)
    }
}

/// Takes a generation away, so that nobody ever finds a part of it under its number.
fn remove_generation(directory: &Path) -> Result<(), PinError> {
    let leaving = directory.with_file_name(LEAVING);
    remove_directory(&leaving)?;
    match fs::rename(directory, &leaving) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("rename", directory)(error)),
        Ok(()) | Err(_) => remove_directory(&leaving),
    }
}

/// Beginning of the name of a segment of slot memory.
const SEGMENT: &str = "SEGMENT_";

/// Name of a segment of slot memory.
pub(super) fn segment_name(position: u32) -> String {
    format!("{SEGMENT}{position}")
}

/// Pins a segment in a generation before it is published; in the place of one that never was.
pub(super) fn pin_segment(generation: &Path, position: u32, segment: BorrowedFd<'_>) -> Result<(), PinError> {
    let path = generation.join(segment_name(position));
    unlink(&path)?;
    pin(segment, &path)
}
