//! Drains by a word of an operator's, kept for the next start: they are no part of the configuration file, which is its owner's.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use lb_core::{
    desired::BackendId,
    drain::{Drain, Drains},
};
use serde::{Deserialize, Serialize};

use super::kept;

/// Of the file's shape: another one is not read.
const SHAPE: u32 = 1;
/// Longest file, in bytes: every backend that there can be, with the longest name.
const MAX_BYTES: u64 = 32 << 20;

/// Why drains cannot be kept, or found again.
#[derive(Debug, thiserror::Error)]
pub enum DrainsError {
    /// The file cannot be read or written.
    #[error("{path}: {source}; drains are kept there (--drains)")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path}: not readable: {source}; without it nobody is drained: mend it, or delete it")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        source: serde_json::Error,
    },
    /// Another version wrote it.
    #[error(
        "{path}: written by another version (shape {shape}, this one knows {SHAPE}); without it nobody is drained: delete it"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its shape.
        shape: u32,
    },
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Backends.
    pub backends: Drains,
    /// This LB node itself.
    pub node: Option<Drain>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OnDisk {
    shape: u32,
    drains: BTreeMap<String, Drain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Drain>,
}

/// Reads what was kept; none, where there is no file.
///
/// # Errors
///
/// When it cannot be read, or is not what was written. Who ignores that sends new flows to who is being drained.
pub fn read(path: &Path) -> Result<Kept, DrainsError> {
    let fail = |source| DrainsError::Io {
        path: path.to_owned(),
        source,
    };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(fail(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(fail)?;
    let kept: OnDisk = serde_json::from_slice(&bytes).map_err(|source| DrainsError::Corrupt {
        path: path.to_owned(),
        source,
    })?;
    if kept.shape != SHAPE {
        return Err(DrainsError::Foreign {
            path: path.to_owned(),
            shape: kept.shape,
        });
    }
    let backends = kept.drains.into_iter();
    let backends = backends.map(|(name, drain)| (BackendId(name.into()), drain));
    Ok(Kept {
        backends: Drains::new(backends),
        node: kept.node,
    })
}

/// Keeps them.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(path: &Path, backends: &Drains, node: Option<Drain>) -> Result<(), DrainsError> {
    let kept = OnDisk {
        shape: SHAPE,
        drains: backends.iter().map(|(id, drain)| (id.to_string(), drain)).collect(),
        node,
    };
    let bytes = serde_json::to_vec(&kept).map_err(|source| DrainsError::Corrupt {
        path: path.to_owned(),
        source,
    })?;
    kept::replace(path, &bytes).map_err(|source| DrainsError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_nonsense_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/drains.json");
        assert_eq!(read(&path).unwrap(), Kept::default());
        let drain = |since, deadline| Drain { since, deadline };
        let drains = Drains::new([
            (BackendId("a".into()), drain(1, None)),
            (BackendId("b".into()), drain(2, Some(3))),
        ]);
        for node in [Some(drain(4, Some(5))), None] {
            write(&path, &drains, node).unwrap();
            let backends = drains.clone();
            assert_eq!(read(&path).unwrap(), Kept { backends, node });
        }
        // As a version wrote it that knew no drain of the node.
        fs::write(&path, r#"{"shape":1,"drains":{"a":{"since":1,"deadline":null}}}"#).unwrap();
        assert_eq!(read(&path).unwrap().node, None);
        write(&path, &Drains::default(), None).unwrap();
        assert_eq!(read(&path).unwrap(), Kept::default());

        fs::write(&path, "{\"shape\":1,").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("drains.json") && error.contains("delete it"), "{error}");
        fs::write(&path, "{\"shape\":2,\"drains\":{}}").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("shape 2"), "{error}");
        let nowhere = Path::new("/proc/nowhere/drains.json");
        assert!(
            write(nowhere, &drains, None)
                .unwrap_err()
                .to_string()
                .contains("--drains")
        );
    }
}
