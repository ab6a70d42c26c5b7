//! What this node was told last, on its own disk: it serves on after a restart without an API server.
//!
//! Never read by anybody but root: the flow-hash seed is in it, because without it nothing could be served. Never written in place.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use operator_api::{NodeSetSpec, TunnelConfigSpec, VipTableSpec};
use serde::{Deserialize, Serialize};

use super::{
    announce,
    index::Kept,
    object::{KeptObject, Object},
    seed::ClusterSeed,
};
use crate::source::kept;

/// Of the file's shape: another one is not read.
const SHAPE: u32 = 1;
/// Longest file, in bytes: ten times what 10,000 Services take.
const MAX_BYTES: u64 = 256 << 20;

/// Why a cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path}: not readable: {source}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        source: serde_json::Error,
    },
    /// It is of another cluster, or of another version.
    #[error("{path}: {what}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is of.
        what: &'static str,
    },
}

/// Whose words they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The API server's URL.
    pub server: String,
    /// The operator's namespace.
    pub namespace: String,
}

/// What is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cache {
    shape: u32,
    origin: Origin,
    seed: Option<Arc<str>>,
    tables: Vec<KeptObject<Arc<VipTableSpec>>>,
    node_sets: Vec<KeptObject<NodeSetSpec>>,
    tunnel: Option<TunnelConfigSpec>,
    #[serde(default)]
    announcing: announce::Kept,
}

/// What was kept.
#[derive(Debug, Default)]
pub struct Recalled {
    /// The seed.
    pub seed: Option<ClusterSeed>,
    /// Tables.
    pub tables: Vec<Object<VipTableSpec>>,
    /// Chunks of complete sets.
    pub node_sets: Vec<Object<NodeSetSpec>>,
    /// The tunnel.
    pub tunnel: Option<TunnelConfigSpec>,
    /// Of announcing.
    pub announcing: announce::Kept,
}

impl Cache {
    /// Of what is in the maps.
    pub fn new(origin: &Origin, seed: Option<&ClusterSeed>, kept: Kept, announcing: announce::Kept) -> Self {
        let table = |(name, created, revision, spec)| KeptObject::new(&name, created, revision, spec);
        let chunk = |chunk: Arc<Object<NodeSetSpec>>| {
            let spec = chunk.spec.as_ref().ok()?.clone();
            Some(KeptObject::new(&chunk.name, chunk.created, chunk.revision, spec))
        };
        Self {
            shape: SHAPE,
            origin: origin.clone(),
            seed: seed.map(|seed| Arc::clone(seed.digits())),
            tables: kept.tables.into_iter().map(table).collect(),
            node_sets: kept.chunks.into_iter().filter_map(chunk).collect(),
            tunnel: kept.tunnel,
            announcing,
        }
    }

    /// Writes it: whoever reads finds the old one or the new one, whole.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn write(&self, path: &Path) -> Result<(), CacheError> {
        let fail = |source| CacheError::Io {
            path: path.to_owned(),
            source,
        };
        let text = serde_json::to_vec(self).map_err(|source| CacheError::Corrupt {
            path: path.to_owned(),
            source,
        })?;
        kept::replace(path, &text).map_err(fail)
    }

    /// Reads what was written; nothing, where there is no file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is not what was written, or of another cluster.
    pub fn read(path: &Path, origin: &Origin) -> Result<Option<Recalled>, CacheError> {
        let fail = |source| CacheError::Io {
            path: path.to_owned(),
            source,
        };
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(fail)?;
        let cache: Self = serde_json::from_slice(&bytes).map_err(|source| CacheError::Corrupt {
            path: path.to_owned(),
            source,
        })?;
        let foreign = |what| CacheError::Foreign {
            path: path.to_owned(),
            what,
        };
        if cache.shape != SHAPE {
            return Err(foreign("written by another version"));
        }
        if cache.origin != *origin {
            return Err(foreign("of another cluster or namespace"));
        }
        let seed = cache.seed.map(|digits| ClusterSeed::parse(&digits));
        let table = |table: KeptObject<Arc<VipTableSpec>>| table.map(Arc::unwrap_or_clone);
        Ok(Some(Recalled {
            seed: seed.transpose().map_err(|_| foreign("its seed is none"))?,
            tables: cache.tables.into_iter().map(table).collect(),
            node_sets: cache
                .node_sets
                .into_iter()
                .map(|chunk| chunk.map(|spec| spec))
                .collect(),
            tunnel: cache.tunnel,
            announcing: cache.announcing,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

    use operator_api::TunnelConfigSpec;

    use super::{Cache, CacheError, Origin};
    use crate::source::kube::{index::Kept, seed::ClusterSeed};

    const SEED: &str = "9f4c1b7e2a5d803611c7e9d2b4f60a8853fe27ad90b1c64e7d3a8f150c62e9b7";

    fn origin(namespace: &str) -> Origin {
        Origin {
            server: "https://[2001:db8::1]:6443/".to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    fn cache() -> Cache {
        let spec = serde_json::json!({
            "service": {"namespace": "shop", "name": "web", "uid": "1"},
            "addresses": [{"address": "203.0.113.1", "pool": "p", "use": "LoadBalancer"}],
            "ports": [{"protocol": "TCP", "port": 80}],
            "backends": {"nodeSet": {"name": "workers"}},
        });
        let kept = Kept {
            tables: vec![(
                "shop.web".into(),
                5,
                77,
                Arc::new(serde_json::from_value(spec).unwrap()),
            )],
            chunks: Vec::new(),
            tunnel: Some(TunnelConfigSpec::default()),
        };
        Cache::new(
            &origin("a"),
            ClusterSeed::parse(SEED).ok().as_ref(),
            kept,
            Default::default(),
        )
    }

    #[test]
    fn what_was_written_is_read_and_only_its_owner_may() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/kube.json");
        assert!(Cache::read(&path, &origin("a")).unwrap().is_none());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_file_name("kube.json.new"), "left by one that was killed").unwrap();
        cache().write(&path).unwrap();
        cache().write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let recalled = Cache::read(&path, &origin("a")).unwrap().unwrap();
        assert_eq!(recalled.tables[0].revision, 77);
        assert_eq!(recalled.tables[0].spec.as_ref().unwrap().ports[0].port, 80);
        assert_eq!(recalled.seed, ClusterSeed::parse(SEED).ok());
        let others: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(others.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_cut_short_or_of_another_cluster_is_told_apart_and_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kube.json");
        cache().write(&path).unwrap();
        let foreign = Cache::read(&path, &origin("b"));
        assert!(matches!(foreign, Err(CacheError::Foreign { .. })), "{foreign:?}");
        let whole = fs::read(&path).unwrap();
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let cut = Cache::read(&path, &origin("a"));
            assert!(matches!(cut, Err(CacheError::Corrupt { .. })), "{length}: {cut:?}");
        }
    }
}
