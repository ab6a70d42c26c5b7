//! A configuration file as a source: read whole, bounded, and watched for change.
//!
//! Watching is looking: once in [`LOOK_EVERY`] the file's identity is compared. That finds what inotify finds, a `ConfigMap`'s swapped
//! symbolic link included, and cannot lose an event.

use std::{
    fmt, fs, io,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_core::config::{
    self, ConfigErrors, LbConfig, MAX_CONFIG_BYTES, NodeConfig, Seed, SeedError, SeedKey, parse_seed,
};

/// Time between two looks at the file.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Longest seed file, in bytes.
const MAX_SEED_BYTES: u64 = 4096;

/// Why a file gives no configuration.
#[derive(Debug)]
pub enum FileError {
    /// It cannot be read.
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It can be read, and is wrong.
    Config(ConfigErrors),
    /// The seed file is wrong.
    Seed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: SeedError,
    },
}

impl FileError {
    /// What to print: a line per error under a line that names the file.
    pub fn report(&self, file: &Path) -> String {
        format!("{}: cannot be used\n{}", file.display(), self.lines().join("\n"))
    }

    /// A line per error.
    pub fn lines(&self) -> Vec<String> {
        self.to_string().lines().map(ToOwned::to_owned).collect()
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Config(errors) => errors.fmt(f),
            Self::Seed { path, source } => write!(f, "seed_file {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for FileError {}

/// An LB node's configuration and the seed it names.
#[derive(Clone, Debug)]
pub struct LbFile {
    /// The configuration.
    pub config: LbConfig,
    /// The seed.
    pub seed: SeedKey,
}

/// Reads an LB node's file, and the seed file that it may name.
///
/// # Errors
///
/// When a file cannot be read or is wrong.
pub fn read_lb(path: &Path) -> Result<LbFile, FileError> {
    let bytes = read(path, MAX_CONFIG_BYTES as u64)?;
    let config = config::text(&bytes)
        .and_then(LbConfig::parse)
        .map_err(FileError::Config)?;
    let (path, text) = match &config.seed {
        Seed::Inline(seed) => return Ok(LbFile { seed: *seed, config }),
        Seed::File(path) => (path.as_path(), read(path, MAX_SEED_BYTES)?),
        // A file that is read by itself has none of these: what follows refuses an empty seed.
        Seed::Cluster => (path, Vec::new()),
    };
    let seed = parse_seed(&String::from_utf8_lossy(&text)).map_err(|source| FileError::Seed {
        path: path.to_owned(),
        source,
    })?;
    Ok(LbFile { config, seed })
}

/// Reads an LB node's own settings, for `--kube`; without a file, what one says that says nothing.
///
/// # Errors
///
/// As [`read_lb`].
pub fn read_lb_kube(path: Option<&Path>) -> Result<LbConfig, FileError> {
    let Some(path) = path else {
        return Ok(LbConfig::kube());
    };
    let bytes = read(path, MAX_CONFIG_BYTES as u64)?;
    config::text(&bytes)
        .and_then(LbConfig::parse_kube)
        .map_err(FileError::Config)
}

/// Reads a worker node's own settings, for `--kube`; without a file, what one says that says nothing.
///
/// # Errors
///
/// As [`read_lb`].
pub fn read_node_kube(path: Option<&Path>) -> Result<NodeConfig, FileError> {
    let Some(path) = path else {
        return Ok(NodeConfig::kube());
    };
    let bytes = read(path, MAX_CONFIG_BYTES as u64)?;
    config::text(&bytes)
        .and_then(NodeConfig::parse_kube)
        .map_err(FileError::Config)
}

/// Reads a worker node's file.
///
/// # Errors
///
/// As [`read_lb`].
pub fn read_node(path: &Path) -> Result<NodeConfig, FileError> {
    let bytes = read(path, MAX_CONFIG_BYTES as u64)?;
    config::text(&bytes)
        .and_then(NodeConfig::parse)
        .map_err(FileError::Config)
}

/// Reads at most one byte more than the bound, which is enough to see that the file is too long.
fn read(path: &Path, bound: u64) -> Result<Vec<u8>, FileError> {
    let fail = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    fs::File::open(path)
        .map_err(fail)?
        .take(bound + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    Ok(bytes)
}

/// What tells one state of a file from another: device, inode, size, modification and change time in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64, u64, i64, i64);

/// Says when files have changed.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Identity>>,
}

impl Watch {
    /// Watches from now on. A change between reading and this call is missed, so watch first and read then.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let seen = paths.iter().map(|path| identity(path)).collect();
        Self { paths, seen }
    }

    /// Whether a file is another than at the last look. A file that is missing is no change: half a replacement, or an accident that
    /// must not look like an empty configuration.
    pub fn has_changed(&mut self) -> bool {
        let mut changed = false;
        for (path, seen) in self.paths.iter().zip(&mut self.seen) {
            let now = identity(path);
            if now.is_some() && now != *seen {
                *seen = now;
                changed = true;
            }
        }
        changed
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let data = fs::metadata(path).ok()?;
    let modified = data.mtime().wrapping_mul(1_000_000_000).wrapping_add(data.mtime_nsec());
    let changed = data.ctime().wrapping_mul(1_000_000_000).wrapping_add(data.ctime_nsec());
    Some(Identity(data.dev(), data.ino(), data.size(), modified, changed))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Watch;

    #[test]
    fn a_change_is_seen_once_and_a_missing_file_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.yaml");
        fs::write(&path, "one").unwrap();
        let mut watch = Watch::new(vec![path.clone()]);
        assert!(!watch.has_changed());
        fs::write(&path, "other").unwrap();
        assert!(watch.has_changed());
        assert!(!watch.has_changed());
        fs::remove_file(&path).unwrap();
        assert!(!watch.has_changed());
        fs::write(directory.path().join("next"), "three").unwrap();
        fs::rename(directory.path().join("next"), &path).unwrap();
        assert!(watch.has_changed(), "replaced by rename");
    }
}
